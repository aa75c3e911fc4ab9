"""The panel that mends: what is offered, how, what it will make, and where to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from studio.core.data.bucket import MODEL_FPS
from studio.core.data.mend import MendChoice, MendKind, MendPlan, plan_mends, write_mends
from studio.core.errors import StudioError
from studio.core.types import Pair
from studio.ui import markup
from studio.ui.follow import Step, follow
from studio.ui.mend_markup import mend_preview
from studio.ui.workshop import Opened, Workshop, typed_path
from studio.view.words import Words

FIRST = (MendKind.START_FRAMES, MendKind.CAPTIONS, MendKind.CONFIG)
"""Chosen at first where they are offered: they add what is missing and change no clip."""
SELDOM = frozenset({MendKind.TRIM, MendKind.CROP, MendKind.PAD, MendKind.CONFIG})
"""These mend no fault: a run trims and crops anyway when it reads a clip, and needs no files of configuration."""

Offer = Mapping[MendKind, tuple[Pair, ...]]


@dataclass(frozen=True, slots=True)
class MendPanel:
    """The parts that the room connects."""

    box: gr.Column
    write: gr.Button
    inputs: list[Any]
    """Kinds, template, frame rate, and where to."""
    fill: Callable[[str | None], list[Any]]
    """fill(path) -> updates for `outputs`: the panel for that dataset."""
    outputs: list[Any]


def build_mend_panel(workshop: Workshop, w: Words, path: gr.State) -> MendPanel:
    """Lays the panel out, hidden; its preview follows every change."""
    with gr.Column(visible=False, elem_id="mend-panel") as box:
        gr.HTML(f"<h3 class='heading'>{w('mend.title')}</h3>{markup.note(w('mend.promise'))}")
        kinds = gr.CheckboxGroup([], label=w("mend.kinds"), elem_id="mend-kinds")
        with gr.Row(elem_classes="fields"):
            template = gr.Textbox(
                "{name}", label=w("mend.template"), info=w("mend.template_help"), max_lines=1, visible=False,
                elem_id="mend-template",
            )  # fmt: skip
            rate = gr.Number(
                MODEL_FPS, label=w("mend.rate"), info=w("mend.rate_help"), minimum=1, maximum=240, visible=False,
                elem_id="mend-rate",
            )  # fmt: skip
        preview = gr.HTML(elem_id="mend-preview")
        with gr.Row(elem_classes="bar-row"):
            into = gr.Textbox(label=w("mend.into"), max_lines=1, scale=6, elem_id="mend-into")
            write = gr.Button(w("mend.write"), variant="primary", scale=0, min_width=240, elem_id="mend-write")
            close = gr.Button(w("mend.close"), scale=0, min_width=120, elem_id="mend-close")
    inputs, outputs = [kinds, template, rate, into], [box, kinds, template, rate, preview, into, write]

    def fill(target: str | None) -> list[Any]:
        opened = workshop.opened.get(target or "")
        if opened is None:
            return [gr.skip()] * len(outputs)
        choices = [
            (f"{w(f'mend.kind_{kind.value}')} ({len(pairs)})", kind.value) for kind, pairs in opened.offer.items()
        ]
        chosen = [kind.value for kind in FIRST if kind in opened.offer] or [choices[0][1]]
        shown = show(target, chosen, "{name}", MODEL_FPS)
        return [
            gr.update(visible=True),
            gr.update(choices=choices, value=chosen),
            gr.update(value="{name}", visible=MendKind.CAPTIONS in opened.offer),
            gr.update(value=MODEL_FPS, visible=MendKind.FRAME_RATE in opened.offer),
            shown[0],
            str(proposed_folder(workshop, opened)),
            shown[1],
        ]

    def show(target: str | None, chosen: list[str], text: str | None, fps: float | None) -> list[Any]:
        opened = workshop.opened.get(target or "")
        if opened is None:
            return [gr.skip(), gr.skip()]
        try:
            return [mend_preview(planned(opened, chosen, text, fps), w), gr.update(interactive=True)]
        except StudioError as error:
            return [markup.failure(error, w), gr.update(interactive=False)]

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    gr.on(
        [kinds.input, template.change, rate.change], show, [path, kinds, template, rate], [preview, write],
        trigger_mode="always_last", **quiet,
    )  # fmt: skip
    close.click(lambda: gr.update(visible=False), None, box, queue=False, **quiet)
    return MendPanel(box=box, write=write, inputs=inputs, fill=fill, outputs=outputs)


def planned(opened: Opened, chosen: list[str], template: str | None, fps: float | None) -> MendPlan:
    """The plan of what the panel says. Raises ConfigError or DatasetError."""
    known = {kind.value for kind in MendKind}
    choice = MendChoice(
        kinds=frozenset(MendKind(kind) for kind in chosen if kind in known),
        caption_template=template or "",
        frame_rate=float(fps or 0),
    )
    return plan_mends(opened.project, opened.report, choice)


def mended(
    opened: Opened,
    values: tuple[Any, ...],
    workshop: Workshop,
    stop: threading.Event,
    w: Words,
    say: Callable[[str, Step], Any],
) -> Generator[Any, None, Opened]:
    """Writes what the panel says into its new folder and opens that; yields what `say` makes of each step.

    Raises StudioError, MendStopped and CheckStopped among them.
    """
    chosen, template, fps, into = values
    if not (into or "").strip():
        raise StudioError(w("mend.no_folder"), w("mend.no_folder_remedy"))
    plan = planned(opened, chosen, template, fps)
    target = typed_path(into)
    folder = yield from follow(
        lambda tell: write_mends(plan, target, progress=tell, should_stop=stop.is_set),
        stop,
        lambda step: say("mend.writing", step),
    )
    return (
        yield from follow(
            lambda tell: workshop.open(str(folder), tell, stop.is_set), stop, lambda step: say("dataset.opening", step)
        )
    )


def proposed_folder(workshop: Workshop, opened: Opened) -> Path:
    """A folder that is not there yet: beside the runs, or where that is in the dataset, the nearest one above it."""
    place = opened.path.resolve()
    name = f"{(place.parent if place.is_file() else place).name}-mended"
    above = workshop.output_dir_of(opened).resolve().parent
    directories = [dataset.directory.resolve() for dataset in opened.project.run.data.datasets]
    while above != above.parent and any(above.is_relative_to(directory) for directory in directories):
        above = above.parent
    number, folder = 1, above / name
    while folder.exists():
        number += 1
        folder = above / f"{name}-{number}"
    return folder


def mend_label(offer: Offer, w: Words) -> str:
    """What the button says that opens the panel."""
    faulty = {pair.clip_path for kind in offer.keys() - SELDOM for pair in offer[kind]}
    if faulty:
        return w.count("dataset.mend", len(faulty))
    return f"{w('mend.kind_config')}…" if set(offer) == {MendKind.CONFIG} else w("dataset.mend_none")
