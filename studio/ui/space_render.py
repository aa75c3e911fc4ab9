"""A render on the Space as its page shows it, from the first moment to the last."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from studio.core.errors import StudioError
from studio.core.events import DenoiseStep, SampleDone, SampleEvent
from studio.core.sample.request import SampleRequest
from studio.ui import markup
from studio.view.words import Words

logger = logging.getLogger(__name__)

MAX_SECONDS = 300
"""Of one video."""

Sampler = Callable[[SampleRequest, Path], Iterator[SampleEvent]]
"""Renders a request into a file."""


@dataclass(frozen=True, slots=True)
class _View:
    """What the page shows at one moment of a render."""

    status: str
    without: str | None = None
    with_lora: str | None = None


def updates(ask: Callable[[], SampleRequest], sampler: Sampler, folder: Path, w: Words) -> Iterator[tuple[Any, ...]]:
    """Updates of status, both players, both, stage, Render and Cancel; the last gives Render back, come what may."""
    busy = gr.update(visible=False), gr.update(visible=True, interactive=True)
    try:
        with tempfile.TemporaryDirectory(dir=folder) as own:
            request = ask()
            for view in render_views(request, sampler, Path(own), w):
                yield *_show(view, not request.loras, w), *busy
    except StudioError as error:
        yield markup.failure(error, w), *[gr.skip()] * 4, *busy
    except Exception as error:  # noqa: BLE001 the boundary of the page: nobody above would free its buttons
        logger.exception("rendering a sample failed")
        yield markup.unexpected(error, w), *[gr.skip()] * 4, *busy
    yield *[gr.skip()] * 5, gr.update(visible=True), gr.update(visible=False)


def _show(view: _View, is_alone: bool, w: Words) -> tuple[Any, ...]:
    is_pair = view.without is not None and view.with_lora is not None
    label = w("space.video") if is_alone else w("sample.without")
    return (
        view.status,
        gr.update(value=view.without, label=label, visible=view.without is not None),
        gr.update(value=view.with_lora, visible=view.with_lora is not None),
        gr.update(visible=is_pair),
        "" if view.without else gr.skip(),
    )


def render_views(request: SampleRequest, sampler: Sampler, folder: Path, w: Words) -> Iterator[_View]:
    """What to show while `request` is rendered: without its LoRA, then with it. Raises StudioError."""
    passes = {"without": ()} | ({"with_lora": request.loras} if request.loras else {})
    done: dict[str, SampleDone] = {}
    yield _View(markup.progress(w("space.begins"), 0))
    for number, (slot, loras) in enumerate(passes.items()):
        label = w("sample.with" if slot == "with_lora" else "sample.without") if request.loras else w("space.video")
        for event in sampler(replace(request, loras=loras), folder / f"{slot}.mp4"):
            files = {name: str(result.path) for name, result in done.items()}
            if isinstance(event, SampleDone):
                done[slot] = event
            elif isinstance(event, DenoiseStep):
                share = (number + event.step / event.num_steps) / len(passes)
                yield _View(markup.progress(_step_line(event, label, w), share), **files)
        if slot not in done:
            raise StudioError(w("space.too_long", seconds=MAX_SECONDS), w("space.too_long_remedy"))
    yield _View(markup.results(_results(done, request, w)), **{n: str(d.path) for n, d in done.items()})


def _step_line(event: DenoiseStep, label: str, w: Words) -> str:
    if event.step == event.num_steps:
        return w("sample.decoding", which=label)
    left = event.seconds * (event.num_steps - event.step)
    return w(
        "sample.working", which=label, step=event.step, total=event.num_steps,
        seconds=w.number(event.seconds, 2 if event.seconds < 1 else 1), time=w.duration(left),
    )  # fmt: skip


def _results(done: dict[str, SampleDone], request: SampleRequest, w: Words) -> list[str]:
    last = list(done.values())[-1]
    seconds = w.number(sum(result.seconds for result in done.values()), 1)
    return [
        w("space.done", seconds=seconds, attention=w(f"chip.{last.attention}")),
        w("space.done_frames", frames=request.num_frames),
        w("sample.done_steps", steps=request.num_inference_steps),
        w("sample.done_seed", seed=request.seed),
    ]
