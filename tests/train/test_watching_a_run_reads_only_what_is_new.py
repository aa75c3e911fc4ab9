"""Whoever watches a run again and again is told what its folder says, at the cost of what is new."""

import itertools
import time

import pytest

from studio.core.events import CheckpointSaved, RunFinished, RunStarted, StepDone
from studio.core.runlog import EVENTS_FILE, RunFolder, RunState
from studio.core.runwatch import KEPT, RunReader


@pytest.fixture
def make_run(tmp_path):
    """make_run(): a new run without events."""
    numbers = itertools.count()

    def make():
        folder = tmp_path / f"run-{next(numbers)}"
        folder.mkdir()
        return RunFolder(folder)

    return make


def step(number):
    return StepDone(step=number, num_steps=9, loss=1 / number, learning_rate=1e-3, grad_norm=1.0, seconds=0.5)


EVENTS = [
    RunStarted(num_steps=9, num_pairs=4, device="cpu", dtype="float32", attention="dense", attention_reason="small"),
    *(step(number) for number in range(1, 6)),
    CheckpointSaved(step=5, path="checkpoints/step-000005"),
    # Taken up again from an earlier checkpoint.
    *(step(number) for number in range(3, 10)),
    RunFinished(step=9, seconds=5.0, lora="lora/lora.safetensors"),
]


def test_it_is_told_what_the_folder_says_however_the_lines_arrive(make_run):
    whole = make_run()
    for event in EVENTS:
        whole.append(event)
    data = (whole.path / EVENTS_FILE).read_bytes()
    run, reader = make_run(), RunReader()
    assert reader.snapshot(run) == run.snapshot()
    for size in (1, 7, 333):
        (run.path / EVENTS_FILE).write_bytes(b"")
        for start in range(0, len(data), size):
            with (run.path / EVENTS_FILE).open("ab") as file:
                file.write(data[start : start + size])
            if start % 5 == 0:
                assert reader.snapshot(run) == run.snapshot()
        assert reader.snapshot(run).state is RunState.FINISHED
        assert reader.snapshot(run).losses == whole.snapshot().losses


def test_an_unchanged_run_is_not_read_again_and_its_lock_is_seen(make_run, monkeypatch):
    run, reader = make_run(), RunReader()
    for event in EVENTS[:3]:
        run.append(event)
    with run.locked():
        live = reader.snapshot(run)
        assert live.state is RunState.RUNNING
        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, "snapshot", lambda *_: pytest.fail("it was read again"))
            assert reader.snapshot(run) is live
    assert reader.snapshot(run).state is RunState.INTERRUPTED


def test_a_line_that_a_crash_cut_off_is_passed_over_and_the_next_one_is_seen(make_run):
    run, reader = make_run(), RunReader()
    run.append(EVENTS[0])
    with (run.path / EVENTS_FILE).open("ab") as file:
        file.write(b'{"event": "StepDone", "ti')
    assert reader.snapshot(run).step == 0
    run.append(step(1))
    assert reader.snapshot(run).step == 1


def test_what_is_remembered_does_not_grow_with_the_runs(make_run):
    reader = RunReader()
    for _ in range(KEPT + 3):
        run = make_run()
        run.append(EVENTS[0])
        reader.snapshot(run)
    assert len(reader._readings) == KEPT


def test_a_live_run_is_read_now_and_then_and_its_end_is_seen(make_run):
    run, reader = make_run(), RunReader(every=0.2)
    with run.locked():
        for event in EVENTS[:3]:
            run.append(event)
        before = reader.snapshot(run)
        run.append(step(3))
        assert reader.snapshot(run) is before
    time.sleep(0.25)
    assert reader.snapshot(run).state is RunState.INTERRUPTED
    assert reader.snapshot(run).step == 3
