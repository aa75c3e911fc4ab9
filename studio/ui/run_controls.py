"""The head of the room Train: where the run stands, one button, and what else it can be asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import gradio as gr

from studio.core.errors import StudioError
from studio.core.runlog import RunFolder, RunSnapshot, RunState
from studio.core.train.checkpoint_files import list_checkpoints
from studio.core.train.requests import Request
from studio.ui import live_markup, markup
from studio.ui.mend_run import mend_button, mend_run
from studio.ui.plan_panel import PlanPanel
from studio.ui.workshop import Workshop
from studio.view.words import Words


class Action(Enum):
    """What the one button does."""

    START = "start"
    STOP = "stop"
    CONTINUE = "continue"


@dataclass(frozen=True, slots=True)
class Standing:
    """A run as the page shows it; a press means what was shown, whatever has happened since."""

    run: RunFolder | None
    action: Action
    state: tuple[Any, ...] = ()
    """All that the head tells of."""
    asked: frozenset[Request] = frozenset()


NO_RUN = Standing(None, Action.START)


@dataclass(frozen=True, slots=True)
class RunControls:
    """The parts that the room needs."""

    outputs: list[Any]
    look: Callable[[RunFolder, RunSnapshot], Standing]
    """look(run, snapshot): how the head would show it, to be compared with how it does."""
    show: Callable[[Standing, RunSnapshot, bool, int], list[Any]]
    """show(standing, snapshot, can_start, number) -> updates for `outputs`; the page can tell the number."""
    clear: Callable[[bool], list[Any]]
    """clear(can_start) -> updates for `outputs` where there is no run."""
    connect: Callable[[PlanPanel, Callable[[Any], Standing], gr.State, gr.State], list[Any]]
    """connect(plan, standing, seen, path) -> the events of all buttons; `standing(seen)` is how the page shows the run.
    """


def build_run_controls(workshop: Workshop, w: Words) -> RunControls:
    """Lays the head out, where it is called."""
    with gr.Row(elem_classes="head-row"):
        status = gr.HTML(markup.note(w("train.head")), elem_id="run-status")
        with gr.Column(scale=0, min_width=304):
            main = gr.Button(w("train.start"), variant="primary", interactive=False, elem_id="train")
            mend = gr.Button("", variant="primary", visible=False, elem_id="train-mend")
            again = gr.Button(w("train.again"), visible=False, elem_id="train-again")
            with gr.Row(visible=False, elem_classes="small-row") as small:
                pause = gr.Button(w("train.pause"), size="sm", min_width=88, elem_id="pause")
                sample = gr.Button(w("train.sample_now"), size="sm", min_width=88, elem_id="sample-now")
                save = gr.Button(w("train.save_now"), size="sm", min_width=88, elem_id="save-now")
    message = gr.HTML(elem_id="train-message")

    def look(run: RunFolder, snapshot: RunSnapshot) -> Standing:
        is_live, waits = snapshot.state.is_live, workshop.can_continue(run)
        asked = workshop.asked(run) if is_live else frozenset()
        action = Action.STOP if is_live else Action.CONTINUE if waits else Action.START
        own = (workshop.is_training, workshop.is_starting(run))
        state = (snapshot.updated, snapshot.state, asked, own, workshop.latest)
        return Standing(run, action, state, asked)

    def show(standing: Standing, snapshot: RunSnapshot, can_start: bool, number: int) -> list[Any]:
        run, state, asked = standing.run, snapshot.state, standing.asked
        assert run is not None
        is_ours = workshop.is_training and workshop.job is not None and workshop.job.folder == run
        kept = [int(path.name.removeprefix("step-")) for path in list_checkpoints(run.path / "checkpoints")]
        mending = mend_button(workshop, run, snapshot, w)
        said = live_markup.run_status(
            run.name, snapshot, w, asked=asked, checkpoints=kept, is_ours=is_ours,
            is_of_other_data=state.can_resume and standing.action is Action.START,
        )  # fmt: skip
        starting = workshop.is_starting(run)
        if starting:
            said += markup.note(w("gpus.starting_on", n=starting))
        is_at_work = state in (RunState.RUNNING, RunState.PAUSED)
        can_press = Request.STOP not in asked and not (workshop.is_training and not state.is_live)
        can_press = can_press and (can_start or standing.action is not Action.START) and not starting
        kind = "secondary" if mending["visible"] or starting else "primary"
        return [
            f"<div data-number='{number}'>{said}</div>",
            gr.update(
                value=w("gpus.starting") if starting else label(standing, snapshot),
                interactive=can_press,
                variant="stop" if standing.action is Action.STOP and not starting else kind,
            ),
            mending,
            gr.update(visible=standing.action is Action.CONTINUE and not starting, interactive=can_start),
            gr.update(visible=state.is_live and not starting),
            gr.update(value=w("train.continue" if Request.PAUSE in asked else "train.pause"), visible=state.is_live),
            gr.update(visible=is_at_work, interactive=Request.SAMPLE not in asked),
            gr.update(visible=state is RunState.RUNNING, interactive=Request.SAVE not in asked),
        ]

    def clear(can_start: bool) -> list[Any]:
        hidden = gr.update(visible=False)
        main_button = gr.update(value=w("train.start"), interactive=can_start, variant="primary")
        return [markup.note(w("train.head")), main_button, hidden, hidden, hidden, *[gr.skip()] * 3]

    def label(standing: Standing, snapshot: RunSnapshot) -> str:
        if standing.action is Action.CONTINUE and standing.run is not None:
            step = workshop.resumable_step(standing.run)
            return w("train.continue_from", step=step) if step else w("train.continue_start")
        if standing.action is Action.START:
            return w("train.start")
        if Request.STOP in standing.asked:
            return w("train.stopping")
        if snapshot.state is not RunState.RUNNING:
            return w("train.stop_now")
        pace = snapshot.seconds_per_step
        return w("train.stop") if pace is None else w("train.stop_in", time=w.duration(pace))

    def told(work: Callable[[], object]) -> str:
        try:
            work()
        except StudioError as error:
            return markup.failure(error, w)
        return ""

    def press(plan: PlanPanel, standing: Standing, target: str | None, values: tuple[Any, ...]) -> None:
        if standing.action is Action.START or standing.run is None:
            workshop.train(*plan.config(target, *values))
        elif standing.action is Action.STOP:
            workshop.stop(standing.run)
        else:
            workshop.resume(standing.run)

    def connect(plan: PlanPanel, standing: Callable[[Any], Standing], seen: gr.State, path: gr.State) -> list[Any]:
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

        def ask(work: Callable[[RunFolder, Standing], object]) -> Callable[[Any], str]:
            def asking(last: Any) -> str:
                shown = standing(last)
                run = shown.run
                return told(lambda: work(run, shown)) if run is not None else ""

            return asking

        def mend_it(run: RunFolder, _: Standing) -> None:
            mend_run(workshop, run)

        def pause_or_go_on(run: RunFolder, shown: Standing) -> None:
            (workshop.go_on if Request.PAUSE in shown.asked else workshop.pause)(run)

        return [
            main.click(
                lambda last, target, *values: told(lambda: press(plan, standing(last), target, values)),
                [seen, path, *plan.fields], message, **quiet,
            ),
            again.click(
                lambda target, *values: told(lambda: press(plan, NO_RUN, target, values)),
                [path, *plan.fields], message, **quiet,
            ),
            mend.click(
                lambda last, target: [ask(mend_it)(last), *plan.show(target)],
                [seen, path], [message, *plan.outputs], **quiet,
            ),
            pause.click(ask(pause_or_go_on), seen, message, queue=False, **quiet),
            sample.click(ask(lambda run, _: workshop.sample_now(run)), seen, message, queue=False, **quiet),
            save.click(ask(lambda run, _: workshop.save_now(run)), seen, message, queue=False, **quiet),
        ]  # fmt: skip

    return RunControls(
        outputs=[status, main, mend, again, small, pause, sample, save],
        look=look,
        show=show,
        clear=clear,
        connect=connect,
    )
