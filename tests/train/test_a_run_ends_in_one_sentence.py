"""Whatever ends a run too early: what happened, what to do, and the checkpoint to go on from."""

import os
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from studio.core.errors import MediaError
from studio.core.events import RunFailed, StepDone
from studio.core.runlog import RunFolder, RunState
from studio.core.train.failure import failure_of


def failing_at(step, break_something):
    """on_event that breaks something once `step` is done."""

    def on_event(event):
        if isinstance(event, StepDone) and event.step == step:
            break_something()

    return on_event


def failure_in(folder):
    assert folder.state() is RunState.FAILED
    failed = folder.events()[-1][1]
    assert isinstance(failed, RunFailed)
    assert folder.snapshot().failure == failed
    return failed


@pytest.fixture
def with_own_cache(config, tmp_path, shapes_dataset, data_of, with_optim):
    """The configuration on a copy of the clips, with latents of its own and a checkpoint every step."""

    copy = tmp_path / "dataset"
    shutil.copytree(shapes_dataset, copy)
    data = data_of(copy, num_frames=5)
    data = replace(data, datasets=tuple(replace(d, cache_dir=tmp_path / "latents") for d in data.datasets))
    return with_optim(replace(config, data=data), checkpoint_step_interval=1)


def test_a_clip_that_vanishes_with_its_latents_ends_the_run_by_name(with_own_cache, run, tmp_path):

    def vanish():
        shutil.rmtree(tmp_path / "latents")
        shutil.rmtree(tmp_path / "dataset" / "clips")

    folder = run(with_own_cache, on_event=failing_at(2, vanish))
    failed = failure_in(folder)
    assert "shape_" in failed.message
    assert failed.checkpoint == "checkpoints/step-000002"
    assert "step-000002" in failed.remedy


def test_latents_that_vanish_alone_are_made_again(with_own_cache, run, tmp_path):
    """Once this could wait for a lock that the step itself held."""

    folder = run(with_own_cache, on_event=failing_at(2, lambda: shutil.rmtree(tmp_path / "latents")))
    assert folder.state() is RunState.FINISHED


def test_a_gradient_that_is_not_finite_stops_before_the_step_and_no_checkpoint_has_it(
    config, run, with_optim, tiny_bundle
):
    config = with_optim(config, checkpoint_step_interval=1)
    handles = []

    def poison():
        name, parameter = next((n, p) for n, p in tiny_bundle.dit.named_parameters() if p.requires_grad)
        handles.append(parameter.register_hook(lambda gradient: gradient * float("inf")))

    folder = run(config, on_event=failing_at(2, poison))
    failed = failure_in(folder)
    assert failed.message.startswith("The gradient at step 3 is not finite; clips: shape_")
    assert failed.checkpoint == "checkpoints/step-000002"

    for file in (folder.path / "checkpoints").rglob("*.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(file).values())


@pytest.mark.parametrize(
    ("error", "message", "remedy"),
    [
        (RuntimeError("CUDA error: unspecified launch failure\nmore"), "The device was lost after step 7", "again"),
        (OSError(28, os.strerror(28)), "The disk is full:", "Free some space."),
        (PermissionError(13, "Permission denied", "samples/x.mp4"), "samples/x.mp4 cannot be used", "Check"),
        (MediaError("a.mp4 is gone.", "Copy it."), "a.mp4 is gone.", "Copy it."),
        (ZeroDivisionError("secret"), "Something unexpected went wrong after step 7 (ZeroDivisionError).", "log"),
    ],
)
def test_each_end_is_one_sentence_without_a_traceback(config, error, message, remedy):
    folder = RunFolder.create(config.output_dir, config)
    failed = failure_of(error, 7, folder)
    assert failed.message.startswith(message)
    assert remedy in failed.remedy
    assert "\n" not in failed.message
    assert "secret" not in failed.message
    assert failed.checkpoint == ""
