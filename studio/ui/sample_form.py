"""The form of the room Sample: few fields at first, the others unfolded by what is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from studio.core.config import ModelConfig
from studio.core.data.decode import read_image
from studio.core.errors import StudioError
from studio.core.sample.request import PUBLISHED_NEGATIVE_PROMPT, SampleRequest, resolve_settings
from studio.core.sample.video import read_clip
from studio.ui import markup
from studio.ui.gpu_choice import build_sample_gpus, offered_gpus
from studio.ui.sample_asked import (
    COMPARISONS,
    MODES,
    Asked,
    Known,
    advice,
    attention_got,
    draft_of,
    known_model,
    plan_lines,
    requests_of,
    variants_of,
)
from studio.ui.sample_fields import MOST_LORAS, NO_LORA, fields_of, lora_files, start_frames
from studio.ui.train_tab import lora_choices
from studio.ui.workshop import Workshop
from studio.view.words import Words

EMPTY_ZEROS = "(...values) => values.map((value) => value || null)"
"""A number field without a value says 0 when it is first shown, in place of its placeholder, the model's own."""
LATER_SEGMENTS = 3
"""Of a long video, unless someone says otherwise."""


@dataclass(frozen=True, slots=True)
class SampleForm:
    """The parts that the room needs."""

    inputs: list[Any]
    requests: Callable[..., list[SampleRequest]]
    """requests(*values of `inputs`). Raises StudioError."""
    plan: dict[str, Any]
    """Arguments of an event that says what the form will come to."""
    gpus: Callable[..., int]
    """gpus(*values of `inputs`): how many render it."""
    fill: Callable[[SampleRequest, int], list[Any]]
    """fill(request, gpus) -> updates for `filled`: its settings again."""
    filled: list[Any]
    refresh: Callable[[], list[Any]]
    """refresh() -> updates for `refreshed`: LoRAs, start frames and what the model can do."""
    refreshed: list[Any]
    take_newest: Callable[[], list[Any]]
    """take_newest() -> as `refresh`, with the newest LoRA chosen."""


def build_sample_form(workshop: Workshop, w: Words, said: gr.HTML, message: gr.HTML) -> SampleForm:
    """Lays the form out and connects it; `said` tells what it will come to, and a failure in `message` is over then."""
    mode = gr.Radio(
        [(w(f"sample.mode_{mode}"), mode) for mode in MODES], value="picture", label=w("sample.mode"),
        elem_id="sample-mode",
    )  # fmt: skip
    with gr.Group(elem_id="start-frame-group") as frame_group:
        frame = gr.Image(
            label=w("sample.start_frame"), type="numpy", image_mode="RGB", format="png",
            sources=["upload", "clipboard"], buttons=[], elem_id="start-frame",
        )  # fmt: skip
        crop = gr.HTML(elem_id="crop")
        pair = gr.Dropdown([], value=None, label=w("sample.from_demo"), elem_id="sample-pair")
    clip = gr.Video(label=w("sample.clip"), sources=["upload"], visible=False, height=240, elem_id="sample-clip")
    again = gr.State(None)
    prompt = gr.Textbox(
        label=w("sample.prompt"), placeholder=w("sample.prompt_hint"), lines=2, max_length=2000, elem_id="prompt"
    )
    with gr.Group(visible=False) as long_group:
        segments = gr.Number(
            LATER_SEGMENTS, label=w("sample.segments"), info=w("sample.segments_help"), precision=0,
            elem_id="sample-segments",
        )  # fmt: skip
        later = gr.Textbox(
            label=w("sample.later"), info=w("sample.later_help"), lines=3, max_length=20000, elem_id="sample-later"
        )
    loras, strengths, rows = [], [], []
    for number in range(MOST_LORAS):
        with gr.Row(visible=number == 0, elem_classes="lora-row") as row:
            loras.append(
                gr.Dropdown(
                    [(w("sample.lora_none"), NO_LORA)],
                    value=NO_LORA,
                    scale=3,
                    min_width=176,
                    label=w("sample.lora") if number == 0 else w("sample.lora_and"),
                    elem_id="lora-choice" if number == 0 else f"lora-choice-{number + 1}",
                )  # fmt: skip
            )
            strengths.append(
                gr.Number(1, label=w("sample.strength"), step=0.05, scale=1, min_width=112, elem_classes="strength")
            )
        rows.append(row)
    with gr.Accordion(w("sample.lora_upload"), open=False):
        upload = gr.File(show_label=False, file_types=[".safetensors"], height=128, elem_id="lora-file")
        upload_said = gr.HTML(elem_id="lora-said")
    comparison = gr.Dropdown(
        [(w(f"sample.compare_{kind}"), kind) for kind in COMPARISONS], value="nothing", label=w("sample.compare"),
        elem_id="sample-compare",
    )  # fmt: skip
    sweep = gr.Textbox(
        w("sample.strengths_default"), label=w("sample.strengths"), info=w("sample.strengths_help"), visible=False,
        max_lines=1, elem_id="sample-strengths",
    )  # fmt: skip
    gpus = build_sample_gpus(workshop.num_gpus, w)
    with gr.Accordion(w("sample.more"), open=False, elem_id="sample-more") as more:
        gr.HTML(markup.note(w("sample.default_hint")))
        with gr.Row():
            frames = gr.Number(
                None,
                label=w("sample.frames"),
                placeholder=w("sample.own"),
                info=w("sample.frames_help"),
                precision=0,
                elem_id="sample-frames",
            )
            steps = gr.Number(
                None,
                label=w("sample.steps"),
                placeholder=w("sample.own"),
                info=w("sample.steps_help"),
                precision=0,
                elem_id="sample-steps",
            )
        with gr.Row():
            height = gr.Number(
                None, label=w("sample.height"), placeholder=w("sample.own"), precision=0, elem_id="sample-height"
            )
            width = gr.Number(
                None, label=w("sample.width"), placeholder=w("sample.own"), precision=0, elem_id="sample-width"
            )
        with gr.Row():
            guidance = gr.Number(
                None,
                label=w("sample.guidance"),
                placeholder=w("sample.own"),
                info=w("sample.guidance_help"),
                elem_id="sample-guidance",
            )
            seed = gr.Number(0, label=w("sample.seed"), info=w("sample.seed_help"), precision=0, elem_id="sample-seed")
        negative = gr.Textbox(
            label=w("sample.negative"), info=w("sample.negative_help"), lines=2, max_length=2000,
            elem_id="sample-negative",
        )  # fmt: skip
        published = gr.Button(w("sample.negative_published"), size="sm", elem_id="sample-negative-published")
        attention = gr.Radio(
            [(w(f"sample.attention_{kind}"), kind) for kind in ("auto", "dense", "sparse")], value="auto",
            label=w("chip.attention"), elem_id="sample-attention",
        )  # fmt: skip
        sparsity = gr.Number(
            None, label=w("sample.sparsity"), info=w("sample.sparsity_help"), placeholder=w("sample.own"),
            visible=False, elem_id="sample-sparsity",
        )  # fmt: skip
        attention_said = gr.HTML(elem_id="attention-said")
        way = gr.Radio(
            [(w("sample.way_standard"), "standard"), (w("sample.way_distilled"), "distilled")], value="standard",
            label=w("sample.way"), elem_id="sample-way",
        )  # fmt: skip
        refinement = gr.Radio(
            [(w("sample.refine_none"), "none"), (w("sample.refine_space"), "space"),
             (w("sample.refine_both"), "space and time")],
            value="none", label=w("sample.refine"), elem_id="sample-refinement",
        )  # fmt: skip
        unavailable = gr.HTML(elem_id="sample-unavailable")

    models: dict[ModelConfig, Known] = {}
    clips: dict[str, tuple[np.ndarray, float]] = {}

    def known() -> Known:
        model = workshop.model
        if model not in models or (models[model].attention is None and workshop.loaded(model)):
            models[model] = known_model(workshop, model)
        return models[model]

    def clip_of(path: str) -> tuple[np.ndarray, float]:
        """The newest upload is kept: every field that changes asks for it."""
        if path not in clips:
            read = read_clip(Path(path))
            clips.clear()
            clips[path] = read
        return clips[path]

    def requests(*values: Any) -> list[SampleRequest]:
        return requests_of(Asked.of(values), known(), lora_files(workshop, w), clip_of, w)

    def changed(before: str | None, *values: Any) -> list[Any]:
        return ["" if "class='failure'" in (before or "") else gr.skip(), *say(*values)]

    def say(*values: Any) -> list[Any]:
        asked, model = Asked.of(values), known()
        try:
            request = draft_of(asked, lora_files(workshop, w), clip_of, w)
            settings = resolve_settings(request, model)
            many = variants_of(request, asked, w)
        except StudioError as error:
            return [markup.failure(error, w), "", ""]
        lines = plan_lines(asked, model, request, settings, w)
        if len(many) > 1:
            lines.insert(0, w("sample.plan_videos", n=len(many)))
        got = attention_got(asked, model, request, settings)
        said_got = w("sample.attention_later") if got is None else got[:1].upper() + got[1:] + "."
        shown = request.start_frame.shape if request.start_frame is not None else None
        return [
            _plan(lines, advice(settings, w)),
            _crop(settings.crop, shown, w),
            f"<p class='note' {markup.core_text(w) if got else ''}>{escape(said_got)}</p>",
        ]

    def switch(to: str) -> list[Any]:
        return [
            gr.update(visible=to in ("picture", "long")),
            gr.update(visible=to == "clip"),
            gr.update(visible=to in ("clip", "long")),
            1 if to == "clip" else LATER_SEGMENTS,
        ]

    def refresh() -> list[Any]:
        model = known()
        names = [(w("sample.lora_none"), NO_LORA), *((name, name) for name in lora_files(workshop, w))]
        has_pairs, pairs = start_frames(workshop)
        ways = [(w("sample.way_standard"), "standard")]
        refinements = [(w("sample.refine_none"), "none")]
        if model.has_distilled:
            ways.append((w("sample.way_distilled"), "distilled"))
        if model.has_refinement:
            refinements += [(w("sample.refine_space"), "space"), (w("sample.refine_both"), "space and time")]
        is_all = model.has_distilled and model.has_refinement
        return [
            *[gr.update(choices=names) for _ in loras],
            gr.update(choices=[name for name, _, _ in pairs], label=w(f"sample.from_{has_pairs}")),
            gr.update(choices=ways, visible=len(ways) > 1),
            gr.update(choices=refinements, visible=len(refinements) > 1),
            "" if is_all else markup.note(w("sample.unavailable", source=Path(model.source).name)),
            gr.update(placeholder=str(model.defaults.num_frames)),
            gr.update(placeholder=str(model.defaults.num_inference_steps)),
            gr.update(placeholder=str(model.defaults.height)),
            gr.update(placeholder=str(model.defaults.width)),
            gr.update(placeholder=f"{model.defaults.guidance_scale:g}"),
            gr.update(placeholder=f"{100 * (model.attention.sparsity if model.attention else 0.9375):g}"),
        ]

    def take_newest() -> list[Any]:
        choices, updates = lora_choices(workshop), refresh()
        return [updates[0] | {"value": choices[0][0]} if choices else updates[0], *updates[1:]]

    def take_pair(name: str | None, text: str | None) -> list[Any]:
        found = next((pair for pair in start_frames(workshop)[1] if pair[0] == name), None)
        if found is None:
            return [gr.skip(), gr.skip()]
        captions = {caption for _, _, caption in start_frames(workshop)[1]}
        try:
            picture = read_image(found[1])
        except StudioError as error:
            gr.Warning(str(error))
            return [gr.skip(), gr.skip()]
        # What someone wrote stays.
        is_free = not (text or "").strip() or (text or "").strip() in captions
        return [picture, found[2] if is_free and found[2] else gr.skip()]

    def take_file(file: str | None, *chosen: str) -> list[Any]:
        if not file:
            return [gr.skip()] * (len(loras) + 2)
        try:
            kept = workshop.desk().keep_lora(Path(file))
        except StudioError as error:
            return [*[gr.skip()] * len(loras), markup.failure(error, w), None]
        names = lora_files(workshop, w)
        name = next(name for name, path in names.items() if path == kept)
        free = next((at for at, other in enumerate(chosen) if not other), len(chosen) - 1)
        choices = [(w("sample.lora_none"), NO_LORA), *((name, name) for name in names)]
        updates = [gr.update(choices=choices) | ({"value": name} if at == free else {}) for at in range(len(loras))]
        return [*updates, markup.note(w("sample.lora_kept", name=name)), None]

    def gpus_of(*values: Any) -> int:
        """A number that is offered, whatever a page sends."""
        return offered_gpus(Asked.of(values).gpus, workshop.num_gpus)

    def fill(request: SampleRequest, on: int) -> list[Any]:
        return fields_of(workshop, request, w, on)

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
    inputs = [
        mode, frame, clip, again, prompt, segments, later, comparison, sweep, negative, frames, steps, height, width,
        guidance, seed, way, refinement, attention, sparsity, gpus,
        *[part for pair_of in zip(loras, strengths, strict=True) for part in pair_of],
    ]  # fmt: skip
    plan: dict[str, Any] = {"fn": say, "inputs": inputs, "outputs": [said, crop, attention_said], **quiet}
    mode.input(switch, mode, [frame_group, clip, long_group, segments], **quiet)
    comparison.change(lambda kind: gr.update(visible=kind == "strengths"), comparison, sweep, **quiet)
    owns = [frames, steps, height, width, guidance, sparsity]
    emptying: dict[str, Any] = {"fn": None, "inputs": owns, "outputs": owns, "js": EMPTY_ZEROS, **quiet}
    more.expand(**emptying)
    attention.change(lambda kind: gr.update(visible=kind == "sparse"), attention, sparsity, **quiet).then(**emptying)
    for at in range(MOST_LORAS - 1):
        loras[at].change(lambda name: gr.update(visible=bool(name)), loras[at], rows[at + 1], **quiet)
    pair.input(take_pair, [pair, prompt], [frame, prompt], **quiet)
    upload.upload(take_file, [upload, *loras], [*loras, upload_said, upload], **{**quiet, "queue": True})
    clip.upload(lambda: None, None, again, **quiet)
    clip.clear(lambda: None, None, again, **quiet)
    published.click(lambda: PUBLISHED_NEGATIVE_PROMPT, None, negative, **quiet)
    changing = [
        mode, frame, clip, segments, later, comparison, sweep, frames, steps, height, width, guidance, seed, way,
        refinement, attention, sparsity, gpus, *loras,
    ]  # fmt: skip
    gr.on(
        [part.change for part in changing], changed, [message, *inputs], [message, *plan["outputs"]],
        trigger_mode="always_last", **quiet,
    )  # fmt: skip
    refreshed = [*loras, pair, way, refinement, unavailable, frames, steps, height, width, guidance, sparsity]
    return SampleForm(
        inputs=inputs,
        requests=requests,
        plan=plan,
        gpus=gpus_of,
        fill=fill,
        filled=[frame_group, long_group, *inputs, *rows[1:]],
        refresh=refresh,
        refreshed=refreshed,
        take_newest=take_newest,
    )


def _plan(lines: list[str], warnings: list[str]) -> str:
    said = "".join(f"<p class='advice'>{escape(line)}</p>" for line in warnings)
    return f"<div class='plan'><p>{escape(' · '.join(lines))}</p>{said}</div>"


def _crop(box: tuple[float, float, float, float] | None, shape: tuple[int, ...] | None, w: Words) -> str:
    """Dims what is cut off the start frame, on the picture itself, and says how much that is."""
    if box is None or shape is None:
        return ""
    height, width = shape[:2]
    left, top, right, bottom = box
    lost = 1 - (right - left) * (bottom - top) / (width * height)
    inset = [top / height, 1 - right / width, 1 - bottom / height, left / width]
    edges = " ".join(f"{100 * share:.2f}%" for share in inset)
    is_cut = lost >= 0.005
    style = f"--ratio: {width / height:.4f}; --crop: {edges}; --crop-shown: {'block' if is_cut else 'none'};"
    said = w("sample.crop", percent=w.number(100 * lost, 0)) if is_cut else w("sample.crop_whole")
    return f"<style>#start-frame {{ {style} }}</style>{markup.note(said)}"
