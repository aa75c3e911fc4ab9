"""The measuring of what a run takes: a button, our own bar, a stop, and a button for what would make it fit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from studio.core.config import RunConfig
from studio.core.data.check import Progress
from studio.core.errors import CheckStopped, StudioError
from studio.core.train.fit import Fit
from studio.core.train.retry import concrete
from studio.core.types import DatasetReport
from studio.ui import markup, plan_markup
from studio.ui.follow import Step, follow
from studio.ui.workshop import Workshop
from studio.view.words import Words


@dataclass(frozen=True, slots=True)
class Measured:
    """A fit, and what it was measured for."""

    config: RunConfig
    fit: Fit

    def of(self, config: RunConfig) -> Fit | None:
        """The fit, where it is that of `config` too."""
        mine = self.config
        is_same = (mine.model, mine.data, mine.lora) == (config.model, config.data, config.lora)
        is_same = is_same and (mine.num_processes, config.is_sharded) == (config.num_processes, False)
        return self.fit if is_same else None


@dataclass(frozen=True, slots=True)
class MeasurePanel:
    """The parts that the plan connects."""

    fit: gr.HTML
    measure: gr.Button
    mend: gr.Button
    """Puts what would make it fit into the settings."""
    known: gr.State
    """Holds `Measured`, or None."""


def build_measure_panel(
    workshop: Workshop,
    w: Words,
) -> tuple[MeasurePanel, Callable[..., None]]:
    """Lays the panel out, where it is called; the second is called with (path, fields, plan, config, draw):
    `config(path, *fields)` gives the run and its report, `draw(path, run, report, measured)` the plan for `plan`.
    """
    fit, known, stops = gr.HTML(elem_id="fit"), gr.State(None), {}
    with gr.Row(elem_classes="bar-row"):
        measure = gr.Button(w("train.measure"), size="sm", visible=False, elem_id="measure")
        cancel = gr.Button(w("plan.cancel"), size="sm", variant="stop", visible=False, elem_id="measure-cancel")
        mend = gr.Button("", size="sm", variant="primary", visible=False, elem_id="fit-mend")

    def connect(
        path: gr.State,
        fields: list[Any],
        plan: gr.HTML,
        config_of: Callable[..., tuple[RunConfig, DatasetReport]],
        draw: Callable[[str | None, RunConfig, DatasetReport, Measured | None], str],
    ) -> None:
        def say(step: Step, stop: threading.Event) -> list[Any]:
            text = w("train.measuring", done=step.done, total=step.total) if step.total else w("plan.loading")
            hidden, stopping = gr.update(visible=False), gr.update(visible=True, interactive=not stop.is_set())
            return [markup.progress(text, step.share), hidden, stopping, hidden, gr.skip(), gr.skip()]

        def end(html: str, mending: Any, now: Measured | None, card: Any) -> list[Any]:
            return [html, gr.update(visible=True), gr.update(visible=False), mending, now, card]

        def run(request: gr.Request, target: str | None, *values: Any) -> Iterator[list[Any]]:
            stop = stops[request.session_hash] = threading.Event()
            hidden = gr.update(visible=False)
            try:
                config, report = config_of(target, *values)
                found = yield from follow(
                    lambda tell: workshop.measure(config, report, _until(stop, tell)),
                    stop,
                    lambda step: say(step, stop),
                )
            except CheckStopped:
                yield end(markup.note(w("plan.cancelled")), hidden, None, gr.skip())
            except StudioError as error:
                yield end(markup.failure(error, w), hidden, None, gr.skip())
            else:
                now = Measured(config, found)
                card = markup.fit_card(found, config.optim.max_train_steps, w)
                yield end(card, _mend_update(now, report, w), now, draw(target, config, report, now))
            finally:
                stops.pop(request.session_hash, None)

        def ask_to_stop(request: gr.Request) -> Any:
            if stop := stops.get(request.session_hash):
                stop.set()
            return gr.update(interactive=False)

        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        measure.click(run, [path, *fields], [fit, measure, cancel, mend, known, plan], concurrency_id="gpu", **quiet)
        cancel.click(ask_to_stop, None, cancel, queue=False, **quiet)

    return MeasurePanel(fit=fit, measure=measure, mend=mend, known=known), connect


def _until(stop: threading.Event, tell: Progress) -> Progress:
    """`tell`, which ends the work with CheckStopped once `stop` is set."""

    def told(done: int, total: int) -> None:
        if stop.is_set():
            raise CheckStopped(f"Stopped after {done} of {total} sizes.", "")
        tell(done, total)

    return told


def _mend_update(known: Measured, report: DatasetReport, w: Words) -> Any:
    """The button that makes a measured run fit; hidden where it fits, or no setting helps."""
    if known.fit.change is None:
        return gr.update(visible=False)
    try:
        settings = concrete(known.fit.change.settings, known.config, report.pairs)
    except StudioError:
        return gr.update(visible=False)
    return gr.update(value=w("plan.mend_use", change=plan_markup.settings_line(settings)), visible=True)
