"""The loss on clips that are not trained on: the same noise every time, the base beside it, a hint when it rises."""

from dataclasses import replace

import pytest

from studio.core.events import HeldOutLoss, RunStarted, StepDone
from studio.core.runlog import RunState
from studio.core.train import heldout
from studio.core.train.heldout import BANDS
from studio.core.train.overfit import overfitting


@pytest.fixture
def held_out_config(config, draw_shapes_dataset, data_of, with_validation, with_optim):
    """Trains on four clips, and looks at two others every second step."""
    other = data_of(draw_shapes_dataset(num_clips=2), num_frames=5)
    clips, frames = other.datasets
    clips = replace(clips, id="held", conditioning_ids=("held_frames",), is_eval=True)
    data = replace(config.data, datasets=(*config.data.datasets, clips, replace(frames, id="held_frames")))
    config = with_validation(replace(config, data=data), eval_dataset_id="held", eval_step_interval=2)
    return with_optim(config, learning_rate=5e-3)


def looks(folder):
    return [event for _, event in folder.events() if isinstance(event, HeldOutLoss)]


def test_it_is_measured_before_under_way_and_at_the_end_beside_the_base(held_out_config, run):
    folder = run(held_out_config)
    found = looks(folder)
    started = next(event for _, event in folder.events() if isinstance(event, RunStarted))
    assert (started.num_pairs, started.num_held_out) == (4, 2)
    assert [look.step for look in found] == [0, 2, 4]
    assert all(len(look.bands) == BANDS for look in found)
    assert found[0].bands == found[0].base_bands, "a fresh LoRA changes nothing"
    assert {look.base_bands for look in found} == {found[0].base_bands}
    assert found[1].bands != found[0].bands
    assert found[1].loss == pytest.approx(sum(found[1].bands) / BANDS)
    assert folder.snapshot().held_out == tuple(found)
    assert folder.state() is RunState.FINISHED


def test_looking_changes_no_loss_and_a_resumed_run_sees_the_same(held_out_config, run, with_validation, with_optim):
    folder = run(held_out_config)
    blind = run(with_validation(held_out_config, eval_loss_disabled=True))
    assert looks(blind) == []
    assert blind.snapshot().losses == folder.snapshot().losses
    resumed = run(with_optim(held_out_config, max_train_steps=2))
    run(held_out_config, resume=resumed)
    shown = [(look.step, look.bands, look.base_bands) for look in resumed.snapshot().held_out]
    assert shown == [(look.step, look.bands, look.base_bands) for look in looks(folder)]


def steps(losses):
    return [
        StepDone(step=i, num_steps=99, loss=loss, learning_rate=1.0, grad_norm=1.0, seconds=1.0)
        for i, loss in enumerate(losses, start=1)
    ]


def look(step, loss):
    return HeldOutLoss(step=step, loss=loss, bands=(), base_loss=1.0, base_bands=(), num_clips=1, seconds=1.0)


FALLING = steps([1.0 - 0.01 * i for i in range(40)])


@pytest.mark.parametrize(
    ("trained", "losses", "since"),
    [
        (FALLING, [1.0, 0.9, 0.95, 0.97], 10),
        (FALLING, [1.0, 0.9, 0.85, 0.84], None),
        (FALLING, [1.0, 0.9, 0.95, 0.9], None),
        (FALLING, [1.0, 0.9, 0.95], None),
        (FALLING, [1.0, 0.9, 0.902, 0.903], None),
        (steps([0.6 + 0.01 * i for i in range(40)]), [1.0, 0.9, 0.95, 0.97], None),
    ],
    ids=["risen twice", "still falling", "came back", "risen once", "wavers", "training loss rises too"],
)
def test_a_run_that_learns_by_heart_is_pointed_out(trained, losses, since):
    found = overfitting(trained, [look(10 * i, loss) for i, loss in enumerate(losses)])
    assert (found.step if found else None) == since
    if found:
        assert found.rise == pytest.approx(0.97 / 0.9)


def test_of_many_clips_the_first_are_looked_at(held_out_config, run, with_optim, monkeypatch):
    monkeypatch.setattr(heldout, "MAX_CLIPS", 1)
    folder = run(with_optim(held_out_config, max_train_steps=1))
    assert {event.num_clips for event in looks(folder)} == {1}
