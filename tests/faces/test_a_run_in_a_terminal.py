"""`python -m studio train`: what its lines say, and what Ctrl-C and SIGTERM do."""

import signal
import sys
import time

import pytest

from studio.bench.drawn import write_project
from studio.bench.kills import LOG, fork_server
from studio.cli import main
from studio.core.events import (
    CheckpointSaved,
    HeldOutLoss,
    RunContinued,
    RunPaused,
    RunStarted,
    SampleSaved,
    StepDone,
)
from studio.core.runlog import RunFolder, RunState, list_runs
from studio.view.terminal import TrainBar, print_hint
from studio.view.words import words

SECONDS = 60


def step(number, loss=0.1):
    return StepDone(step=number, num_steps=99, loss=loss, learning_rate=1e-3, grad_norm=1.0, seconds=0.1)


def look(number, loss):
    return HeldOutLoss(
        step=number, loss=loss, bands=(loss,), base_loss=0.2, base_bands=(0.2,), num_clips=1, seconds=0.1
    )


def test_every_event_is_a_line_with_its_figures(capsys):
    bar = TrainBar()
    for event in (
        RunStarted(num_steps=99, num_pairs=4, device="cpu", dtype="float32", attention="dense",
                   attention_reason="few tokens", from_step=40),
        step(41),
        look(41, 0.1734),
        CheckpointSaved(step=41, path="checkpoints/step-000041"),
        SampleSaved(step=41, path="samples/a.mp4", prompt="hops", start_psnr=34.2, motion=11.5, drift=3.1),
        SampleSaved(step=41, path="samples/b.mp4", prompt="hops", start_psnr=34.2, motion=0.1, is_frozen=True, drift=0),
        RunPaused(step=41),
        RunContinued(step=41),
    ):  # fmt: skip
        bar.show(event)
    said = capsys.readouterr().out
    assert "goes on from the checkpoint of step 40" in said
    assert "held-out loss after step 41: 0.1734, 87% of the base model's" in said
    assert "checkpoint after step 41: checkpoints/step-000041" in said
    moving, frozen = (line for line in said.splitlines() if line.startswith("sample after step 41"))
    assert "34 dB" in moving
    assert "3.1" in moving
    assert moving.endswith("samples/a.mp4")
    assert words("en")("train.sample_frozen") in frozen
    assert "paused after step 41" in said
    assert "continued after step 41" in said


def test_a_run_that_learns_by_heart_is_told_so_with_the_better_checkpoint(tmp_path, capsys):
    run = RunFolder(tmp_path)
    for event in (look(0, 0.2), *map(step, range(1, 11)), look(10, 0.1), *(step(n, 0.05) for n in range(11, 21)),
                  look(15, 0.12), look(20, 0.13)):  # fmt: skip
        run.append(event)
    (tmp_path / "checkpoints/step-000010").mkdir(parents=True)
    print_hint(run)
    said = capsys.readouterr().out
    assert "has risen 30 % since step 10" in said
    assert "The checkpoint of step 10 is the better one." in said


def test_exit_codes_stand_in_the_help(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "0, all steps are done, or the run was stopped and saved" in said
    assert "130 and 143, ended at once" in said


def await_steps(project, count):
    """The run, once it has taken more steps than this, by all its processes."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        for run in list_runs(project.parent / "runs"):
            if sum(isinstance(event, StepDone) for _, event in run.events()) > count:
                return run
        time.sleep(0.02)
    pytest.fail("the run does not get on")


def await_words(log, words, count):
    """Returns once they stand in the log so often."""
    deadline = time.monotonic() + SECONDS
    while log.read_text().count(words) < count:
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_signal_stops_after_the_step_and_saves_and_a_second_one_ends_at_once(tmp_path):
    short = write_project(tmp_path / "short", max_train_steps=10_000)
    # A step of seconds: the second signal comes before it is over.
    long = write_project(tmp_path / "long", max_train_steps=10_000, gradient_accumulation_steps=50)
    with fork_server() as server:
        step = 0
        for _ in range(2):
            life = server.train(short)
            run = await_steps(short, step)
            life.send(signal.SIGTERM)
            assert life.wait() == 0
            assert run.state() is RunState.STOPPED
            step = run.snapshot().step
            said = short.with_name(LOG).read_text()
            assert "Stopping after this step" in said
            assert f"checkpoint after step {step}: checkpoints/step-{step:06d}" in said
            assert f"LoRA after step {step}: lora/" in said
        assert "goes on from the checkpoint of step" in said

        for count, number in enumerate((signal.SIGINT, signal.SIGTERM)):
            life = server.train(long)
            run = await_steps(long, count)
            life.send(number)
            await_words(long.with_name(LOG), "press Ctrl-C again", count + 1)
            life.send(number)
            assert life.wait() == -number
            assert run.state() is RunState.INTERRUPTED
            assert sum(isinstance(event, StepDone) for _, event in run.events()) == count + 1, "no step was waited for"
