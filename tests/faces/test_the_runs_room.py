"""The room Runs in a real browser: runs are looked at, compared, handed on, continued and deleted."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from studio.core.config_json import write_run_config
from studio.core.model.load import load_bundle
from studio.core.runlog import RunFolder, RunState, list_runs
from studio.core.simpletuner import read_project
from studio.core.train.job import run_inline
from studio.core.train.runs import branch_run
from studio.ui.runs_tab import PAGE_SIZE

pytestmark = pytest.mark.browser

PATIENCE = 60_000
"""Milliseconds for what trains or exports on a busy CPU."""
TRAINED, OTHER, STOPPED = "20261128-100000-trained", "20261128-090000-other", "20261127-080000-stopped"
SMALL = {"validation_num_inference_steps": 1, "validation_num_video_frames": 5, "validation_resolution": "64x64"}


@pytest.fixture(scope="module")
def runs_project(project, tmp_path_factory):
    """A project with its own folder of runs: a finished one with samples, one of another rank, one that ended half-way
    with a damaged checkpoint, and a page of empty ones.
    """
    folder = Path(shutil.copytree(project, tmp_path_factory.mktemp("runs") / "hops"))
    config = json.loads((folder / "config.json").read_text()) | SMALL
    config |= {"max_train_steps": 4, "output_dir": "runs", "checkpoint_step_interval": 2, "validation_step_interval": 4}
    (folder / "config.json").write_text(json.dumps(config))
    run_config = read_project(folder).run
    bundle = load_bundle(run_config.model)

    made = run_inline(run_config, lambda: bundle)
    trained = RunFolder(made.path.rename(made.path.with_name(TRAINED)))
    other = Path(shutil.copytree(trained.path, trained.path.with_name(OTHER)))
    write_run_config(other / "config.json", replace(run_config, lora=replace(run_config.lora, rank=8)))
    stopped = branch_run(trained, 2)
    stopped = RunFolder(stopped.path.rename(stopped.path.with_name(STOPPED)))
    shutil.copytree(stopped.path / "checkpoints/step-000002", stopped.path / "checkpoints/step-000001")
    (stopped.path / "checkpoints/step-000001/lora.safetensors").write_bytes(b"cut off")
    for number in range(PAGE_SIZE):
        empty = RunFolder.create(run_config.output_dir, run_config)
        empty.path.rename(empty.path.with_name(f"20261101-{number:06d}-empty"))
    return folder


@pytest.fixture
def room(visit, runs_project):
    """The room, with that project open."""

    def enter(path="", name="Runs", **context):
        page = visit(path, **context)
        page.fill("#dataset-path input, #dataset-path textarea", str(runs_project))
        page.locator("#dataset-path").locator("xpath=following::button[1]").click()
        page.wait_for_selector(f".summary .path:text-is('{runs_project}')")
        page.get_by_role("tab", name=name, exact=True).click()
        page.wait_for_selector(".run")
        return page

    return enter


def open_run(page, name):
    page.click(f"[data-run='{name}']")
    page.wait_for_selector(f"#run-head .path:text-is('{name}')")


def test_a_run_is_looked_at_compared_and_taken_along(room, tmp_path):
    page = room()
    assert page.locator(".run").count() == PAGE_SIZE
    assert "23 runs" in page.inner_text("#runs-status")
    first = page.inner_text(".run >> nth=0")
    assert "Finished" in first
    assert "4 of 4" in first
    assert page.locator(".run >> nth=0").locator("img").count() == 1
    page.click("#runs-older")
    page.wait_for_selector("#runs-where:has-text('21-23 of 23')")
    page.click("#runs-newer")
    page.wait_for_selector(f"[data-run='{TRAINED}']")

    page.focus("[data-run] >> nth=0")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"#run-head .path:text-is('{TRAINED}')")
    page.wait_for_selector("#run-curve svg")
    assert page.is_disabled("#run-continue")
    assert "All 2 checkpoints are whole" in page.inner_text("#run-checkpoints")
    page.wait_for_selector("#samples-of-run:has-text('step 4')")

    def go_to(name):
        page.get_by_role("tab", name=name, exact=True).click()

    go_to("Train")
    page.locator("#loss #marker-checkpoint-2").press("Enter")
    page.wait_for_function("document.querySelector('#run-checkpoint input').value.includes('step 2')")
    page.wait_for_timeout(1_000)  # the room was entered, and is drawn anew
    assert "step 2" in page.input_value("#run-checkpoint input")
    page.click("#run-checkpoint input")
    page.click("[role=option]:has-text('step 4')")
    go_to("Train")
    go_to("Runs")
    page.wait_for_timeout(1_000)
    assert "step 4" in page.input_value("#run-checkpoint input")

    page.click("#run-export")
    page.wait_for_selector("#run-files-said :is(.failure, .note:has-text('landed'))", timeout=PATIENCE)
    assert "every key landed" in page.inner_text("#run-files-said")
    with page.expect_download() as download:
        page.locator("#run-files a[download]").first.click()
    download.value.save_as(tmp_path / "lora.safetensors")
    assert all(key.startswith("transformer.") for key in load_file(tmp_path / "lora.safetensors"))
    page.click("#run-card")
    page.wait_for_selector("#run-files:has-text('README')")
    page.click("#run-series")
    page.wait_for_selector("#run-files:has-text('csv')")

    page.focus(f"[data-tick='{TRAINED}']")
    page.keyboard.press("Space")
    page.wait_for_selector("#run-head")
    page.focus(f"[data-tick='{OTHER}']")
    page.keyboard.press("Space")
    page.wait_for_selector("#differences:has-text('lora_rank')")
    assert page.inner_text("#differences tbody").split() == ["lora_rank", "4", "8"]
    page.wait_for_selector("#overlay svg")
    page.wait_for_selector("#compared-samples:has-text('step 4')")
    assert page.locator("[data-tick]:checked").count() == 2


def test_a_run_is_deleted_only_after_its_name_was_read(room, runs_project):
    page = room()
    name = "20261101-000019-empty"
    open_run(page, name)
    page.click("#run-delete")
    page.wait_for_selector(f"#run-doom:has-text('{name}')")
    page.click("#run-keep")
    page.wait_for_selector("#run-doom", state="hidden")
    assert (runs_project / "runs" / name).is_dir()
    page.click("#run-delete")
    page.click("#run-delete-really")
    page.wait_for_selector(f"#runs-message:has-text('{name} is deleted')")
    page.wait_for_selector(f"[data-run='{name}']", state="detached")
    assert not (runs_project / "runs" / name).exists()
    assert "22 runs" in page.inner_text("#runs-status")


def test_a_run_goes_on_from_a_checkpoint_in_the_room_train(room, runs_project):
    page = room()
    open_run(page, STOPPED)
    assert "1 of 2 checkpoints are damaged" in page.inner_text("#run-checkpoints")
    assert "lora.safetensors has changed" in page.inner_text("#run-checkpoints")
    assert page.is_enabled("#run-continue")
    before = set(list_runs(runs_project / "runs"))
    page.click("#run-branch")
    page.wait_for_selector("#run-status", state="visible", timeout=PATIENCE)
    (new,) = set(list_runs(runs_project / "runs")) - before
    page.wait_for_selector(f"#run-status:has-text('{new.name}')")
    deadline = time.monotonic() + PATIENCE / 1000
    while new.state() is not RunState.FINISHED:
        assert time.monotonic() < deadline, new.snapshot().failure
        time.sleep(0.1)
    assert [step for step, _ in new.snapshot().losses] == [1, 2, 3, 4]


def test_a_phone_scrolls_in_one_direction(room):
    page = room("es/", "Historial", viewport={"width": 390, "height": 844}, color_scheme="dark")
    open_run(page, TRAINED)
    page.wait_for_selector("#run-curve svg")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for part in (".tick >> nth=0", "#run-continue", "#run-export"):
        assert page.locator(part).bounding_box()["height"] >= 44
