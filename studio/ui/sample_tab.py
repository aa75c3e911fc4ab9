"""The room Sample: a start frame, a sentence, and two players side by side."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from studio.core.data.decode import read_image
from studio.core.data.pair import pair_files
from studio.core.data.scan import scan_folder
from studio.core.errors import StudioError
from studio.core.events import DenoiseStep, SampleDone
from studio.core.model.lora import LoraFile
from studio.core.sample.sampler import SampleRequest, resolve_settings, sample
from studio.core.simpletuner import read_project
from studio.ui import markup
from studio.ui.train_tab import lora_choices
from studio.ui.workshop import Workshop
from studio.view.words import Words

logger = logging.getLogger(__name__)

NO_LORA = ""
PLAY_BOTH = """
() => document.querySelectorAll('#players video').forEach((video) => { video.currentTime = 0; video.play(); })
"""


@dataclass(frozen=True, slots=True)
class SampleTab:
    """The parts that the page itself needs."""

    refresh: Callable[[], Any]
    """refresh() -> the LoRA list anew."""
    take_newest: Callable[[], Any]
    """take_newest() -> the list anew, with the newest LoRA chosen."""
    lora: gr.Dropdown
    rendered: Any
    """The event of a render that ended."""


@dataclass(frozen=True, slots=True)
class _View:
    """What the room shows at one moment of a render."""

    status: str
    without: str | None = None
    with_lora: str | None = None


def build_sample_tab(workshop: Workshop, w: Words) -> SampleTab:
    """Lays the room out and connects it."""
    following = gr.State(0)
    with gr.Row(elem_classes="head-row"):
        status = gr.HTML(markup.note(w("sample.head")), elem_id="sample-status")
        with gr.Column(scale=0, min_width=304):
            start = gr.Button(w("sample.render"), variant="primary", elem_id="render")
            cancel = gr.Button(w("sample.cancel"), variant="stop", visible=False, elem_id="cancel")
    with gr.Row(elem_classes="main-row"):
        with gr.Column(scale=2, min_width=320, elem_classes="side"):
            frame = gr.Image(
                label=w("sample.start_frame"), type="numpy", image_mode="RGB", height=240,
                sources=["upload", "clipboard"], buttons=[], elem_id="start-frame",
            )  # fmt: skip
            from_demo = gr.Button(w("sample.from_demo"), size="sm", elem_id="from-demo")
            prompt = gr.Textbox(
                label=w("sample.prompt"), placeholder=w("sample.prompt_hint"), lines=2, max_length=2000,
                elem_id="prompt",
            )  # fmt: skip
            lora = gr.Dropdown(
                [(w("sample.lora_none"), NO_LORA)], value=NO_LORA, label=w("sample.lora"), elem_id="lora-choice"
            )
            strength = gr.Slider(0, 2, 1, step=0.05, label=w("sample.strength"))
            with gr.Accordion(w("sample.lora_upload"), open=False):
                upload = gr.File(show_label=False, file_types=[".safetensors"], height=128, elem_id="lora-file")
            with gr.Accordion(w("sample.more"), open=False):
                gr.HTML(markup.note(w("sample.default_hint")))
                with gr.Row():
                    frames = gr.Number(
                        None,
                        label=w("sample.frames"),
                        info=w("sample.frames_help"),
                        precision=0,
                        elem_id="sample-frames",
                    )
                    steps = gr.Number(None, label=w("sample.steps"), precision=0, elem_id="sample-steps")
                with gr.Row():
                    height = gr.Number(None, label=w("sample.height"), precision=0, elem_id="sample-height")
                    width = gr.Number(None, label=w("sample.width"), precision=0, elem_id="sample-width")
                with gr.Row():
                    guidance = gr.Number(None, label=w("sample.guidance"), info=w("sample.guidance_help"))
                    seed = gr.Number(0, label=w("sample.seed"), precision=0, minimum=0)
        with gr.Column(scale=3, min_width=320):
            stage = gr.HTML(markup.empty_state(w("sample.empty")))
            with gr.Row(elem_id="players"):
                players: dict[str, Any] = {
                    "interactive": False, "visible": False, "loop": True, "autoplay": True, "buttons": ["download"],
                    "height": 400,
                }  # fmt: skip
                without = gr.Video(label=w("sample.without"), elem_id="without", **players)
                with_lora = gr.Video(label=w("sample.with"), elem_id="with", **players)
            both = gr.Button(w("sample.play_both"), size="sm", visible=False)

    def gather(*values: Any) -> SampleRequest:
        picture, text, chosen, uploaded, *numbers = values
        return _request(workshop, picture, text, uploaded or chosen, numbers, bool(uploaded), w)

    def render(request: gr.Request, *values: Any) -> Iterator[Any]:
        stop = workshop.renders[request.session_hash or ""] = threading.Event()
        try:
            yield from _render(workshop, lambda: gather(*values), stop.is_set, w)
        finally:
            workshop.renders.pop(request.session_hash or "", None)

    def stop_render(request: gr.Request) -> Any:
        if event := workshop.renders.get(request.session_hash or ""):
            event.set()
        return gr.update(interactive=False)

    def refresh() -> Any:
        names = [name for name, _ in lora_choices(workshop)]
        return gr.update(choices=[(w("sample.lora_none"), NO_LORA), *((name, name) for name in names)])

    def take_newest() -> Any:
        choices = lora_choices(workshop)
        return gr.update(choices=[(w("sample.lora_none"), NO_LORA), *((n, n) for n, _ in choices)], value=choices[0][0])

    quiet: dict[str, Any] = {"api_visibility": "private"}
    inputs = [frame, prompt, lora, upload, strength, frames, steps, height, width, guidance, seed]
    rendered = start.click(
        render, inputs, [status, without, with_lora, both, stage, start, cancel],
        concurrency_id="gpu", concurrency_limit=1, show_progress="hidden", **quiet,
    )  # fmt: skip
    cancel.click(stop_render, None, cancel, queue=False, **quiet)
    from_demo.click(
        lambda number: _demo_frame(workshop, number),
        following,
        [frame, prompt, following],
        show_progress="hidden",
        **quiet,
    )
    lora.focus(refresh, None, lora, show_progress="hidden", queue=False, **quiet)
    both.click(None, None, None, js=PLAY_BOTH)
    return SampleTab(refresh=refresh, take_newest=take_newest, lora=lora, rendered=rendered)


def _render(
    workshop: Workshop, gather: Callable[[], SampleRequest], should_stop: Callable[[], bool], w: Words
) -> Iterator[tuple[Any, ...]]:
    """Updates of status, both players, both, stage, Render and Cancel; the last gives Render back, come what may."""
    busy = gr.update(visible=False), gr.update(visible=True, interactive=True)
    try:
        for view in render_views(workshop, gather(), should_stop, w):
            yield *_show(view), *busy
    except StudioError as error:
        yield markup.failure(error, w), *[gr.skip()] * 4, *busy
    except Exception as error:  # noqa: BLE001 the boundary of the page: nobody above would free its buttons
        logger.exception("rendering a sample failed")
        yield markup.unexpected(error, w), *[gr.skip()] * 4, *busy
    yield *[gr.skip()] * 5, gr.update(visible=True), gr.update(visible=False)


def _show(view: _View) -> tuple[Any, ...]:
    is_pair = view.without is not None and view.with_lora is not None
    return (
        view.status,
        gr.update(value=view.without, visible=view.without is not None),
        gr.update(value=view.with_lora, visible=view.with_lora is not None),
        gr.update(visible=is_pair),
        "" if view.without else gr.skip(),
    )


def _request(
    workshop: Workshop, picture: Any, text: str | None, lora: str | None, numbers: list[Any], is_file: bool, w: Words
) -> SampleRequest:
    """What the page asks for. Raises StudioError for what is missing."""
    if picture is None:
        raise StudioError(w("sample.no_frame"), w("sample.no_frame_remedy"))
    if not (text or "").strip():
        raise StudioError(w("sample.no_prompt"), w("sample.no_prompt_remedy"))
    strength, frames, steps, height, width, guidance, seed = numbers
    file = Path(lora) if is_file and lora else _lora_of_run(workshop, lora, w) if lora else None
    return SampleRequest(
        prompt=(text or "").strip(),
        start_frame=picture,
        loras=(LoraFile(path=file, strength=float(strength)),) if file else (),
        num_frames=_positive(frames),
        num_inference_steps=_positive(steps),
        height=_positive(height),
        width=_positive(width),
        guidance_scale=guidance or None,
        seed=int(seed or 0),
    )


def _positive(value: float | None) -> int | None:
    """0 and nothing mean the model's own."""
    return int(value) if value else None


def _lora_of_run(workshop: Workshop, name: str, w: Words) -> Path:
    lora = dict(lora_choices(workshop)).get(name)
    if lora is None:
        raise StudioError(w("sample.bad_lora"), w("sample.bad_lora_remedy"))
    return lora


def _demo_frame(workshop: Workshop, number: int) -> tuple[Any, Any, int]:
    """A start frame of the demo's validation clips, its caption, and the number of the next one."""
    run = read_project(workshop.settings.demo).run
    data = run.data
    clips = data.by_id.get(run.validation.eval_dataset_id or "") or next(d for d in data.datasets if d.kind == "video")
    folders = {name: scan_folder(data.by_id[name].directory) for name in clips.conditioning_ids}
    scan = scan_folder(clips.directory)
    pairs = [pair for pair in pair_files(clips, scan, folders or {clips.id: scan}) if pair.start_frame]
    pair = pairs[number % len(pairs)] if pairs else None
    if pair is None or pair.start_frame is None:
        return gr.skip(), gr.skip(), 0
    return read_image(pair.start_frame), pair.captions[0] if pair.captions else gr.skip(), number + 1


def render_views(
    workshop: Workshop, request: SampleRequest, should_stop: Callable[[], bool], w: Words
) -> Iterator[_View]:
    """What to show while `request` is rendered: without its LoRA, then with it. Raises StudioError."""
    yield _View(markup.progress(w("sample.loading"), 0))
    bundle = workshop.bundle(workshop.model)
    settings = resolve_settings(request, bundle)
    if bundle.lock.locked():
        yield _View(markup.progress(w("sample.waiting"), 0))
    passes = [("without", replace(request, loras=()))]
    if request.loras:
        passes.append(("with_lora", request))
    done: dict[str, SampleDone] = {}
    for number, (slot, one) in enumerate(passes):
        label = w("sample.with" if slot == "with_lora" else "sample.without") if request.loras else w("tab.sample")
        out = _new_file(workshop)
        for event in sample(one, bundle, out, should_stop=should_stop):
            files = {name: str(result.path) for name, result in done.items()}
            if isinstance(event, SampleDone):
                done[slot] = event
            elif isinstance(event, DenoiseStep):
                share = (number + event.step / event.num_steps) / len(passes)
                yield _View(markup.progress(_step_line(event, label, w), share), **files)
        if slot not in done:
            yield _View(markup.note(w("sample.cancelled")), **{n: str(d.path) for n, d in done.items()})
            return
    last = list(done.values())[-1]
    kind = w(f"chip.{last.attention}")
    seconds = w.number(sum(d.seconds for d in done.values()), 1)
    lines = [
        w("sample.done", attention=kind, reason=last.attention_reason.rstrip("."), seconds=seconds),
        w("sample.done_frames", frames=settings.num_frames, width=settings.width, height=settings.height),
        w("sample.done_steps", steps=settings.num_inference_steps),
        w("sample.done_guidance", guidance=f"{settings.guidance_scale:g}"),
        w("sample.done_seed", seed=request.seed),
        *([] if last.is_batched else [w("sample.done_one_by_one")]),
        *bundle.notices,
    ]
    yield _View(markup.results(lines), **{name: str(result.path) for name, result in done.items()})


def _step_line(event: DenoiseStep, label: str, w: Words) -> str:
    left = event.seconds * (event.num_steps - event.step)
    if event.step == event.num_steps:
        return w("sample.decoding", which=label)
    return w(
        "sample.working", which=label, step=event.step, total=event.num_steps,
        seconds=w.number(event.seconds, 2 if event.seconds < 1 else 1), time=w.duration(left),
    )  # fmt: skip


def _new_file(workshop: Workshop) -> Path:
    """A name for the next sample, in the private folder."""
    folder = workshop.folder / "samples"
    folder.mkdir(exist_ok=True)
    number = len(list(folder.iterdir())) + 1
    return folder / f"sample-{number:03d}-{threading.get_ident() % 1000:03d}.mp4"
