"""`report_to`: the numbers of a run in TensorBoard and trackio, one series over all attempts."""

from dataclasses import replace
from importlib.util import find_spec

import pytest

from studio.core.config import SharingConfig
from studio.core.errors import ConfigError
from studio.core.events import HeldOutLoss, StepDone
from studio.core.runlog import RunState, list_runs
from studio.core.train import tracking
from studio.core.train.runs import branch_run
from studio.core.train.tracking import TENSORBOARD_FOLDER, scalars_of


def told_to(config, *trackers):
    return replace(config, sharing=SharingConfig(report_to=trackers))


def test_a_tracker_that_is_not_installed_is_said_before_anything_is_made(config, run, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="report_to names tensorboard and trackio, not installed here") as caught:
        run(told_to(config, "tensorboard", "trackio"))
    assert "pip install tensorboard trackio" in caught.value.remedy
    assert list_runs(config.output_dir) == ()


def test_a_tracker_that_fails_ends_no_run(config, run, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("no room for series")

    monkeypatch.setattr(tracking, "find_spec", lambda name: True)
    monkeypatch.setattr(tracking, "_TensorBoard", broken)
    assert run(told_to(config, "tensorboard")).state() is RunState.FINISHED
    assert caplog.text.count("no room for series") == 1


def test_every_number_of_an_event_has_a_series():
    step = StepDone(step=1, num_steps=2, loss=0.5, learning_rate=1e-4, grad_norm=2.0, seconds=3.0, peak_bytes=2**30)
    assert scalars_of(step) == {
        "train/loss": 0.5, "train/learning_rate": 1e-4, "train/grad_norm": 2.0, "train/seconds": 3.0,
        "train/peak_gib": 1.0,
    }  # fmt: skip
    look = HeldOutLoss(
        step=1, loss=0.3, bands=(0.2, 0.4), base_loss=0.4, base_bands=(0.3, 0.5), num_clips=1, seconds=1.0
    )
    assert scalars_of(look) == {
        "held_out/loss": 0.3, "held_out/base_loss": 0.4, "held_out/band_0": 0.2, "held_out/band_1": 0.4,
    }  # fmt: skip


def series(run, name="train/loss"):
    """(step, value) of a series, as TensorBoard shows it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run.path / TENSORBOARD_FOLDER))
    board.Reload()
    return [(point.step, pytest.approx(point.value, rel=1e-5)) for point in board.Scalars(name)]


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="needs the package tensorboard")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_shows_one_series_over_a_stop_a_resume_and_a_branch(config, run, with_optim):
    config = told_to(with_optim(config, checkpoint_step_interval=1), "tensorboard")
    count = iter(range(1000))
    folder = run(config, should_stop=lambda: next(count) > 8)
    stopped = folder.snapshot()
    assert stopped.state is RunState.STOPPED
    assert 0 < stopped.step < 4
    run(folder.config(), resume=folder)
    assert list(folder.snapshot().losses) == series(folder)
    branch = branch_run(folder, 2)
    run(branch.config(), resume=branch)
    assert list(branch.snapshot().losses) == series(branch)


@pytest.mark.skipif(find_spec("trackio") is None, reason="needs the package trackio")
def test_trackio_keeps_one_run_over_a_resume(config, run, with_optim, tmp_path, monkeypatch):
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    config = told_to(with_optim(config, checkpoint_step_interval=1), "trackio")
    count = iter(range(1000))
    folder = run(config, should_stop=lambda: next(count) > 8)
    run(folder.config(), resume=folder)
    (found,) = [one for one in trackio.Api().runs(tracking.TRACKIO_PROJECT) if one.name == folder.name]
    logs = SQLiteStorage.get_logs(tracking.TRACKIO_PROJECT, found.name)
    assert [log["step"] for log in logs if "train/loss" in log] == [step for step, _ in folder.snapshot().losses]
