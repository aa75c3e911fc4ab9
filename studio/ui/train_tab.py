"""The room Train: what a run will do, one button, and the run as its folder tells it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import gradio as gr

from studio.core.runlog import list_runs
from studio.ui import live_markup
from studio.ui.live_view import Kept, LiveSeen, build_live_view
from studio.ui.plan_panel import build_plan_panel
from studio.ui.run_controls import NO_RUN, Standing, build_run_controls
from studio.ui.workshop import Workshop
from studio.view.words import Words

POLL_SECONDS, IDLE_SECONDS = 1.0, 2.0
"""How often a live run is looked at, and whether another process has begun one, where few pages ask."""

AS_SHOWN = """
(seen, kept, path) => {
  const shown = Number(document.querySelector('#run-status [data-number]')?.dataset.number);
  return [seen, {...kept, narrow: window.innerWidth <= 640, shown}, path];
}
"""
"""Inputs of a look at the run: a phone gets figures drawn for it, and of answers that overtook one another the page
tells which one it shows.
"""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a page shows; what is the same is not sent again."""

    standing: Standing
    live: LiveSeen | None
    """None where there is no run."""
    can_start: bool
    every: float
    """Seconds between two looks."""
    number: int = field(default=0, compare=False)
    """Of the answer that showed it, and of no other: of answers that overtake one another a page keeps the last."""


@dataclass(frozen=True, slots=True)
class TrainTab:
    """The parts that other rooms and the page itself need."""

    plan: Callable[[str | None], list[Any]]
    """plan(path) -> updates for `plan_outputs`."""
    plan_outputs: list[Any]
    watch: dict[str, Any]
    """Arguments of an event that looks at the run."""
    chart: gr.HTML
    """A click on a mark says {"checkpoint": step} or {"sample": step}."""
    clips: gr.HTML
    """A click says {"clip": "<dataset id>/<name>"}."""
    seen: gr.State
    """Holds `Seen`, or None."""
    to_sample: gr.Button


def build_train_tab(
    workshop: Workshop, w: Words, path: gr.State, pulse: gr.HTML, timer: gr.Timer, kept: gr.BrowserState
) -> TrainTab:
    """Lays the room out and connects it; `timer` makes it look at the run, `kept` is how a visitor wants the chart."""
    seen = gr.State(None)
    numbers = count(1)
    controls = build_run_controls(workshop, w)
    with gr.Row(elem_classes="main-row"):
        with gr.Column(scale=2, min_width=320, elem_classes="side"):
            plan = build_plan_panel(workshop, w, path)
        with gr.Column(scale=3, min_width=320):
            live = build_live_view(workshop, w, kept, seen, lambda last: last.live if last else None)
    watched = [seen, pulse, timer, *controls.outputs, *live.outputs]

    def watch(request: gr.Request, last: Seen | None, wanted: Kept, target: str | None) -> list[Any]:
        run, can_start = workshop.current_run(), plan.can_start(target)
        snapshot = workshop.snapshot(run) if run is not None else None
        is_live = workshop.is_training or (snapshot is not None and snapshot.state.is_live)
        every = workshop.watchers.interval(request.session_hash or "", POLL_SECONDS if is_live else IDLE_SECONDS)
        if last is not None and isinstance(shown := (wanted or {}).get("shown"), int) and shown != last.number:
            last = None
        if run is None or snapshot is None:
            now = Seen(NO_RUN, None, can_start, every)
        else:
            now = Seen(controls.look(run, snapshot), live.look(run, snapshot, wanted), can_start, every)
        if now == last:
            return [gr.skip()] * len(watched)
        curves = now.live
        if curves is None or snapshot is None:
            return [now, "", gr.Timer(every), *controls.clear(can_start), *live.clear()]
        now = replace(now, number=next(numbers))
        is_same = last is not None and (now.standing, now.can_start) == (last.standing, last.can_start)
        head = controls.show(now.standing, snapshot, now.can_start, now.number)
        return [
            now,
            gr.skip() if is_same else live_markup.pulse(snapshot, w),
            gr.skip() if last is not None and last.every == every else gr.Timer(every),
            *head,
            *live.show(curves, last.live if last else None, snapshot),
        ]

    looking: dict[str, Any] = {
        "fn": watch, "inputs": [seen, kept, path], "outputs": watched, "js": AS_SHOWN,
        "show_progress": "hidden", "api_visibility": "private", "queue": False,
    }  # fmt: skip
    for pressed in controls.connect(plan, lambda last: last.standing if last else NO_RUN, seen, path):
        pressed.then(**looking)
    timer.tick(**looking)
    kept.change(**looking)
    return TrainTab(
        plan=plan.show,
        plan_outputs=plan.outputs,
        watch=looking,
        chart=live.chart,
        clips=live.clips,
        seen=seen,
        to_sample=live.to_sample,
    )


def lora_choices(workshop: Workshop, newest: int = 20) -> list[tuple[str, Path]]:
    """(run, LoRA file) of the newest runs that have one."""
    runs = list_runs(workshop.output_dir)[:newest]
    found = [(run.name, workshop.snapshot(run).lora) for run in runs]
    return [(name, lora) for name, lora in found if lora and lora.is_file()]
