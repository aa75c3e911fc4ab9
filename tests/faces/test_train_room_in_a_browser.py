"""A run from its start to its end, watched and steered from the room Train in a real browser."""

import json
import shutil
import time

import pytest

from studio.core.runlog import list_runs
from studio.core.train.requests import Request, ask

pytestmark = pytest.mark.browser

PATIENCE = 90_000
"""Milliseconds for what trains or renders on a busy CPU."""
NUM_STEPS = 60
"""Enough that the run is still under way when the page has seen its first steps."""


@pytest.fixture
def make_project(project, tmp_path):
    """make_project(**config): a project of its own, with its runs in it, so that no other test's run is shown.

    A run that a failed test has left under way is stopped: the app trains one at a time.
    """
    folder = shutil.copytree(project, tmp_path / "hops")

    def make(**changes):
        config = json.loads((folder / "config.json").read_text()) | {"output_dir": "runs"} | changes
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    yield make
    for run in list_runs(folder / "runs"):
        ask(run, Request.STOP)
        deadline = time.monotonic() + PATIENCE / 1000
        while run.snapshot().state.is_live and time.monotonic() < deadline:
            time.sleep(0.1)


def room(page, name):
    page.get_by_role("tab", name=name, exact=True).click()


def wait_for_state(page, state):
    page.wait_for_selector(f"[data-state='{state}']", timeout=PATIENCE)


def points(page):
    return int(page.evaluate("document.querySelector('[data-points]')?.dataset.points ?? 0"))


def shown_range(page):
    told = page.evaluate("document.querySelector('[data-range]')?.dataset.range ?? '-1,-1'")
    return [float(end) for end in told.split(",")]


def wait_until(page, condition):
    deadline = time.monotonic() + PATIENCE / 1000
    while not condition():
        assert time.monotonic() < deadline, page.inner_text("#run-status")
        page.wait_for_timeout(100)


def open_and_train(page, folder):
    page.fill("#dataset-path input, #dataset-path textarea", str(folder))
    page.get_by_role("button", name="Open", exact=True).click()
    page.wait_for_selector(f".summary .path:text-is('{folder}')")
    page.click("#to-train")
    page.wait_for_selector("#plan .facts")
    page.click("#train")


def drag_across(page, start, end):
    """Drags over the chart between two shares of its width."""
    box = page.locator("#plot-area").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + start * box["width"], middle)
    page.mouse.down()
    page.mouse.move(box["x"] + end * box["width"], middle, steps=4)
    page.mouse.up()


def hold_zoomed_answer(page):
    """Keeps the first answer that draws a zoomed chart from the page: [a function that lets it through], once held."""
    held = []

    def pass_or_hold(route):
        asked, answer = route.request.post_data, route.fetch()
        if not held and '"narrow":' in asked and '"span":[' in asked:
            held.append(lambda: route.fulfill(response=answer))
        else:
            route.fulfill(response=answer)

    page.route("**/gradio_api/run/**", pass_or_hold)
    return held


def test_from_a_dataset_through_a_run_to_a_video(visit):
    page = visit()
    page.click("#use-demo")
    page.wait_for_selector(".clip")
    assert page.locator(".clip").count() == 4
    assert "4 ready" in page.inner_text(".summary")
    page.click(".clip >> nth=1")
    page.wait_for_function("document.querySelector('#clip-player video')?.duration > 0")

    page.click("#to-train")
    page.wait_for_selector("#plan .facts")
    page.click("#train")
    wait_until(page, lambda: points(page) >= 2)
    before = points(page)
    page.reload()
    page.wait_for_selector(".clip")
    room(page, "Train")
    wait_until(page, lambda: points(page) >= before)
    page.wait_for_selector("[data-state='finished']", timeout=PATIENCE)
    wait_until(page, lambda: points(page) == 8)
    assert "step 8 of 8" in page.inner_text("#run-status")

    page.click("#to-sample")
    page.wait_for_selector("#lora-choice input")
    page.wait_for_function("/^\\d{8}-/.test(document.querySelector('#lora-choice input').value)")
    page.click("#sample-pair input")
    page.click("#sample-pair [role=option] >> nth=0")
    page.wait_for_function("document.querySelector('#prompt textarea').value.includes('hops')")
    page.click("#sample-compare input")
    page.click("#sample-compare [role=option] >> nth=1")
    page.click("text=More settings")
    for field, value in {"steps": "2", "frames": "9", "height": "64", "width": "64"}.items():
        page.fill(f"#sample-{field} input", value)
    page.wait_for_selector("#sample-plan :text('2 videos of one seed')")
    page.click("#render")
    page.wait_for_selector("#stage .results", timeout=PATIENCE)
    wait_until(page, lambda: page.locator(".entry.is-done").count() == 2)
    for video in ("#player video", "#judge video >> nth=0", "#judge video >> nth=1"):
        playing = page.wait_for_selector(video, state="attached").evaluate_handle("v => v")
        page.wait_for_function("v => v.readyState >= 2 && v.duration > 0", arg=playing, timeout=PATIENCE)
    assert "dense attention" in page.inner_text("#stage")


def test_a_run_is_paused_looked_at_taken_up_and_stopped_from_any_tab(visit, make_project):
    folder = make_project(max_train_steps=NUM_STEPS)
    page = visit()
    open_and_train(page, folder)
    wait_until(page, lambda: points(page) >= 2)
    assert "Stop after this step (" in page.inner_text("#train")
    page.click("#pause")
    wait_for_state(page, "paused")
    assert "The device is free" in page.inner_text("#run-status")
    paused_at = int(page.get_attribute("[data-state]", "data-step"))
    assert 2 <= paused_at < NUM_STEPS

    page.click("#sample-now")
    page.wait_for_selector(f"#run-samples :text('step {paused_at}')", timeout=PATIENCE)
    caption = page.inner_text(f"#run-samples :text('step {paused_at}')")
    assert "start frame" in caption
    assert page.get_by_text("without the LoRA", exact=True).count() == 1
    wait_for_state(page, "paused")

    wait_until(page, lambda: points(page) == paused_at)
    assert shown_range(page) == [0, NUM_STEPS]
    drag_across(page, 0.0, 0.5)
    wait_until(page, lambda: shown_range(page)[1] < NUM_STEPS)
    zoomed = shown_range(page)
    assert zoomed == pytest.approx([0, NUM_STEPS / 2], abs=1)
    assert float(page.input_value("#chart-to input")) == pytest.approx(zoomed[1], abs=0.01)

    other = visit()
    room(other, "Train")
    wait_for_state(other, "paused")
    assert shown_range(other) == [0, NUM_STEPS], "another browser has its own zoom"
    before = set(folder.glob("runs/*/checkpoints/step-*"))
    other.click("#pause")
    wait_until(page, lambda: points(page) > paused_at)
    page.click("#save-now")
    wait_until(page, lambda: set(folder.glob("runs/*/checkpoints/step-*")) - before)
    page.click("#pause")
    wait_for_state(page, "paused")
    assert shown_range(page) == zoomed, "the chart was drawn anew, and is still zoomed"
    page.reload()
    room(page, "Train")
    wait_until(page, lambda: points(page) > paused_at and shown_range(page) == zoomed)
    wait_until(page, lambda: page.input_value("#chart-to input") == f"{zoomed[1]:g}")
    page.fill("#chart-from input", "2")
    page.press("#chart-from input", "Enter")
    wait_until(page, lambda: shown_range(page)[0] == 2)
    page.click("#chart-whole")
    wait_until(page, lambda: shown_range(page) == [0, NUM_STEPS])

    late = hold_zoomed_answer(page)
    drag_across(page, 0.0, 0.5)
    wait_until(page, lambda: late)
    drag_across(page, 0.5, 1.0)
    wait_until(page, lambda: shown_range(page)[0] > 0)
    newest = shown_range(page)
    late[0]()
    wait_until(page, lambda: shown_range(page) != newest)
    wait_until(page, lambda: shown_range(page) == newest)
    page.unroute_all()

    page.click("#train")
    wait_for_state(page, "stopped")
    wait_for_state(other, "stopped")
    stopped_at = int(page.get_attribute("[data-state]", "data-step"))
    page.wait_for_selector(f"#train:text-is('Continue from step {stopped_at}')")
    page.click("#train")
    wait_for_state(page, "finished")
    wait_until(page, lambda: points(page) == NUM_STEPS)
    page.wait_for_selector("#lora:visible")

    page.click("#clip-losses button:has-text('Clips by loss')")
    page.click("#clip-losses [data-clip='clips/shape_2']")
    page.wait_for_selector("#detail-head:has-text('shape_2')")


def test_a_run_that_fails_keeps_its_curve_and_says_why(visit, make_project):
    page = visit()
    open_and_train(page, make_project(learning_rate=1e30))
    wait_for_state(page, "failed")
    assert "The loss at step 2 is nan; clips: shape_" in page.inner_text("#run-status .failure")
    assert "Traceback" not in page.inner_text("body")
    wait_until(page, lambda: points(page) >= 1)
    page.wait_for_selector("#train:text-is('Continue from the start')")
