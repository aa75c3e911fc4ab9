"""The room Train: what a run will do, one button, and the run as its folder tells it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from studio.core.errors import StudioError
from studio.core.runlog import RunFolder, RunSnapshot, list_runs
from studio.ui import markup
from studio.ui.plan_panel import build_plan_panel
from studio.ui.workshop import Workshop
from studio.view.words import Words

POLL_SECONDS = 1.0
"""How often a live run is looked at."""


@dataclass(frozen=True, slots=True)
class TrainTab:
    """The parts that other rooms and the page itself need."""

    plan: Callable[[str | None], list[Any]]
    """plan(path) -> updates for `plan_outputs`."""
    plan_outputs: list[Any]
    watch: Callable[..., list[Any]]
    """watch(seen, log) -> updates for `watch_outputs`."""
    watch_inputs: list[Any]
    watch_outputs: list[Any]
    to_sample: gr.Button


def build_train_tab(workshop: Workshop, w: Words, path: gr.State, pulse: gr.HTML, timer: gr.Timer) -> TrainTab:
    """Lays the room out and connects it; `timer` ticks while a run lives."""
    seen = gr.State(None)
    with gr.Row(elem_classes="head-row"):
        status = gr.HTML(markup.note(w("train.head")), elem_id="run-status")
        with gr.Column(scale=0, min_width=304):
            main = gr.Button(w("train.start"), variant="primary", interactive=False, elem_id="train")
            again = gr.Button(w("train.again"), visible=False, elem_id="train-again")
    message = gr.HTML(elem_id="train-message")
    with gr.Row(elem_classes="main-row"):
        with gr.Column(scale=2, min_width=320, elem_classes="side"):
            plan = build_plan_panel(workshop, w, path)
        with gr.Column(scale=3, min_width=320):
            chart = gr.HTML(markup.empty_state(w("train.no_run")), elem_id="loss")
            log = gr.Checkbox(label=w("train.log"), visible=False, container=False, elem_classes="quiet")
            samples = gr.Gallery(
                label=w("train.samples"), visible=False, columns=3, object_fit="contain", height="auto", buttons=[],
                elem_id="run-samples",
            )  # fmt: skip
            with gr.Row(visible=False, elem_classes="action-row") as result:
                lora = gr.DownloadButton(w("train.lora"), elem_id="lora")
                to_sample = gr.Button(w("train.to_sample"), elem_id="to-sample")
    watched = [seen, pulse, timer, status, chart, log, samples, result, lora, main, again]

    def show_plan(target: str | None) -> list[Any]:
        can_start = gr.skip() if workshop.is_training else gr.update(interactive=plan.can_start(target))
        return [*plan.show(target), can_start if target in workshop.opened else gr.skip()]

    def watch(last: Any, in_log: bool) -> list[Any]:
        run = workshop.current_run()
        if run is None:
            return [None, "", gr.Timer(active=False), *[gr.skip()] * (len(watched) - 3)]
        snapshot = run.snapshot()
        signature = (
            run.name,
            snapshot.updated,
            snapshot.state,
            workshop.is_training,
            workshop.latest,
            in_log,
            len(snapshot.samples),
        )
        if signature == last:
            return [gr.skip()] * len(watched)
        has_news = last is None or (last[0], last[-1]) != (signature[0], signature[-1])
        return [signature, *_show_run(workshop, run, snapshot, in_log, w, has_new_samples=has_news)]

    def press(target: str | None, *values: Any) -> Any:
        try:
            if workshop.is_training:
                workshop.stop()
                return "", gr.update(value=w("train.stopping"), interactive=False), gr.skip()
            run = workshop.current_run()
            if run and workshop.can_continue(run):
                workshop.resume(run)
            else:
                workshop.train(*plan.config(target, *values))
        except StudioError as error:
            return markup.failure(error, w), gr.skip(), gr.skip()
        return "", gr.skip(), gr.Timer(active=True)

    def start_anew(target: str | None, *values: Any) -> Any:
        try:
            workshop.train(*plan.config(target, *values))
        except StudioError as error:
            return markup.failure(error, w), gr.skip()
        return "", gr.Timer(active=True)

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    looking: Any = ([seen, log], watched)
    main.click(press, [path, *plan.fields], [message, main, timer], **quiet).then(watch, *looking, queue=False, **quiet)
    again.click(start_anew, [path, *plan.fields], [message, timer], **quiet).then(watch, *looking, queue=False, **quiet)
    timer.tick(watch, *looking, queue=False, **quiet)
    log.input(watch, *looking, queue=False, **quiet)
    return TrainTab(
        plan=show_plan,
        plan_outputs=[*plan.outputs, main],
        watch=watch,
        watch_inputs=[seen, log],
        watch_outputs=watched,
        to_sample=to_sample,
    )


def _show_run(
    workshop: Workshop, run: RunFolder, snapshot: RunSnapshot, in_log: bool, w: Words, *, has_new_samples: bool
) -> list[Any]:
    """Updates of everything that shows a run, in the order of `watched` after the first."""
    state, ours = snapshot.state, workshop.is_training
    waits = not ours and workshop.can_continue(run)
    label = "train.stop" if ours else "train.continue" if waits else "train.start"
    videos = [(run.path / s.path, w("train.sample_step", step=s.step)) for s in reversed(snapshot.samples)]
    shown = [(workshop.shown(file), text) for file, text in videos if file.is_file()]
    has_lora = snapshot.lora is not None and snapshot.lora.is_file()
    can_press = ours or waits or (not state.is_live and bool(workshop.latest))
    return [
        markup.pulse(snapshot, w),
        gr.Timer(active=state.is_live or ours),
        markup.run_status(run.name, snapshot, ours, w),
        markup.loss_chart(snapshot, in_log, w) if snapshot.losses else "",
        gr.update(visible=len(snapshot.losses) > 1),
        gr.update(value=shown, visible=bool(shown)) if has_new_samples else gr.skip(),
        gr.update(visible=has_lora),
        workshop.shown(snapshot.lora, f"{run.name}.safetensors") if has_lora and snapshot.lora else None,
        gr.update(value=w(label), interactive=can_press, variant="stop" if ours else "primary"),
        gr.update(visible=waits),
    ]


def lora_choices(workshop: Workshop, newest: int = 20) -> list[tuple[str, Path]]:
    """(run, LoRA file) of the newest runs that have one."""
    runs = list_runs(workshop.output_dir)[:newest]
    found = [(run.name, run.snapshot().lora) for run in runs]
    return [(name, lora) for name, lora in found if lora and lora.is_file()]
