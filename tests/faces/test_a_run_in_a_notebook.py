"""The live panel of a run: what its buttons do to a real small run, and what it shows."""

import importlib.util
import os
import signal
import threading
import time

import pytest

from studio.core.config import DataConfig, DatasetConfig, LoraSettings, ModelConfig, OptimConfig, RunConfig
from studio.core.config import ValidationConfig as Validation
from studio.core.runlog import RunState
from studio.nb import training

SECONDS = 60
PNG = b"\x89PNG"


@pytest.fixture
def config(shapes_dataset, tmp_path, tmp_path_factory, tiny_bundle, monkeypatch):
    """A long run of small clips, with one sample on demand."""
    monkeypatch.setattr(training, "load_bundle", lambda _: tiny_bundle)
    clips = DatasetConfig(
        id="clips", kind="video", directory=shapes_dataset / "clips", conditioning_ids=("start_frames",),
        resolution=64, resolution_type="pixel", num_frames=5, cache_dir=tmp_path_factory.getbasetemp() / "latents",
    )  # fmt: skip
    frames = DatasetConfig(
        id="start_frames", kind="conditioning", directory=shapes_dataset / "start_frames", caption_strategy=None
    )
    return RunConfig(
        model=ModelConfig(source="tiny", device="cpu", gradient_checkpointing=False),
        data=DataConfig(datasets=(clips, frames), train_batch_size=1),
        lora=LoraSettings(rank=4),
        optim=OptimConfig(max_train_steps=100_000, learning_rate=1e-3, checkpoint_step_interval=0),
        validation=Validation(num_pairs=1, step_interval=0, resolution=(64, 64), num_frames=5, num_inference_steps=1),
        output_dir=tmp_path / "runs",
        seed=7,
    )


@pytest.fixture
def start(config):
    """start(**arguments of train_panel): a panel; its run is stopped at the end, whatever happens."""
    panels = []

    def begin(project=config, **arguments):
        panels.append(training.train_panel(project, output_dir=config.output_dir, **arguments))
        return panels[-1]

    yield begin
    for panel in panels:
        panel.job.stop()
        panel.job.join(SECONDS)


def wait_for(condition):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def test_the_buttons_of_the_panel_reach_the_run_and_the_panel_keeps_up_by_itself(start):
    panel = start()
    run = panel.run
    wait_for(lambda: "<b>Training</b> step" in panel.status.value and bytes(panel.chart.value).startswith(PNG))
    assert 0 < panel.bar.value < 1
    assert not bytes(panel.details.value), "what is folded away is not drawn"
    panel.more.selected_index = 0
    assert bytes(panel.details.value).startswith(PNG)

    panel.pause.click()
    wait_for(lambda: run.state() is RunState.PAUSED)
    wait_for(lambda: "<b>Paused</b>" in panel.status.value)
    assert panel.pause.description == "Continue"
    paused_at = run.snapshot().step

    panel.sample_now.click()
    wait_for(lambda: len(panel.samples.children) == 1)
    assert f"step {paused_at}" in panel.samples.children[0].children[1].value
    panel.pause.click()
    wait_for(lambda: run.snapshot().step > paused_at)
    assert panel.pause.description == "Pause"

    saved = run.snapshot().checkpoints
    panel.save_now.click()
    wait_for(lambda: run.snapshot().checkpoints != saved)

    panel.stop.click()
    assert panel.wait() == run
    assert run.state() is RunState.STOPPED
    assert run.snapshot().lora.is_file()
    assert "<b>Stopped</b>" in panel.status.value
    assert all(b.disabled for b in (panel.stop, panel.pause, panel.sample_now, panel.save_now))


def test_interrupting_a_cell_leaves_the_run_alone_and_a_stopped_run_goes_on(start):
    panel = start(language="es")
    wait_for(lambda: panel.run.snapshot().step)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    assert panel.wait() == panel.run
    assert panel.job.is_alive, panel.run.snapshot().failure or panel.run.state()
    step = panel.run.snapshot().step
    wait_for(lambda: panel.run.snapshot().step > step)
    panel.stop.click()
    stopped_at = panel.wait().snapshot().step

    again = start(panel.run, steps=stopped_at + 2)
    assert again.wait().path == panel.run.path
    assert (again.run.state(), again.run.snapshot().step) == (RunState.FINISHED, stopped_at + 2)


def test_without_ipywidgets_the_curve_is_drawn_while_someone_waits(start, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(training, "find_spec", lambda name: None if name == "ipywidgets" else find_spec(name))
    shown = []
    monkeypatch.setattr(training, "display", shown.append)
    monkeypatch.setattr(training.DisplayHandle, "display", lambda _, content: shown.append(content))
    monkeypatch.setattr(training.DisplayHandle, "update", lambda _, content: shown.append(content))
    panel = start(steps=3)
    panel._ipython_display_()
    assert "ipywidgets" in shown[0].data
    assert panel.wait().state() is RunState.FINISHED
    assert "<b>Finished</b>" in shown[-2].data
    assert shown[-1].data.startswith(PNG)
