"""What the room Train says and draws of a run, without a browser."""

import re
import shutil
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import gradio as gr
import pytest

from studio.core.events import (
    CheckpointSaved,
    HeldOutLoss,
    RunFailed,
    RunFinished,
    RunPaused,
    RunStarted,
    SampleSaved,
    StepDone,
)
from studio.core.runlog import RunFolder, RunState, list_runs
from studio.core.runwatch import RunReader
from studio.core.train.requests import Request
from studio.ui import live_markup
from studio.ui.drawings import EVERY, Drawings
from studio.ui.live_view import LiveSeen, SampleGrid, chart_tools, chart_view, ends_of
from studio.ui.settings import AppSettings
from studio.ui.workshop import Workshop
from studio.view.run_figures import Axis, ChartView
from studio.view.run_lines import clip_losses, held_out_line, overfit_line, run_facts, sample_line
from studio.view.words import words

EN, ES = words("en"), words("es")
STARTED = RunStarted(num_steps=40, num_pairs=2, device="cpu", dtype="float32", attention="dense", attention_reason="")


@pytest.fixture
def write_run(tmp_path):
    """write_run(*events): a run in which that happened."""

    def write(*events, name="20261128-101500-3fa9"):
        run = RunFolder(tmp_path / "runs" / name)
        run.path.mkdir(parents=True)
        (run.path / "config.json").write_text("{}")
        (run.path / "run.lock").touch()
        for event in events:
            run.append(event)
        return run

    return write


def step(number, loss=0.1, clips=("a/one", "a/two"), clip_losses=(0.1, 0.1), **fields):
    values = {"learning_rate": 1e-4, "grad_norm": 0.52, "seconds": 6.04} | fields
    return StepDone(step=number, num_steps=40, loss=loss, clips=clips, clip_losses=clip_losses, **values)


def look(number, loss, base=0.2):
    return HeldOutLoss(
        step=number, loss=loss, bands=(loss,), base_loss=base, base_bands=(base,), num_clips=1, seconds=0.1
    )


def sample(number, name="one", **figures):
    path, base = f"samples/step-{number:06d}-{name}.mp4", f"samples/base-{name}.mp4"
    return SampleSaved(step=number, path=path, prompt="hops", base=base, **figures)


def test_held_out_loss_is_told_beside_the_base_model_and_by_heart_with_the_checkpoint_to_take(write_run):
    run = write_run(
        STARTED, look(0, 0.2), *(step(n, loss=1 / n) for n in range(1, 21)), look(10, 0.17), look(20, 0.15),
        *(step(n, loss=1 / n) for n in range(21, 41)), look(30, 0.16), look(40, 0.165),
    )  # fmt: skip
    snapshot = run.snapshot()
    assert held_out_line(snapshot, EN) == "Held-out loss 0.165, 18 % below the base model's."
    assert held_out_line(write_run(look(0, 0.2), name="new").snapshot(), EN).endswith("as the base model's.")
    line = overfit_line(snapshot, [10, 20, 40], EN)
    assert "has risen 10 % since step 20" in line
    assert line.endswith("The checkpoint of step 20 is the better one.")
    assert overfit_line(snapshot, [10, 40], EN).endswith("The checkpoint nearest to that is of step 10.")
    assert "18 % menos" in held_out_line(snapshot, ES)
    # Taken up again with another interval.
    again = write_run(STARTED, look(10, 0.2), look(20, 0.1), look(15, 0.15), name="again").snapshot()
    assert [held.step for held in again.held_out] == [10, 15, 20]


def test_what_was_asked_for_is_told_until_it_is_done(write_run):
    run = write_run(STARTED, step(1))
    with run.locked():
        status = live_markup.run_status(run.name, run.snapshot(), EN, asked=[Request.SAVE, Request.STOP])
        assert "It stops after this step… A checkpoint after this step…" in status
        run.append(RunPaused(step=1))
        assert "The device is free" in live_markup.run_status(run.name, run.snapshot(), EN)


def test_a_failure_keeps_its_sentence_and_nothing_in_it_is_markup(write_run):
    run = write_run(STARTED, step(1), RunFailed(step=1, message="<img src=x> is gone.", remedy="Put it <b>back</b>."))
    status = live_markup.run_status("<script>", run.snapshot(), EN)
    assert "data-state='failed'" in status
    assert "&lt;img src=x&gt; is gone." in status
    assert "Put it &lt;b&gt;back" in status
    assert "<script>" not in status
    hostile = write_run(step(1, clips=("a/<img src=x onerror='1'>",), clip_losses=(0.1,)), name="hostile").snapshot()
    assert "<img" not in live_markup.clip_table(hostile, EN)


def test_figures_of_the_last_steps_are_named(write_run):
    run = write_run(STARTED, step(1, peak_bytes=3 * 2**29), step(2, peak_bytes=3 * 2**29))
    with run.locked():
        facts = dict(run_facts(run.snapshot(), EN))
    assert facts == {
        "Loss, last steps": "0.1", "Learning rate": "1e-4", "Gradient norm": "0.52", "A step": "6.0 s",
        "Memory": "1.5 GiB", "Time left": "3 min 50 s",
    }  # fmt: skip


def test_marks_can_be_pressed_by_keys_and_the_range_is_told(write_run):
    run = write_run(STARTED, *map(step, range(1, 21)), CheckpointSaved(step=10, path=""), sample(20))
    shown = live_markup.chart(run.snapshot(), ChartView(span=(5.0, 25.0)), ES)
    assert "data-points='20'" in shown
    assert "data-range='5.0,25.0'" in shown
    assert 'id="plot-area"' in shown
    marks = re.findall(
        r'<g id="(marker-[a-z]+-\d+)" class="marker" tabindex="0" role="button" aria-label="([^"]+)"', shown
    )
    assert marks == [
        ("marker-checkpoint-10", "Punto de control del paso 10"), ("marker-sample-20", "Muestras del paso 20"),
    ]  # fmt: skip
    assert 'role="img"' not in shown


@pytest.mark.parametrize(
    "kept",
    [None, {}, [], "x", {"axis": 7, "log": "yes", "run": "r", "span": [1]}, {"run": "r", "span": ["a", "b"]},
     {"run": "r", "span": [float("nan"), 2]}, {"run": "r", "span": [-1.7e308, 1.7e308]},
     {"run": "r", "span": [2, 2]}, {"run": "other", "span": [1, 2]}],
)  # fmt: skip
def test_whatever_a_browser_keeps_the_whole_run_is_shown_unless_it_makes_sense(kept):
    assert chart_view(kept, "r") == ChartView()


def test_a_zoom_is_of_one_run():
    kept = {"axis": "clock", "log": True, "run": "r", "span": [9, 3]}
    assert chart_view(kept, "r") == ChartView(axis=Axis.CLOCK, log=True, span=(3.0, 9.0))
    assert chart_view(kept, "other").span is None


def test_samples_stand_in_columns_and_say_what_they_are(write_run):
    run = write_run(STARTED, sample(10), sample(10, "two"), sample(20))
    with run.locked():
        grid = SampleGrid.of(run, run.snapshot(), False)
    assert [file.name for file in grid.base] == ["base-one.mp4", "base-two.mp4"]
    assert [(of, [s and s.path[-7:] for s in row]) for of, row in grid.rows] == [
        (20, ["one.mp4", None]), (10, ["one.mp4", "two.mp4"]),
    ]  # fmt: skip
    assert grid.is_coming
    assert (grid.width, SampleGrid.of(run, run.snapshot(), True).width) == (4, 2)
    assert (grid.index_of(20), grid.index_of(10), grid.index_of(15)) == (2, 4, None)
    good = sample(100, start_psnr=34.2, motion=12.3, drift=3.14)
    assert sample_line(good, EN) == "step 100 · start frame 34 dB · moves 12 · differs from base 3.1"
    frozen = sample(100, start_psnr=34.2, motion=0.2, is_frozen=True, drift=0.0)
    assert sample_line(frozen, EN) == "step 100 · start frame 34 dB · hardly moves · the LoRA changes nothing yet"
    assert sample_line(sample(1), EN) == "step 1"


def test_the_fields_of_the_chart_know_its_end_once_the_run_does(write_run):
    run, view = write_run(), ChartView()
    with run.locked():
        waiting = LiveSeen(
            run=run, view=view, ends=ends_of(run.snapshot(), view), unfolded=(False, False), chart=None, more=None,
            clips=None, samples=SampleGrid.of(run, run.snapshot(), False), state=(None, RunState.NEW),
        )  # fmt: skip
        run.append(STARTED)
        now = replace(waiting, ends=ends_of(run.snapshot(), view))
    assert chart_tools(now, waiting, EN) == [gr.skip(), gr.skip(), gr.skip(), 40.0, gr.skip()]
    assert chart_tools(now, now, EN) == [gr.skip()] * 5
    by_clock = replace(now, view=ChartView(axis=Axis.CLOCK, span=(30.0, 90.0)))
    by_clock = replace(by_clock, ends=ends_of(run.snapshot(), by_clock.view))
    assert [update["value"] for update in chart_tools(by_clock, now, EN)[2:4]] == [0.5, 1.5]


def test_clips_are_sorted_by_the_mean_of_their_last_visits(write_run):
    run = write_run(*(step(n, clip_losses=(9.0 if n <= 5 else 0.2, 0.3)) for n in range(1, 16)))
    found = clip_losses(run.snapshot())
    assert [(clip.clip, clip.visits) for clip in found] == [("a/two", 15), ("a/one", 15)]
    assert found[1].loss == pytest.approx(0.2)


def test_a_hundred_watchers_cost_one_drawing():
    drawings, drawn = Drawings(), []

    def draw():
        drawn.append(time.sleep(0.1))
        return f"<svg {len(drawn)}>"

    watchers = [threading.Thread(target=lambda: drawings.get("run", 1, draw, is_live=True)) for _ in range(100)]
    for watcher in watchers:
        watcher.start()
    for watcher in watchers:
        watcher.join(30)
    first = drawings.get("run", 1, draw, is_live=True)
    assert drawings.get("run", 2, draw, is_live=True) is first, f"good enough for {EVERY} s"
    assert len(drawn) == 1
    assert drawings.get("run", 2, draw, is_live=False).html == "<svg 2>", "what is over is drawn as it ended"
    assert drawings.get("other", 1, draw, is_live=True).html == "<svg 3>"


def test_the_page_shows_whichever_run_lives_in_the_folder(write_run, tmp_path):
    workshop = Workshop(AppSettings(output_dir=tmp_path / "runs"), reader=RunReader())
    live = write_run(STARTED, step(1), name="20261128-101500-aaaa")
    newest = write_run(STARTED, step(1), name="20261128-101501-bbbb")
    assert workshop.current_run() == newest
    (tmp_path / "runs" / ".train.json").write_text('{"run": "20261128-101500-aaaa"}')
    with live.locked():
        assert workshop.current_run() == live
        workshop.pause(live)
        assert workshop.asked(live) == {Request.PAUSE}
        workshop.go_on(live)
        assert not workshop.asked(live)
    # Its process was killed, and left its name.
    assert workshop.current_run() == newest
    assert workshop.snapshot(newest).state is RunState.INTERRUPTED
    assert workshop.can_continue(newest)
    assert workshop.resumable_step(newest) == 0, "without a checkpoint it goes on from the start"


def test_what_is_half_deleted_or_cannot_be_read_is_no_run(write_run, tmp_path):
    run = write_run(STARTED)
    write_run(STARTED, name=".20261128-101500-aaaa.deleted")
    assert list_runs(tmp_path / "runs") == (run,)
    assert list_runs(tmp_path / ("a" * 300)) == ()


def test_what_one_visitor_is_given_is_whole_while_it_is_copied_for_another(tmp_path, monkeypatch):
    workshop, file, seen = Workshop(AppSettings()), tmp_path / "lora.safetensors", []
    file.write_bytes(b"whole")
    copy = shutil.copyfile

    def copy_slowly(source, target):
        monkeypatch.setattr(shutil, "copyfile", copy)
        Path(target).write_bytes(b"wh")
        seen.append(Path(workshop.shown(file)).read_bytes())
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", copy_slowly)
    seen.append(Path(workshop.shown(file)).read_bytes())
    assert seen == [b"whole", b"whole"]


def test_a_run_that_is_over_is_not_continued(write_run, tmp_path):
    workshop = Workshop(AppSettings(output_dir=tmp_path / "runs"))
    run = write_run(STARTED, step(40), RunFinished(step=40, seconds=9.0, lora="lora/lora.safetensors"))
    assert not workshop.can_continue(run)
    numbers = [workshop.snapshot(run) for _ in range(3)]
    assert all(one is other for one, other in pairwise(numbers))
