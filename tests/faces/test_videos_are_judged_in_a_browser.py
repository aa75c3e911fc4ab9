"""The gallery and the judging of the room Sample in a real browser: open, compare, take along, use again, delete."""

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from studio.core.sample.compare import attention_variants, heat_map
from studio.core.sample.desk import compared
from studio.core.sample.queue import SampleQueue
from studio.core.sample.request import SampleRequest
from studio.core.sample.video import read_video

pytestmark = pytest.mark.browser

PROMPT = "a circle <b>hops</b> & grows"
OTHER, DENSE, SPARSE = "sample-0001", "sample-0002", "sample-0003"
NUM_FRAMES = 9


@pytest.fixture(scope="module")
def judged_project(make_project, tiny_bundle):
    """A project with a video in its gallery, and then a pair of one group, dense and sparse."""
    folder = make_project()
    start = np.linspace(0, 255, 64 * 96 * 3).reshape(64, 96, 3).astype(np.uint8)
    request = SampleRequest(
        prompt=PROMPT, start_frame=start, height=64, width=96, num_frames=NUM_FRAMES, num_inference_steps=2,
        guidance_scale=1, seed=5,
    )  # fmt: skip
    queue = SampleQueue(folder / "runs/samples/queue")
    for one in (replace(request, seed=6, prompt="another"), *compared(attention_variants(request))):
        queue.add(one)
    assert list(queue.run(lambda _: tiny_bundle, folder / "runs/samples"))
    return folder


def picture_of(page, selector):
    """What a canvas shows: uint8 [H, W, 3]."""
    address = page.eval_on_selector(selector, "canvas => canvas.toDataURL('image/png')")
    return np.array(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB"))


def distance(a, b):
    return float(np.abs(a.astype(float) - b).mean())


def nearest_frame(picture, frames):
    return int(np.argmin([distance(picture, frame) for frame in frames]))


def shown_frames(page, videos):
    """Which frame each player shows, told from its pixels alone."""
    canvases = [f"#judge .judge-panes figure:nth-child({place}) canvas" for place in range(1, 1 + len(videos))]
    return [nearest_frame(picture_of(page, canvas), frames) for canvas, frames in zip(canvases, videos, strict=True)]


def wait_for_frame(page, number):
    page.wait_for_selector(f".judge[data-frame='{number}']")


def slide(page, selector, value):
    page.eval_on_selector(
        selector, f"range => {{ range.value = {value}; range.dispatchEvent(new Event('input', {{bubbles: true}})); }}"
    )


def test_a_group_is_judged_and_taken_along(enter_sample_room, judged_project, tmp_path):
    """What was finished last is shown to whoever opens the room."""
    gallery = judged_project / "runs/samples"
    videos = [read_video(gallery / f"{name}.mp4")[0] for name in (DENSE, SPARSE)]
    page = enter_sample_room(judged_project)
    page.wait_for_selector(".judge[data-state='ready'][data-frame='0']")
    assert page.locator("[data-card]").count() == 3
    assert "<b>hops</b>" in page.inner_text(f"[data-card='{DENSE}'] .shelf-prompt")
    assert "One setting differs: Attention." in page.inner_text("#judge-differences")
    facts = page.inner_text(".judge-facts")
    assert "Keeps the start frame" in facts
    assert "Against “Dense”" in facts
    assert shown_frames(page, videos) == [0, 0]

    page.focus(".judge")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    wait_for_frame(page, 3)
    assert shown_frames(page, videos) == [3, 3]
    slide(page, "[data-scrub]", 6)
    wait_for_frame(page, 6)
    assert shown_frames(page, videos) == [6, 6]
    assert "frame 7 of 9" in page.get_attribute("[data-scrub]", "aria-valuetext")
    page.keyboard.press("Space")
    page.wait_for_selector(".judge[data-playing='true']:not([data-frame='6'])")
    page.keyboard.press("Space")
    page.wait_for_selector(".judge[data-playing='false']")
    page.keyboard.press("End")
    wait_for_frame(page, NUM_FRAMES - 1)
    assert shown_frames(page, videos) == [NUM_FRAMES - 1] * 2

    page.click("[data-mode-of='wipe']")
    first, second = (frames[-1] for frames in videos)
    for place, seen in ((0, second), (1000, first)):
        slide(page, "[data-wipe]", place)
        inside = picture_of(page, "[data-over]")[:, 2:-2]
        assert distance(inside, seen[:, 2:-2]) < 4
    page.click("[data-mode-of='heat']")
    assert distance(picture_of(page, "[data-over]"), heat_map(first[None], second[None])[0]) < 4

    page.click("#judge-sheet")
    page.wait_for_selector("#judge-files:has-text('png')")
    page.click("#judge-page")
    page.wait_for_selector("#judge-files:has-text('html')")
    with page.expect_download() as download:
        page.locator("#judge-files a[download]").first.click()
    download.value.save_as(tmp_path / "kept.html")

    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for part in ("[data-do='play']", "[data-mode-of='side']", "[data-again]", "[data-doom]"):
        page.wait_for_function("part => document.querySelector(part).getBoundingClientRect().height >= 44", arg=part)
    the_page_stands_alone(page, tmp_path / "kept.html", videos)


def the_page_stands_alone(page, file, videos):
    context = page.context.browser.new_context(offline=True, locale="es")
    alone, said, asked = context.new_page(), [], []
    alone.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    alone.on("request", lambda request: asked.append(request.url.partition(":")[0]))
    alone.goto(file.as_uri())
    alone.wait_for_selector(".judge[data-state='ready'][data-frame='0']")
    alone.focus(".judge")
    alone.keyboard.press("ArrowRight")
    wait_for_frame(alone, 1)
    canvases = [f".judge-panes figure:nth-child({place}) canvas" for place in (1, 2)]
    found = [nearest_frame(picture_of(alone, canvas), frames) for canvas, frames in zip(canvases, videos, strict=True)]
    assert found == [1, 1]
    assert PROMPT in alone.inner_text("blockquote")
    assert not said
    assert set(asked) <= {"file", "data", "blob"}
    context.close()


def test_a_video_is_used_again_compared_with_a_stranger_and_deleted(enter_sample_room, judged_project):
    page = enter_sample_room(judged_project, "es/", color_scheme="dark")
    page.click(f"[data-again='{DENSE}']")
    page.wait_for_function(f"document.querySelector('#prompt textarea').value === {json.dumps(PROMPT)}")

    page.wait_for_selector(".judge[data-state='ready']")
    page.click("#judge-close")
    page.wait_for_selector(".judge", state="detached")
    page.click(f"[data-card='{SPARSE}'] [data-open]")
    page.wait_for_selector(".judge[data-state='ready']")
    assert "Atención" in page.inner_text("#judge-differences .judge-sentence")

    assert page.is_disabled("[data-compare]")
    for name in (OTHER, DENSE):
        page.focus(f"[data-tick='{name}']")
        page.keyboard.press("Space")
    page.click("[data-compare]")
    page.wait_for_selector("#judge-differences .judge-sentence:has-text('Semilla')")
    assert "no del ajuste" in page.inner_text("#judge-differences .warning")

    page.click(f"[data-doom='{OTHER}']")
    page.wait_for_selector(f"#gallery-doom:has-text('{OTHER}')")
    page.click("#gallery-keep")
    page.wait_for_selector("#gallery-doom", state="hidden")
    assert (judged_project / f"runs/samples/{OTHER}.mp4").is_file()
    page.click(f"[data-doom='{OTHER}']")
    page.click("#gallery-really")
    page.wait_for_selector(f"[data-card='{OTHER}']", state="detached")
    assert not list((judged_project / "runs/samples").glob(f"{OTHER}*"))
    assert page.locator("[data-card]").count() == 2
