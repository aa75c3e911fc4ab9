"""The model card of a run, and its way to the hub: the library as it is, a small server in the place of the hub."""

import json
import shutil
import threading
from base64 import b64decode
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard, constants
from PIL import Image

from studio.cli import main
from studio.core.config import SharingConfig
from studio.core.errors import AdapterError, ConfigError, UploadError
from studio.core.events import HeldOutLoss, SampleSaved
from studio.core.model.lora import LORA_FILE
from studio.core.runlog import RunFolder, RunState
from studio.core.sample.video import read_settings, read_video, write_video
from studio.core.train.card import card_text, write_card
from studio.core.train.hub import last_upload, upload_run
from studio.core.train.job import TrainJob

HOSTILE = "a circle | hops</code> <script>alert(1)</script>\n---\n[x](javascript:alert(1)) `code`"


def add_sample(run, step, name="shape_0", *, level=0, prompt="a circle hops"):
    """A sample as a run leaves it: two small videos and their event."""
    frames = np.full((5, 32, 48, 3), level, dtype=np.uint8)
    base = f"samples/base-{name}-0123abcd.mp4"
    path = f"samples/step-{step:06d}-{name}.mp4"
    for file in (base, path):
        write_video(run.path / file, frames, 15, {"model": "/home/someone/mine", "seed": 3})
    run.append(SampleSaved(step=step, path=path, prompt=prompt, base=base, start_psnr=31.2, motion=12.5, drift=3.4))


@pytest.fixture(scope="module")
def kept():
    """The run of the first test, for the others."""
    return {}


@pytest.fixture
def trained(config, run, kept, tmp_path_factory):
    """A run of four steps, with a sample and a look at held-out clips after its end."""
    if not kept:
        kept["run"] = shutil.copytree(run(config).path, tmp_path_factory.mktemp("kept") / "20261128-100000-kept")
    folder = RunFolder(Path(shutil.copytree(kept["run"], config.output_dir / kept["run"].name, dirs_exist_ok=True)))
    end = folder.events()[-1][1]
    add_sample(folder, 4, prompt=HOSTILE)
    look = {"bands": (0.2, 0.4), "base_bands": (0.3, 0.5), "num_clips": 2, "seconds": 1.0}
    folder.append(HeldOutLoss(step=4, loss=0.3, base_loss=0.4, **look))
    folder.append(end)
    return folder


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload asks for; `files` by repository, and what was asked."""

    repositories: dict
    files: dict
    refusal: tuple

    def answer(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.refusal:
            self.answer({"error": self.refusal[1]}, self.refusal[0])
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            known = name in self.repositories
            self.repositories.setdefault(name, asked.get("private") or asked.get("visibility") == "private")
            url = f"http://{self.headers['Host']}/{name}"
            self.answer(
                {"url": url} | ({"error": "You already created this model repo"} if known else {}),
                409 if known else 200,
            )
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif "/commit/" in self.path:
            name = "/".join(self.path.split("/")[3:5])
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files.setdefault(name, {})[line["value"]["path"]] = b64decode(line["value"]["content"])
            self.answer({"commitOid": "0" * 40, "commitUrl": f"http://{self.headers['Host']}/{name}/commit/{'0' * 40}"})
        else:
            self.answer({"error": f"not in this hub: {self.path}"}, 404)

    def do_GET(self):
        name = "/".join(self.path.split("?")[0].split("/")[3:5])
        if "/tree/" in self.path:
            files = self.files.get(name, {})
            self.answer([{"type": "file", "path": path, "size": len(data), "oid": "0"} for path, data in files.items()])
        elif name in self.repositories:
            self.answer({"id": name, "private": self.repositories[name], "siblings": []})
        else:
            self.answer({"error": "Repository not found"}, 404)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    """The server's handler class, which holds what was uploaded; someone is logged in."""
    handler = type("ThisHub", (Hub,), {"repositories": {}, "files": {}, "refusal": ()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    yield handler
    server.shutdown()
    server.server_close()
    thread.join(10)


def test_the_card_says_what_the_lora_is_in_numbers(trained, tmp_path):
    files = write_card(trained, tmp_path / "card")
    assert [file.name for file in files] == ["README.md", "sample.mp4", "sample.jpg"]
    card = ModelCard.load(files[0])
    assert (card.data.license, card.data.pipeline_tag) == ("mit", "image-to-video")
    assert "lora" in card.data.tags
    assert card.data.base_model is None, "the tiny checkpoint is not on the hub"
    assert "| clips | 4 |" in card.text
    assert "| steps | 4 of 4 |" in card.text
    assert "| rank | 4 |" in card.text
    assert "on 2 held-out clips after step 4" in card.text
    assert "0.750 of the base model's" in card.text
    assert "start frame kept at 31.2 dB" in card.text
    assert f"--lora {LORA_FILE}" in card.text
    assert read_settings(files[1]) == {"model": "mine", "seed": 3}
    assert not any(b"/home/" in file.read_bytes() for file in files), "no path leaves the machine"
    with Image.open(files[2]) as picture:
        assert picture.size == (4 * 48, 2 * 32)
    assert len(read_video(files[1])[0]) == 5
    with pytest.raises(ConfigError, match="card holds something already"):
        write_card(trained, tmp_path / "card")


def test_what_a_caption_says_is_text_in_the_card(trained, tmp_path):
    card = ModelCard.load(write_card(trained, tmp_path / "card")[0])
    assert card.data.to_dict()["widget"] == [{"text": HOSTILE, "output": {"url": "sample.mp4"}}]
    assert "<script>" not in card.text
    assert "](javascript:" not in card.text
    assert "`code`" not in card.text


def test_a_run_that_holds_nothing_out_and_has_no_sample_says_so(config, run, tmp_path):
    bare = run(config)
    (file,) = write_card(bare, tmp_path / "card")
    assert "No clips were held out" in file.read_text()
    with pytest.raises(AdapterError, match="has no LoRA yet"):
        write_card(RunFolder.create(config.output_dir, config), tmp_path / "none")


def test_an_upload_brings_lora_card_and_sample_to_a_private_repository(trained, hub):
    done = upload_run(trained, "me/hops")
    assert hub.repositories == {"me/hops": True}
    assert set(hub.files["me/hops"]) == {LORA_FILE, "README.md", "sample.mp4", "sample.jpg"}
    assert hub.files["me/hops"][LORA_FILE] == trained.snapshot().lora.read_bytes()
    assert done.url.endswith("/me/hops")
    assert done.is_private
    assert last_upload(trained) == done
    upload_run(trained, "hops")
    assert list(hub.repositories) == ["me/hops"], "a name alone is one's own, and a second upload is a second commit"


def test_a_repository_that_holds_something_else_is_left_alone(trained, hub):
    hub.repositories["me/book"] = False
    hub.files["me/book"] = {"README.md": b"a book"}
    with pytest.raises(UploadError, match="me/book holds something else, such as README.md"):
        upload_run(trained, "me/book")
    assert hub.files == {"me/book": {"README.md": b"a book"}}


def test_what_is_to_be_private_goes_to_no_repository_that_everyone_can_see(trained, hub):
    hub.repositories["me/open"] = False
    with pytest.raises(UploadError, match="Everyone can see the repository me/open") as caught:
        upload_run(trained, "me/open")
    assert caught.value.remedy.endswith(" --public")
    assert hub.files == {}
    assert not upload_run(trained, "me/open", is_private=False).is_private


def test_a_folder_in_the_form_of_a_hub_id_is_not_said_to_be_on_the_hub(config, tmp_path, monkeypatch):
    (tmp_path / "models/mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    sources = [replace(config, model=replace(config.model, source=name)) for name in ("models/mine", "owner/mine")]
    run = RunFolder.create(tmp_path / "runs", config)
    cards = [card_text(run.name, one, run.snapshot(), None) for one in sources]
    assert ["huggingface.co" in card for card in cards] == [False, True]
    assert "models/mine" not in cards[0]


def test_what_the_hub_refuses_is_one_sentence_with_the_command_that_tries_again(trained, hub, monkeypatch, capsys):
    hub.refusal = (403, "You have no right to write to them")
    with pytest.raises(UploadError, match=r"refused the upload to them/hops \(status 403\): .*no right") as caught:
        upload_run(trained, "them/hops")
    assert f"python -m studio runs upload {trained.name} --name them/hops" in caught.value.remedy
    assert last_upload(trained).message == caught.value.message
    hub.refusal = ()
    command = caught.value.remedy.rpartition("python -m studio ")[2].replace('"', "").split()
    assert main(command) == 0
    assert "/them/hops (private)" in capsys.readouterr().out
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UploadError, match="The hub cannot be reached"):
        upload_run(trained, "me/hops")


def test_a_finished_run_is_uploaded_when_that_was_asked_for(config, report, tiny_bundle, hub, wait_for):
    asked = replace(config, sharing=SharingConfig(push_to_hub=True, hub_model_id="me/asked"))
    job = TrainJob(asked, lambda: tiny_bundle, report=report)
    folder = job.start()
    job.join(60)
    wait_for(lambda: last_upload(folder) is not None)
    assert last_upload(folder).url.endswith("/me/asked")
    assert LORA_FILE in hub.files["me/asked"]


def test_an_upload_that_fails_fails_no_run(config, run, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent/token")
    folder = run(replace(config, sharing=SharingConfig(push_to_hub=True)))
    assert folder.state() is RunState.FINISHED
    last = last_upload(folder)
    assert last.message == "There is no token of the Hugging Face hub on this machine."
    assert last.remedy.startswith("Log in with `hf auth login`, then: python -m studio runs upload")
    assert not last.url
