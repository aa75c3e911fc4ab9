"""The app in a process of its own, on a free port."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROCESSES_OF_A_ROOM = [
    pytest.mark.skipif(sys.platform == "win32", reason="launchers and signals of POSIX"),
    # gradio imports starlette's test client, which warns, and leaves an event loop open for each page
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
"""The marks of tests in which a room, built in their own process, starts others."""

SERVE = """
import sys
from pathlib import Path
from studio.ui.app import launch
from studio.ui.settings import AppSettings
demo, broken, runs, port = sys.argv[1:]
launch(AppSettings(demo=Path(demo), broken_demo=Path(broken), output_dir=Path(runs)), port=int(port))
"""

CONFIG = {
    "pretrained_model_name_or_path": "tiny",
    "lora_rank": 4,
    "max_train_steps": 8,
    "learning_rate": 1e-3,
    "train_batch_size": 1,
    "seed": 1,
    "aspect_bucket_alignment": 64,
    "validation_resolution": "64x64",
    "validation_num_video_frames": 9,
    "validation_num_inference_steps": 1,
    "data_backend_config": "multidatabackend.json",
}
DATASETS = [
    {
        "id": "clips", "type": "local", "dataset_type": "video", "instance_data_dir": "clips",
        "caption_strategy": "textfile", "resolution": 64, "resolution_type": "pixel",
        "video": {"num_frames": 9, "is_i2v": True}, "conditioning_data": "start_frames",
    },
    {
        "id": "start_frames", "type": "local", "dataset_type": "conditioning",
        "conditioning_type": "reference_strict", "instance_data_dir": "start_frames",
    },
]  # fmt: skip


def write_project(folder):
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "multidatabackend.json").write_text(json.dumps(DATASETS))
    return folder


@pytest.fixture(scope="session")
def project(shapes_dataset, tmp_path_factory):
    """A project of four small clips."""
    return write_project(Path(shutil.copytree(shapes_dataset, tmp_path_factory.mktemp("project") / "hops")))


@pytest.fixture(scope="session")
def make_project(project, tmp_path_factory):
    """make_project(): a copy of it whose runs and samples lie inside, apart from those of other tests."""

    def make():
        folder = Path(shutil.copytree(project, tmp_path_factory.mktemp("own") / "hops"))
        (folder / "config.json").write_text(json.dumps(CONFIG | {"output_dir": "runs"}))
        return folder

    return make


@pytest.fixture(scope="session")
def faulty_project(project, tmp_path_factory):
    """The same with a hostile caption, a clip without start frame, one without caption and one cut off."""
    folder = Path(shutil.copytree(project, tmp_path_factory.mktemp("faulty") / "hops"))
    (folder / "clips/shape_0.txt").write_text("<img src=x onerror=document.title='owned'> ${1+1} {{value}}")
    (folder / "start_frames/shape_1.png").unlink()
    (folder / "clips/shape_2.txt").unlink()
    cut = folder / "clips/shape_3.mp4"
    cut.write_bytes(cut.read_bytes()[:300])
    return folder


@pytest.fixture(scope="session")
def app_address(project, faulty_project, tmp_path_factory):
    """Address of a running app, such as http://127.0.0.1:40123."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = tmp_path_factory.mktemp("home")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels/torch-ext")])
    log = home / "app.log"
    with log.open("w") as out:
        arguments = [str(project), str(faulty_project), str(home / "runs"), str(port)]
        app = subprocess.Popen(
            [sys.executable, "-c", SERVE, *arguments],
            cwd=home, env=os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}, stdout=out, stderr=out,
        )  # fmt: skip
        try:
            _wait_until_served(app, port, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            app.terminate()
            app.wait(20)


def _wait_until_served(app, port, log):
    for _ in range(240):
        if app.poll() is not None:
            pytest.fail(f"the app ended: {log.read_text()}")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.5)
        else:
            return
    pytest.fail("the app did not come up in two minutes")


@pytest.fixture(scope="session")
def chromium():
    """Chromium, or Chrome."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    return found or pytest.skip("needs Chromium, or Chrome, on the PATH")


@pytest.fixture
def visit(chromium, app_address):
    """visit(path="", **context): a page of the app; at the end no other host was asked for anything."""
    api = pytest.importorskip("playwright.sync_api")
    strangers = []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-background-networking"]
        )

        def look(path="", **context):
            page = browser.new_context(**context).new_page()
            page.set_default_timeout(90_000)
            own = (app_address, app_address.replace("http", "ws"), "data:", "blob:")
            page.on("request", lambda r: None if r.url.startswith(own) else strangers.append(r.url))
            page.goto(f"{app_address}/{path}")
            page.wait_for_selector("#use-demo")
            return page

        yield look
        browser.close()
    assert not strangers


@pytest.fixture
def enter_sample_room(visit):
    """enter_sample_room(project, path="", **context): a page with the project open, in the room Sample."""

    def enter(project, path="", **context):
        page = visit(path, **context)
        page.fill("#dataset-path input, #dataset-path textarea", str(project))
        page.locator("#dataset-path").locator("xpath=following::button[1]").click()
        page.wait_for_selector(f".summary .path:text-is('{project}')")
        page.get_by_role("tab").nth(2).click()
        page.wait_for_selector("#prompt textarea", state="visible")
        return page

    return enter
