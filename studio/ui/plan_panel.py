"""The left column of the room Train: what a run will do and take, the few settings that matter, and all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from studio.core.config import LoraSettings, RunConfig
from studio.core.errors import CheckStopped, ConfigError, StudioError
from studio.core.remedy import CONFIG_NAME, Setting
from studio.core.settings_text import SettingsText
from studio.core.train.preflight import preflight
from studio.core.train.retry import concrete
from studio.core.types import DatasetReport, Severity
from studio.ui import markup, plan_markup
from studio.ui.follow import Step
from studio.ui.gpu_choice import ONE, build_gpu_choice, on_gpus
from studio.ui.measure_panel import Measured, build_measure_panel
from studio.ui.settings_editor import build_settings_editor, key_rows, put_into, texts_in_use, use_texts
from studio.ui.workshop import Opened, Workshop
from studio.view.words import Words


@dataclass(frozen=True, slots=True)
class PlanPanel:
    """The parts that the room needs."""

    fields: list[Any]
    """What `config` takes after the path: the few settings, then the choice of GPUs."""
    config: Callable[..., tuple[RunConfig, DatasetReport]]
    """config(path, *fields): what a run would be, with the fields of the page. Raises StudioError where it may not
    start.
    """
    show: Callable[[str | None], list[Any]]
    """show(path) -> updates for `outputs`."""
    outputs: list[Any]
    can_start: Callable[[str | None], bool]
    """can_start(path): a dataset is open, and nothing in it or in the plan blocks."""


def build_plan_panel(workshop: Workshop, w: Words, path: gr.State) -> PlanPanel:
    """Lays the column out, where it is called, and connects it; `path` holds that of the open dataset."""
    blocked: dict[str | None, bool] = {}
    chosen: dict[str | None, tuple[Any, ...]] = {}
    plan = gr.HTML(markup.empty_state(w("train.empty")), elem_id="plan")
    measuring, connect_measuring = build_measure_panel(workshop, w)
    message = gr.HTML(elem_id="plan-message")
    with gr.Group(visible=False) as settings:
        fields = _fields(w)
        gpus = build_gpu_choice(workshop.num_gpus, w)
    written_fields = gr.State(None)
    with gr.Column(visible=False) as all_settings:
        editor = build_settings_editor(workshop, w, path)
    outputs = [plan, measuring.fit, measuring.measure, measuring.mend, message, settings, all_settings,
               measuring.known, written_fields, *fields, *gpus, *editor.codes, *editor.told, editor.table]  # fmt: skip

    def draw(target: str | None, config: RunConfig, report: DatasetReport, known: Measured | None) -> str:
        """The plan; whether it blocks is noted."""
        found = preflight(config, report, fit=known and known.of(config), snapshot=workshop.snapshot)
        blocked[target] = not found.is_ok
        return plan_markup.plan_card(found, w)

    def can_start(target: str | None) -> bool:
        opened = workshop.opened.get(target or "")
        is_ready = opened is not None and opened.report.is_ok and opened.num_ready > 0
        return is_ready and not blocked.get(target)

    def config_to_start(target: str | None, *values: Any) -> tuple[RunConfig, DatasetReport]:
        config, report = run_config(workshop, target, values, w)
        for issue in preflight(config, report, snapshot=workshop.snapshot).issues:
            if issue.severity is Severity.ERROR:
                raise ConfigError(issue.message, issue.remedy)
        return config, report

    def show(target: str | None) -> list[Any]:
        opened = workshop.opened.get(target or "")
        return [gr.skip()] * len(outputs) if opened is None else shown(target, opened)

    def shown(target: str | None, opened: Opened) -> list[Any]:
        """Updates of everything, from the settings in use."""
        values, texts = few_values(opened.project.run, opened), texts_in_use(opened)
        on = chosen.get(target, ONE)
        config, report = run_config(workshop, target, (*values, *on), w)
        visible, hidden = gr.update(visible=True), gr.update(visible=False)
        return [
            draw(target, config, report, None), "", visible, hidden, "", visible, visible, None, values, *values, *on,
            texts.config, texts.datasets, *editor.check(opened, config, texts.config, texts.datasets),
            key_rows(opened, "", w),
        ]  # fmt: skip

    def change_field(
        target: str | None,
        known: Measured | None,
        before: list[Any],
        config: str | None,
        datasets: str | None,
        *values: Any,
    ) -> list[Any]:
        """The plan follows a field, and so does the text of the editor, where all else that was typed stays."""
        opened = workshop.opened.get(target or "")
        few, on = values[: len(KEYS)], values[len(KEYS) :]
        if opened is None or None in few:
            return [gr.skip()] * 6
        chosen[target] = on
        texts = written(opened, config, datasets)
        changed = put_into(texts, changes(few, before or few_values(opened.project.run, opened)), opened)
        run, report = run_config(workshop, target, values, w)
        is_new = changed is not None and changed != texts
        is_stale = known is not None and known.of(run) is None
        return [
            draw(target, run, report, known),
            gr.skip() if changed is None else list(few),
            changed.config if changed and is_new else gr.skip(),
            *([markup.note(w("plan.measured_other")), gr.update(visible=False), None] if is_stale else [gr.skip()] * 3),
        ]

    def check_text(target: str | None, config: str | None, datasets: str | None, *values: Any) -> list[Any]:
        opened = workshop.opened.get(target or "")
        if opened is None:
            return [gr.skip()] * len(editor.told)
        run = None if None in values[: len(KEYS)] else run_config(workshop, target, values, w)[0]
        texts = written(opened, config, datasets)
        return editor.check(opened, run, texts.config, texts.datasets)

    def told(html: str) -> list[Any]:
        return [html if output is message else gr.skip() for output in outputs]

    def say(step: Step) -> list[Any]:
        return told(markup.progress(w("settings.checking", done=step.done, total=step.total), step.share))

    def using(request: gr.Request, target: str | None, opened: Opened, texts: SettingsText) -> Iterator[list[Any]]:
        """Takes the texts into use, and shows what is in use then."""
        try:
            now = yield from use_texts(workshop, opened, texts, workshop.begin(request.session_hash), say)
        except CheckStopped:
            yield told(markup.note(w("settings.stopped")))
        except StudioError as error:
            yield told(markup.failure(error, w))
        else:
            yield shown(target, now)

    def use(request: gr.Request, target: str | None, config: str | None, datasets: str | None) -> Iterator[list[Any]]:
        opened = workshop.opened.get(target or "")
        if opened is not None:
            yield from using(request, target, opened, written(opened, config, datasets))

    def use_mend(
        request: gr.Request, target: str | None, known: Measured | None, config: str | None, datasets: str | None
    ) -> Iterator[list[Any]]:
        """What would make the measured run fit becomes part of the settings in use."""
        opened = workshop.opened.get(target or "")
        if opened is None or known is None or known.fit.change is None:
            return
        settings = concrete(known.fit.change.settings, known.config, opened.report.pairs)
        changed = put_into(written(opened, config, datasets), settings, opened)
        if changed is None:
            changed = put_into(texts_in_use(opened), settings, opened) or texts_in_use(opened)
        yield from using(request, target, opened, changed)

    def back(request: gr.Request, target: str | None) -> list[Any]:
        """The files are read again."""
        try:
            workshop.open(target or "", None, workshop.begin(request.session_hash).is_set)
        except StudioError as error:
            return told(markup.failure(error, w))
        return show(target)

    all_fields = [*fields, *gpus]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    live: dict[str, Any] = {"queue": False, "trigger_mode": "always_last", **quiet}
    gr.on(
        [field.change for field in all_fields], change_field,
        [path, measuring.known, written_fields, *editor.codes, *all_fields],
        [plan, written_fields, editor.codes[0], measuring.fit, measuring.mend, measuring.known],
        **live,
    )  # fmt: skip
    gr.on([code.change for code in editor.codes], check_text, [path, *editor.codes, *all_fields], editor.told, **live)
    editor.use.click(use, [path, *editor.codes], outputs, **quiet)
    editor.back.click(back, path, outputs, **quiet)
    measuring.mend.click(use_mend, [path, measuring.known, *editor.codes], outputs, **quiet)
    connect_measuring(path, all_fields, plan, lambda target, *values: run_config(workshop, target, values, w), draw)
    return PlanPanel(fields=all_fields, config=config_to_start, show=show, outputs=outputs, can_start=can_start)


def _fields(w: Words) -> list[Any]:
    """Steps, learning rate, rank, batch size and seed."""

    def number(name: str, *, whole: bool = True, least: int = 1) -> gr.Number:
        label, info = w(f"train.{name}"), w(f"train.{name}_help")
        return gr.Number(
            label=label, info=info, precision=0 if whole else None, minimum=least, elem_id=name.replace("_", "-")
        )  # fmt: skip

    with gr.Row():
        steps, rate = number("steps"), number("learning_rate", whole=False, least=0)
    with gr.Row():
        rank, batch = number("rank"), number("batch")
    return [steps, rate, rank, batch, number("seed", least=0)]


KEYS = ("max_train_steps", "learning_rate", "lora_rank", "train_batch_size", "seed")
"""Of the fields."""


def few_values(run: RunConfig, opened: Opened) -> list[Any]:
    """What the fields show of a run."""
    return [
        planned_steps(run, opened), run.optim.learning_rate, run.lora.rank, run.data.train_batch_size, run.seed
    ]  # fmt: skip


def changes(values: tuple[Any, ...], shown: list[Any]) -> list[Setting]:
    """The settings in which the fields differ from what they showed before."""
    return [
        (CONFIG_NAME, key, value) for key, value, old in zip(KEYS, values, shown, strict=True) if value != old
    ]  # fmt: skip


def written(opened: Opened, config: str | None, datasets: str | None) -> SettingsText:
    """What the editor holds; before a browser has drawn it, that is nothing, and the settings in use hold."""
    in_use = texts_in_use(opened)
    return SettingsText(in_use.config if config is None else config, in_use.datasets if datasets is None else datasets)


def planned_steps(run: RunConfig, opened: Opened) -> int:
    """Optimiser steps that the configuration asks for."""
    if run.optim.max_train_steps:
        return run.optim.max_train_steps
    batches = -(-opened.num_ready // max(1, run.data.train_batch_size))
    return max(1, run.optim.num_train_epochs * batches)


def run_config(
    workshop: Workshop, target: str | None, values: tuple[Any, ...], w: Words
) -> tuple[RunConfig, DatasetReport]:
    """The settings in use with the fields of the page, and the choice of GPUs behind them, and what was checked.

    Raises StudioError.
    """
    opened = workshop.opened.get(target or "")
    if opened is None:
        raise StudioError(w("train.empty"), "")
    few, on = values[: len(KEYS)], values[len(KEYS) :]
    if None in few:
        raise StudioError(w("train.field_missing"), w("train.field_missing_remedy"))
    steps, rate, rank, batch, seed = few
    run = opened.project.run
    config = replace(
        run,
        model=opened.model,
        lora=with_rank(run.lora, int(rank)),
        optim=replace(run.optim, max_train_steps=int(steps), learning_rate=float(rate)),
        data=replace(run.data, train_batch_size=int(batch)),
        seed=int(seed),
        output_dir=workshop.output_dir_of(opened),
        **on_gpus(*on),
    )
    return config, opened.report


def with_rank(lora: LoraSettings, rank: int) -> LoraSettings:
    """The project's adapter with this rank; an alpha that was equal to the rank stays so."""
    return replace(lora, rank=rank, alpha=float(rank) if lora.alpha == lora.rank else lora.alpha)
