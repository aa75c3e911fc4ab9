"""The room Train: what a run will do, one button, and the run as its folder tells it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from studio.core.config import LoraSettings, RunConfig
from studio.core.errors import StudioError
from studio.core.model.load import resolve_device
from studio.core.runlog import RunFolder, RunSnapshot, list_runs
from studio.core.types import DatasetReport
from studio.ui import markup
from studio.ui.workshop import Opened, Workshop
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
            plan = gr.HTML(markup.empty_state(w("train.empty")), elem_id="plan")
            fit = gr.HTML(elem_id="fit")
            measure = gr.Button(w("train.measure"), size="sm", visible=False, elem_id="measure")
            with gr.Group(visible=False) as settings:
                with gr.Row():
                    steps = gr.Number(
                        label=w("train.steps"), info=w("train.steps_help"), precision=0, minimum=1, elem_id="steps"
                    )
                    rate = gr.Number(label=w("train.learning_rate"), info=w("train.learning_rate_help"), minimum=0)
                with gr.Row():
                    rank = gr.Number(label=w("train.rank"), info=w("train.rank_help"), precision=0, minimum=1)
                    batch = gr.Number(label=w("train.batch"), info=w("train.batch_help"), precision=0, minimum=1)
                seed = gr.Number(label=w("train.seed"), info=w("train.seed_help"), precision=0, minimum=0)
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
    fields = [steps, rate, rank, batch, seed]
    watched = [seen, pulse, timer, status, chart, log, samples, result, lora, main, again]

    def show_plan(target: str | None) -> list[Any]:
        opened = workshop.opened.get(target or "")
        if opened is None:
            return [gr.skip()] * (5 + len(fields))
        run = opened.project.run
        values = [planned_steps(run, opened), run.optim.learning_rate, run.lora.rank]
        values += [run.data.train_batch_size, run.seed]
        can_start = opened.report.is_ok and opened.num_ready > 0
        shown = gr.update(visible=True)
        return [_plan(workshop, opened, values[0], values[3], values[2], w), "", shown, shown, *values,
                gr.skip() if workshop.is_training else gr.update(interactive=can_start)]  # fmt: skip

    def update_plan(target: str | None, *values: Any) -> Any:
        opened = workshop.opened.get(target or "")
        if opened is None or None in values:
            return gr.skip(), gr.skip()
        return _plan(workshop, opened, values[0], values[3], values[2], w), ""

    def measure_fit(
        target: str | None,
        *values: Any,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[str]:
        def say(done: int, total: int) -> None:
            progress((done, total), w("train.measuring", done=done, total=total))

        # The progress is drawn over what is there, and has the height of that.
        yield "<div class='progress-room'></div>"
        progress(0, w("sample.loading"))
        try:
            config, report = _config(workshop, target, values, w)
            yield markup.fit_card(workshop.measure(config, report, say), config.optim.max_train_steps, w)
        except StudioError as error:
            yield markup.failure(error, w)

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
                workshop.train(*_config(workshop, target, values, w))
        except StudioError as error:
            return markup.failure(error, w), gr.skip(), gr.skip()
        return "", gr.skip(), gr.Timer(active=True)

    def start_anew(target: str | None, *values: Any) -> Any:
        try:
            workshop.train(*_config(workshop, target, values, w))
        except StudioError as error:
            return markup.failure(error, w), gr.skip()
        return "", gr.Timer(active=True)

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    for field in fields:
        field.change(update_plan, [path, *fields], [plan, fit], queue=False, **quiet)
    measure.click(measure_fit, [path, *fields], fit, concurrency_id="gpu", api_visibility="private")
    looking: Any = ([seen, log], watched)
    main.click(press, [path, *fields], [message, main, timer], **quiet).then(watch, *looking, queue=False, **quiet)
    again.click(start_anew, [path, *fields], [message, timer], **quiet).then(watch, *looking, queue=False, **quiet)
    timer.tick(watch, *looking, queue=False, **quiet)
    log.input(watch, *looking, queue=False, **quiet)
    return TrainTab(
        plan=show_plan,
        plan_outputs=[plan, fit, measure, settings, *fields, main],
        watch=watch,
        watch_inputs=[seen, log],
        watch_outputs=watched,
        to_sample=to_sample,
    )


def planned_steps(run: RunConfig, opened: Opened) -> int:
    """Optimiser steps that the configuration asks for."""
    if run.optim.max_train_steps:
        return run.optim.max_train_steps
    batches = -(-opened.num_ready // max(1, run.data.train_batch_size))
    return max(1, run.optim.num_train_epochs * batches)


def _config(
    workshop: Workshop, target: str | None, values: tuple[Any, ...], w: Words
) -> tuple[RunConfig, DatasetReport]:
    """The project's configuration with the fields of the page, and what was checked. Raises StudioError."""
    opened = workshop.opened.get(target or "")
    if opened is None:
        raise StudioError(w("train.empty"), "")
    if None in values:
        raise StudioError(w("train.field_missing"), w("train.field_missing_remedy"))
    steps, rate, rank, batch, seed = values
    run = opened.project.run
    config = replace(
        run,
        model=opened.model,
        lora=_with_rank(run.lora, int(rank)),
        optim=replace(run.optim, max_train_steps=int(steps), learning_rate=float(rate)),
        data=replace(run.data, train_batch_size=int(batch)),
        seed=int(seed),
        output_dir=workshop.output_dir_of(opened),
    )
    return config, opened.report


def _with_rank(lora: LoraSettings, rank: int) -> LoraSettings:
    """The project's adapter with this rank; an alpha that was equal to the rank stays so."""
    return replace(lora, rank=rank, alpha=float(rank) if lora.alpha == lora.rank else lora.alpha)


def _plan(workshop: Workshop, opened: Opened, steps: float, batch: float, rank: float, w: Words) -> str:
    """What a run with these settings will do."""
    pace = workshop.pace(opened.model)
    estimate = w("train.time_estimate", time=w.duration(pace * steps)) if pace else w("train.time_unknown")
    held = sum(pair.is_ready for pair in opened.report.pairs) - opened.num_ready
    passes = steps * batch / max(1, opened.num_ready)
    rows = [
        (w("train.what_pairs"), str(opened.num_ready)),
        *([(w("train.what_held"), str(held))] if held else []),
        (w("train.what_steps"), f"{steps:.0f}"),
        (w("train.what_passes"), w.number(passes, 1)),
        (w("train.what_model"), opened.model.source),
        (w("train.what_device"), str(resolve_device(opened.model.device)).upper()),
        (w("train.what_time"), estimate),
        (w("train.what_result"), w("train.result", rank=f"{rank:.0f}")),
    ]
    title = f"<h3 class='heading'>{w('train.what')}</h3>"
    return title + markup.facts(rows) + ("" if opened.report.is_ok else markup.note(w("train.blocked")))


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
