"""The Space: what its page can be asked for, what it makes of whatever strangers send, and what it leaves behind."""

import gc
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from studio.core.errors import StudioError
from studio.core.events import DenoiseStep
from studio.core.model.load import SampleDefaults
from studio.core.sample.sampler import sample
from studio.ui.space_app import KEPT_SECONDS, ON_CPU, ON_GPU, SWEEP_SECONDS, asked, build_space, demo_pairs, gpu_seconds
from studio.ui.space_render import updates
from studio.view.words import LANGUAGES, words

pytestmark = [
    # gradio imports starlette's test client, which warns; it is not used here
    pytest.mark.filterwarnings("ignore::DeprecationWarning:starlette.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio.*"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

ROOT = Path(__file__).parents[2]
EN = words("en")
EVENTS = {
    # (function, api name): everything that a visitor can make the server do
    ("render", "render"),
    ("stop", "stop"),
    ("load_example", "load_example"),
    (None, "js_fn"),
    (None, "unnamed"),
}


def sent(path):
    """What gradio hands on of an upload that it knows."""
    return {"path": str(path), "url": None, "orig_name": Path(path).name, "meta": {"_type": "gradio.FileData"}}


def values(frame, text="a blue triangle grows", lora=None, strength=1, frames=5, steps=1, seed=3):
    return (frame, text, lora, strength, frames, steps, seed)


@pytest.fixture(scope="module")
def frame():
    return sent(demo_pairs()[0][0])


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """What the pages of a Space can be asked for."""
    bundle = SimpleNamespace(defaults=SampleDefaults(), source="tiny", device=torch.device("cpu"))
    app = build_space(ON_CPU, bundle, lambda *_: iter(()), tmp_path_factory.mktemp("space"))
    events = [
        (event.name if event.fn else None, re.sub(r"_\d+$", "", str(event.api_name)), event.api_visibility, event.queue)
        for event in app.fns.values()
    ]
    kinds = [block.get_block_name() for block in app.blocks.values()]
    kept = {Path(file).name for block in app.blocks.values() for file in getattr(block, "keep_in_cache", ())}
    told = {"events": events, "kinds": kinds, "kept": kept, "delete_cache": app.delete_cache, "api_open": app.api_open}
    yield told
    del app
    # gradio leaves event loops open; here they are no news.
    gc.collect()


def test_the_events_are_these_and_no_others(space):
    assert {event[:2] for event in space["events"]} == EVENTS
    assert len([name for name, *_ in space["events"] if name == "render"]) == len(LANGUAGES)
    assert {visibility for *_, visibility, _ in space["events"]} == {"private"}
    assert {is_queued for name, *_, is_queued in space["events"] if name == "render"} == {True}
    assert space["api_open"] is False


def test_no_text_box_but_the_prompt_and_no_file_but_picture_and_lora(space):
    kinds = ("textbox", "image", "file", "dropdown", "timer", "browserstate", "state", "chatbot", "code", "html")
    each = len(LANGUAGES)
    found = {kind: space["kinds"].count(kind) for kind in kinds if kind in space["kinds"]}
    assert found.pop("html") > 0
    assert found == {"textbox": each, "image": each, "file": each}
    assert space["delete_cache"] == (SWEEP_SECONDS, KEPT_SECONDS)
    assert KEPT_SECONDS <= 3600
    assert space["kept"] == {Path(path).name for path, _ in demo_pairs()}, "the examples, and nothing of a visitor's"


@pytest.mark.parametrize(
    ("offer", "frames", "steps"), [(ON_CPU, 33, 30), (ON_GPU, 93, 16)], ids=["on a CPU", "on a GPU"]
)
def test_what_is_asked_for_stays_within_the_offer(frame, offer, frames, steps):
    most = asked(
        values(frame, "x" * 5000, frames=10**400, steps=10**9, seed=10**30, strength=99, lora=frame), offer, EN
    )
    assert (most.num_frames, most.num_inference_steps, most.loras[0].strength) == (frames, steps, 2)
    assert (most.height, most.width, most.refinement, most.num_segments) == (None, None, "none", 1)
    assert len(most.prompt) == 2000
    assert most.seed < 2**63
    least = asked(values(frame, frames=-5, steps=-5, seed=-1), offer, EN)
    assert (least.num_frames, least.seed) == (5, 0)
    assert asked(values(frame, frames=12), offer, EN).num_frames == 9
    assert asked(values(frame), offer, EN).schedule == (None if offer is ON_CPU else "distilled")


@pytest.mark.parametrize(
    "wrong",
    [
        {"frames": "5"}, {"frames": float("nan")}, {"frames": [5]}, {"frames": None}, {"frames": True}, {"steps": {}},
        {"seed": "x"}, {"text": None}, {"text": ["a"]}, {"text": "  "}, {"strength": "1", "lora": {"path": "x"}},
    ],
    ids=str,
)  # fmt: skip
def test_values_of_another_kind_are_answered_with_a_sentence(frame, wrong):
    with pytest.raises(StudioError) as caught:
        asked(values(frame, **wrong), ON_CPU, EN)
    assert caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize("wrong", [None, "/etc/passwd", [], {}, {"path": None}, 3], ids=str)
def test_a_start_frame_that_is_no_upload_is_none(wrong):
    with pytest.raises(StudioError, match=EN("sample.no_frame")):
        asked(values(wrong), ON_CPU, EN)


def png(width, height):
    """A PNG that claims this size, and has a few rows."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


CRAFTED = {
    "bomb.png": (png(50_000, 50_000), "has more than 64 million pixels"),
    "large.png": (png(13_000, 13_000), "has more than 64 million pixels"),
    "cut.png": (png(64, 64), "is damaged or cut off"),
    "page.png": (b"<html><script>alert(1)</script></html>", "is not a PNG, JPEG or WebP image"),
    "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "is not a PNG"),
    "drawing.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not a PNG"),
    "nothing.jpg": (b"", "is empty"),
    "list.webp": (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "is not a PNG"),
    "<img src=x onerror=alert(1)>.png": (b"GIF89a" + bytes(64), "is not a PNG"),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_start_frame_is_named_with_what_is_wrong_and_the_buttons_come_back(name, tmp_path):
    content, said = CRAFTED[name]
    file = tmp_path / name
    file.write_bytes(content)
    shown = list(updates(lambda: asked(values(sent(file)), ON_CPU, EN), sample, tmp_path, EN))
    assert said in shown[-2][0]
    assert "<img" not in shown[-2][0]
    assert str(tmp_path) not in shown[-2][0]
    assert [part["visible"] for part in shown[-1][-2:]] == [True, False]


def test_a_picture_is_taken_whatever_its_name_says(tmp_path):
    Image.new("RGB", (64, 48), "red").save(tmp_path / "picture.txt", "WEBP")
    assert asked(values(sent(tmp_path / "picture.txt")), ON_CPU, EN).start_frame.shape == (48, 64, 3)


def test_a_render_leaves_no_file_whether_it_ends_or_is_left(frame, tiny_bundle, tmp_path):
    def sampler(request, out):
        return sample(request, tiny_bundle, out)

    def rendered():
        return updates(lambda: asked(values(frame, steps=2), ON_CPU, EN), sampler, tmp_path, EN)

    left = rendered()
    next(left), next(left)
    assert any(tmp_path.iterdir())
    left.close()
    assert not any(tmp_path.iterdir())
    assert not tiny_bundle.lock.locked()
    for shown in rendered():
        if isinstance(shown[1], dict) and shown[1].get("value"):
            assert Path(shown[1]["value"]).stat().st_size
            last = shown
    assert "seed 3" in last[0]
    assert not any(tmp_path.iterdir())


def test_a_render_that_takes_too_long_is_said(frame, tmp_path):
    def slow(_request, _out):
        yield DenoiseStep(step=1, num_steps=2, seconds=400.0)

    shown = list(updates(lambda: asked(values(frame), ON_CPU, EN), slow, tmp_path, EN))
    assert "was ended" in shown[-2][0]


def test_a_lent_gpu_is_asked_for_as_long_as_the_request_takes(frame):
    short, long = (gpu_seconds(asked(values(frame, frames=n), ON_GPU, EN), Path("x")) for n in (5, 93))
    # 16 forwards of 3.3 s on an H200 at the most; 210 s are what Hugging Face gives a visitor in a day.
    assert 30 <= short < 40 < 16 * 3.3 < long < 120


def test_examples_ask_for_what_the_tiny_checkpoint_knows():
    assert all(Path(path).is_file() and "hops" not in prompt for path, prompt in demo_pairs())
    assert len({prompt for _, prompt in demo_pairs()}) == 4


def test_the_folder_of_a_space_is_whole_and_pinned_to_what_is_tested(tmp_path):
    make = [sys.executable, str(ROOT / "assets/space/make.py"), str(tmp_path / "space")]
    subprocess.run(make, check=True, capture_output=True)
    assert subprocess.run(make, check=False, capture_output=True, text=True).stderr.count("\n") == 1
    there = {file.name for file in (tmp_path / "space").iterdir()}
    assert there == {"app.py", "README.md", "requirements.txt", "LICENSE", "studio", "video_bsa"}
    pins = set((ROOT / "tests/constraints.txt").read_text().lower().splitlines())
    wanted = [line for line in (tmp_path / "space/requirements.txt").read_text().splitlines() if line[0] != "#"]
    assert set(wanted) <= pins
    assert f"sdk_version: {next(line for line in wanted if line.startswith('gradio==')).partition('==')[2]}" in (
        tmp_path / "space/README.md"
    ).read_text(encoding="utf-8")
