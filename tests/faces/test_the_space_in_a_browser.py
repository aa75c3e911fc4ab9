"""The Space as it is pushed: its folder, in an environment of exactly its requirements, opened by a visitor.

`.ci/run` makes both, and names the environment's Python and the folder in SPACE_PYTHON and SPACE_FOLDER.
"""

import http.client
import json
import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from studio.bench.app import answers

PYTHON, FOLDER = os.environ.get("SPACE_PYTHON"), os.environ.get("SPACE_FOLDER")
pytestmark = pytest.mark.skipif(not (PYTHON and FOLDER), reason="needs the environment that .ci/run makes")

OPENS_WITHIN = 60
"""Seconds from an empty disk."""


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """(address, its temporary folder) of the Space, started as Hugging Face does: `python app.py`, and a port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home, temporary = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("tmp")
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(temporary), "HF_HUB_OFFLINE": "1",
        "GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "0",
    }  # fmt: skip
    with (home / "space.log").open("w") as log:
        app = subprocess.Popen([PYTHON, "app.py"], cwd=FOLDER, env=environment, stdout=log, stderr=log)
        try:
            end = time.monotonic() + OPENS_WITHIN
            while not answers(port):
                assert app.poll() is None, (home / "space.log").read_text()
                assert time.monotonic() < end, "the Space did not open within a minute"
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}", temporary
        finally:
            app.terminate()
            app.wait(20)


@pytest.fixture(scope="module")
def browser(chromium):
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-background-networking"]
        )
        yield opened
        opened.close()


def test_a_visitor_takes_an_example_and_the_video_plays(space, browser):
    address, temporary = space
    page = browser.new_page()
    page.set_default_timeout(30_000)
    page.goto(address)
    page.locator("#examples tbody tr, #examples button.gallery-item").first.click()
    page.wait_for_function("document.querySelector('#prompt textarea').value.length > 5")
    page.get_by_text("More settings").click()
    page.locator("#sample-frames input[type=number]").fill("5")
    page.locator("#sample-steps input[type=number]").fill("2")
    page.locator("#sample-steps input[type=number]").press("Tab")
    page.click("#render")
    page.wait_for_selector("#without video", timeout=120_000)
    page.wait_for_function(
        "(() => { const v = document.querySelector('#without video'); return v.readyState >= 2 && v.videoWidth; })()"
    )
    page.wait_for_function("!document.querySelector('#without video').paused")
    assert "seed 0" in page.locator("#sample-status").inner_text()
    assert page.locator("#render").is_visible()
    assert not list(temporary.glob("longcat-space-*/tmp*")), "what was rendered is only where it is sent from"


def test_a_visitor_without_a_picture_is_told_what_to_do_in_spanish(space, browser):
    page = browser.new_page()
    page.set_default_timeout(30_000)
    page.goto(space[0])
    page.get_by_role("link", name="Español").click()
    page.wait_for_url("**/es")
    page.locator("#prompt textarea").last.fill("un triángulo")
    page.locator("#render").last.click()
    page.get_by_text("No hay imagen inicial").wait_for()


def test_too_long_uploads_are_refused(space):
    connection = http.client.HTTPConnection(space[0].partition("://")[2], timeout=30)
    connection.putrequest("POST", "/gradio_api/upload")
    connection.putheader("Content-Type", "multipart/form-data; boundary=x")
    connection.putheader("Content-Length", str(22 * 2**20))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_a_picture_that_was_not_uploaded_is_not_opened(space):
    """gradio does not look where one lies that has no mark of an upload."""
    connection = http.client.HTTPConnection(space[0].partition("://")[2], timeout=30)
    connection.request("GET", "/config")
    events = json.loads(connection.getresponse().read())["dependencies"]
    number = next(event["id"] for event in events if event["api_name"].startswith("render"))
    picture = {"path": str(next(Path(FOLDER).rglob("*.png")))}
    for path in ("queue/join", "queue/join%0A", "run/predict", "stream/x"):
        body = {"data": [picture, "it moves", None, 1, 5, 1, 0], "fn_index": number, "session_hash": "another"}
        connection.request("POST", f"/gradio_api/{path}", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 403, path
    connection.close()


@pytest.mark.parametrize("path", ["/etc/passwd", "app.py", "studio/ui/app.py", "/proc/self/environ", "README.md"])
def test_no_path_is_served(space, path):
    connection = http.client.HTTPConnection(space[0].partition("://")[2], timeout=30)
    for asked in (path, str(Path(FOLDER) / path)):
        connection.request("GET", f"/gradio_api/file={asked}")
        answer = connection.getresponse()
        answer.read()
        assert answer.status in (403, 404)
    connection.close()
