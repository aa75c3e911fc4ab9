"""The room Sample in a real browser: a form, frames that emerge, and a queue that outlives the page."""

import numpy as np
import pytest
from PIL import Image

from studio.core.filelock import FileLock
from studio.core.sample.desk import LOCK

pytestmark = pytest.mark.browser

PATIENCE = 90_000
"""Milliseconds for what renders on a busy CPU."""


def ask_for(page, prompt, **numbers):
    """Fills fields in and presses Render; waits until it is queued."""
    page.fill("#prompt textarea", prompt)
    for name, value in numbers.items():
        page.fill(f"#sample-{name} input", str(value))
    before = page.locator(".entry").count()
    page.click("#render")
    page.wait_for_function(f"document.querySelectorAll('.entry').length > {before}", timeout=PATIENCE)


def wait_for(page, expected):
    states = [f"{state} {prompt}" for state, prompt in expected]
    page.wait_for_function(
        """expected => {
          const shown = [...document.querySelectorAll('.entry')].map(e =>
            e.className.match(/is-(\\w+)/)[1] + ' ' + e.querySelector('.words').textContent);
          return JSON.stringify(shown.slice(0, expected.length)) === JSON.stringify(expected);
        }""",
        arg=states,
        timeout=PATIENCE,
    )


def test_a_start_frame_becomes_a_video_and_the_queue_outlives_the_page(
    enter_sample_room, visit, make_project, tmp_path, request
):
    """Also: the crop is drawn, mistakes are said at once, a running sample is cancelled, others change places."""
    project = make_project()
    queue = project / "runs/samples/queue"
    queue.mkdir(parents=True)
    held = FileLock(queue / LOCK)
    assert held.acquire()
    request.addfinalizer(held.release)
    picture = tmp_path / "start.png"
    Image.fromarray(np.tile(np.arange(0, 192, 2, np.uint8)[None, :, None], (64, 1, 3))).save(picture)
    page = enter_sample_room(project)
    page.wait_for_selector("#stage :text('A start frame, a sentence, and Render.')")
    page.set_input_files("#start-frame input[type=file]", str(picture))
    page.wait_for_selector("#crop .note")
    page.click("#sample-more button")
    page.wait_for_function("document.querySelector('#sample-frames input').value === ''")
    assert page.get_attribute("#sample-frames input", "placeholder") == "17"
    page.fill("#sample-height input", "60")
    page.fill("#sample-width input", "64")
    page.wait_for_selector("#sample-plan .failure :text('multiples of 16')")
    assert "Use 64x64." in page.inner_text("#sample-plan")
    page.fill("#sample-height input", "64")
    page.wait_for_selector("#sample-plan .plan :text('64 x 64 px')")
    assert "33 % of the picture" in page.inner_text("#crop")
    box = page.evaluate("getComputedStyle(document.querySelector('#start-frame .image-frame'), '::after').display")
    assert box == "block"
    assert "auto took dense" in page.inner_text("#attention-said").lower()
    page.fill("#sample-guidance input", "7")
    page.wait_for_selector("#sample-plan .advice")
    page.fill("#sample-guidance input", "")

    ask_for(page, "the long one", frames=5, steps=1500)
    ask_for(page, "<b>one</b>", steps=2)
    ask_for(page, "two", steps=2)
    waiting = [("waiting", "the long one"), ("waiting", "<b>one</b>"), ("waiting", "two")]
    wait_for(page, waiting)
    assert "Another process renders" in page.inner_text("#stage")
    page.click(".entry >> nth=2 >> [data-do=up]")
    wait_for(page, [waiting[0], waiting[2], waiting[1]])

    again = visit("es/")
    held.release()
    again.wait_for_selector("#sample-pulse .pulse:has-text('Generando')", timeout=PATIENCE)
    again.get_by_role("tab", name="Generar", exact=True).click()
    wait_for(again, [("running", "the long one"), waiting[2], waiting[1]])
    again.wait_for_selector("#sample-pulse .pulse", state="detached")
    for one in (page, again):
        one.wait_for_selector(".emerging img", timeout=PATIENCE)
        assert one.evaluate("document.querySelector('.emerging img').naturalWidth") == 64
    assert "of 1500" in page.inner_text("#stage")
    assert "Generando" in again.inner_text("#stage")
    again.click("#cancel")
    ended = [("done", "<b>one</b>"), ("done", "two"), ("cancelled", "the long one")]
    wait_for(again, ended)
    wait_for(page, ended)
    for one in (page, again):
        one.wait_for_function("(v => v && v.duration > 0)(document.querySelector('#player video'))", timeout=PATIENCE)
        assert one.locator("#cancel:visible").count() == 0
    page.wait_for_selector("#gallery .shelf-card >> nth=1", timeout=PATIENCE)
    assert "keeps the start frame" in page.inner_text("#stage")
    assert "conserva la imagen inicial" in again.inner_text("#stage")

    again.click(".entry >> nth=1 >> [data-do=again]")
    again.wait_for_function("document.querySelector('#prompt textarea').value === 'two'")
    again.wait_for_selector("#start-frame img")
    again.click("#sample-more button")
    assert again.input_value("#sample-steps input") == "2"
    page.click("[data-do=clear]")
    page.wait_for_selector(".entry", state="detached")
