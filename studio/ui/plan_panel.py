"""The left column of the room Train: what a run will do and take, and the few settings that matter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from studio.core.config import LoraSettings, RunConfig
from studio.core.errors import StudioError
from studio.core.model.load import resolve_device
from studio.core.types import DatasetReport
from studio.ui import markup
from studio.ui.workshop import Opened, Workshop
from studio.view.words import Words


@dataclass(frozen=True, slots=True)
class PlanPanel:
    """The parts that the room needs."""

    fields: list[Any]
    """What `config` takes after the path."""
    config: Callable[..., tuple[RunConfig, DatasetReport]]
    """config(path, *fields): what a run would be, with the fields of the page. Raises StudioError."""
    show: Callable[[str | None], list[Any]]
    """show(path) -> updates for `outputs`."""
    outputs: list[Any]
    can_start: Callable[[str | None], bool]
    """can_start(path): a dataset is open, and nothing in it blocks."""


def build_plan_panel(workshop: Workshop, w: Words, path: gr.State) -> PlanPanel:
    """Lays the column out, where it is called, and connects it; `path` holds that of the open dataset."""
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
    fields = [steps, rate, rank, batch, seed]
    outputs = [plan, fit, measure, settings, *fields]

    def can_start(target: str | None) -> bool:
        opened = workshop.opened.get(target or "")
        return opened is not None and opened.report.is_ok and opened.num_ready > 0

    def show(target: str | None) -> list[Any]:
        opened = workshop.opened.get(target or "")
        if opened is None:
            return [gr.skip()] * len(outputs)
        run = opened.project.run
        values = [planned_steps(run, opened), run.optim.learning_rate, run.lora.rank]
        values += [run.data.train_batch_size, run.seed]
        shown = gr.update(visible=True)
        return [_plan(workshop, opened, values[0], values[3], values[2], w), "", shown, shown, *values]

    def update(target: str | None, *values: Any) -> Any:
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
            config, report = run_config(workshop, target, values, w)
            yield markup.fit_card(workshop.measure(config, report, say), config.optim.max_train_steps, w)
        except StudioError as error:
            yield markup.failure(error, w)

    for field in fields:
        field.change(
            update, [path, *fields], [plan, fit], queue=False, show_progress="hidden", api_visibility="private"
        )
    measure.click(measure_fit, [path, *fields], fit, concurrency_id="gpu", api_visibility="private")
    return PlanPanel(
        fields=fields,
        config=lambda target, *values: run_config(workshop, target, values, w),
        show=show,
        outputs=outputs,
        can_start=can_start,
    )


def planned_steps(run: RunConfig, opened: Opened) -> int:
    """Optimiser steps that the configuration asks for."""
    if run.optim.max_train_steps:
        return run.optim.max_train_steps
    batches = -(-opened.num_ready // max(1, run.data.train_batch_size))
    return max(1, run.optim.num_train_epochs * batches)


def run_config(
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
        lora=with_rank(run.lora, int(rank)),
        optim=replace(run.optim, max_train_steps=int(steps), learning_rate=float(rate)),
        data=replace(run.data, train_batch_size=int(batch)),
        seed=int(seed),
        output_dir=workshop.output_dir_of(opened),
    )
    return config, opened.report


def with_rank(lora: LoraSettings, rank: int) -> LoraSettings:
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
