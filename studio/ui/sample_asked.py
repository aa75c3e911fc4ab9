"""What the form of the room Sample asks for, as requests, and what that will come to."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np

from studio.core.assets import TINY
from studio.core.config import Attention, ModelConfig
from studio.core.data.decode import resize_frames
from studio.core.errors import CheckpointError, StudioError
from studio.core.geometry import Grid, GridSpec
from studio.core.model.attention import AttentionChoice
from studio.core.model.load import SampleDefaults, resolve_attention, resolve_device, resolve_dtype
from studio.core.model.lora import LoraFile
from studio.core.model.published_loras import DISTILLED_LORA, REFINEMENT_LORA, published_lora
from studio.core.sample.compare import attention_variants, lora_variants, strength_variants
from studio.core.sample.desk import compared, preview_steps
from studio.core.sample.judge import MOST
from studio.core.sample.refine import BLOCK_LATENTS
from studio.core.sample.request import Refinement, SampleRequest, SampleSettings, refined_size, resolve_settings
from studio.core.train.preflight import shapes_of
from studio.core.types import Issue
from studio.ui.workshop import Workshop
from studio.view.words import Words

Mode = Literal["picture", "text", "clip", "long"]
MODES: tuple[Mode, ...] = ("picture", "text", "clip", "long")
COMPARISONS = ("nothing", "lora", "strengths", "attention")
GUIDANCE_MOST = 5.0
"""Of the guide: 3.5 to 5 works, and a first frame that drifts wants less."""
GUIDANCE_KEEPS = "3.5"
CLIP_BYTES = 2 * 10**8
"""A clip of more is kept at the size that it is rendered at."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """What is known of the model in use, be it loaded or not."""

    source: str
    grid: GridSpec
    defaults: SampleDefaults
    attention: AttentionChoice | None
    """None where it is not known before the model is loaded."""
    has_distilled: bool
    has_refinement: bool
    """The LoRAs that are published beside the weights are here, or can be downloaded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """The fields of the form, in the order of the page; an empty number is the model's own."""

    mode: str
    frame: np.ndarray | None
    """uint8 [H, W, 3]."""
    clip: str | None
    """Path of an upload."""
    again: tuple[np.ndarray, float | None] | None
    """Frames and rate of the clip of a video whose settings are used again, in place of an upload."""
    prompt: str | None
    segments: float | None
    later: str | None
    """A prompt a line, from the second segment on."""
    comparison: str
    strengths: str | None
    negative: str | None
    frames: float | None
    steps: float | None
    height: float | None
    width: float | None
    guidance: float | None
    seed: float | None
    way: str
    refinement: str
    attention: str
    sparsity: float | None
    gpus: int | None
    loras: tuple[tuple[str, float], ...]
    """(name in the list, strength)."""

    @classmethod
    def of(cls, values: tuple[Any, ...]) -> Self:
        """What the components say, the names of the LoRAs and their strengths last."""
        names = [name for name in cls.__slots__ if name != "loras"]
        fixed, rest = values[: len(names)], values[len(names) :]
        loras = tuple((name, strength) for name, strength in zip(rest[::2], rest[1::2], strict=True) if name)
        return cls(**dict(zip(names, fixed, strict=True)), loras=loras)


ReadClip = Callable[[str], tuple[np.ndarray, float]]


def known_model(workshop: Workshop, model: ModelConfig) -> Known:
    """The model in use; of one that is not loaded its configuration is read, of one not fetched the published one."""
    bundle = workshop.loaded(model)
    local = model.source == TINY or Path(model.source).is_dir()
    loras = {
        "has_distilled": not local or _has(model.source, DISTILLED_LORA),
        "has_refinement": not local or _has(model.source, REFINEMENT_LORA),
    }
    if bundle is not None:
        return Known(
            source=model.source, grid=bundle.grid, defaults=bundle.defaults, attention=bundle.attention, **loras
        )
    issues: list[Issue] = []
    shapes = shapes_of(model.source, issues)
    if shapes is None:
        return Known(source=model.source, grid=GridSpec(), defaults=SampleDefaults(), attention=None, **loras)
    try:
        device = resolve_device(model.device)
        attention = resolve_attention(model.attention, shapes.dit, device, resolve_dtype(model.dtype, device))
    except StudioError:
        attention = None
    return Known(source=model.source, grid=shapes.grid, defaults=shapes.defaults, attention=attention, **loras)


def requests_of(
    asked: Asked, known: Known, loras: Mapping[str, Path], read_clip: ReadClip, w: Words
) -> list[SampleRequest]:
    """What the form asks for: one request, or a group of them to be compared. Raises StudioError."""
    if asked.mode == "picture" and asked.frame is None:
        raise StudioError(w("sample.no_frame"), w("sample.no_frame_remedy"))
    if asked.mode == "clip" and asked.clip is None and asked.again is None:
        raise StudioError(w("sample.no_clip"), w("sample.no_clip_remedy"))
    if not (asked.prompt or "").strip():
        raise StudioError(w("sample.no_prompt"), w("sample.no_prompt_remedy"))
    request = draft_of(asked, loras, read_clip, w)
    settings = resolve_settings(request, known)
    request = replace(request, preview_steps=preview_steps(settings.num_inference_steps))
    if request.clip is not None and request.refinement == "none" and request.clip.nbytes > CLIP_BYTES:
        request = replace(request, clip=resize_frames(request.clip, settings.height, settings.width))
    return variants_of(request, asked, w)


def variants_of(request: SampleRequest, asked: Asked, w: Words) -> list[SampleRequest]:
    """The request, or the group that the form wants to see of it. Raises StudioError."""
    if asked.comparison == "lora":
        return compared(lora_variants(request))
    if asked.comparison == "strengths":
        return compared(strength_variants(request, _strengths(asked, w)))
    if asked.comparison == "attention":
        return compared(attention_variants(request))
    return [request]


def draft_of(asked: Asked, loras: Mapping[str, Path], read_clip: ReadClip, w: Words) -> SampleRequest:
    """The request as far as the form is filled in. Raises StudioError: something in it cannot be read."""
    clip, fps = None, None
    if asked.mode == "clip":
        clip, fps = asked.again or (read_clip(asked.clip) if asked.clip else (None, None))
    segments = _whole(asked.segments) or 1 if asked.mode in ("clip", "long") else 1
    later = tuple(line.strip() for line in (asked.later or "").splitlines() if line.strip())
    unknown = next((name for name, _ in asked.loras if name not in loras), None)
    if unknown is not None:
        raise StudioError(w("sample.bad_lora"), w("sample.bad_lora_remedy"))
    is_sparse = asked.attention == "sparse"
    return SampleRequest(
        prompt=(asked.prompt or "").strip(),
        start_frame=asked.frame if asked.mode in ("picture", "long") else None,
        clip=clip,
        clip_fps=fps,
        negative_prompt=(asked.negative or "").strip(),
        num_frames=_whole(asked.frames),
        num_inference_steps=_whole(asked.steps),
        height=_whole(asked.height),
        width=_whole(asked.width),
        guidance_scale=asked.guidance or None,
        seed=_whole(asked.seed) or 0,
        schedule="distilled" if asked.way == "distilled" else None,
        loras=tuple(LoraFile(path=loras[name], strength=float(strength)) for name, strength in asked.loras),
        num_segments=segments,
        later_prompts=later[: segments - 1],
        refinement=cast(Refinement, asked.refinement),
        attention=cast(Attention, asked.attention) if asked.attention != "auto" else None,
        sparsity=asked.sparsity / 100 if is_sparse and asked.sparsity else None,
    )


def plan_lines(asked: Asked, known: Known, request: SampleRequest, settings: SampleSettings, w: Words) -> list[str]:
    """What will be rendered, in a few words each."""
    overlap = request.num_overlap_frames
    frames = settings.num_frames + (request.num_segments - 1) * (settings.num_frames - overlap)
    lines = [w("sample.plan_frames", frames=frames, width=settings.width, height=settings.height)]
    lines.append(w("sample.plan_seconds", seconds=w.number(frames / known.defaults.fps, 1)))
    if request.num_segments > 1:
        lines.append(w("sample.plan_segments", n=request.num_segments))
    lines.append(w("sample.done_steps", steps=settings.num_inference_steps))
    lines.append(w("sample.done_guidance", guidance=f"{settings.guidance_scale:g}"))
    if (asked.gpus or 1) > 1:
        lines.append(w("gpus.sample_plan", n=asked.gpus))
    if request.refinement != "none" and asked.comparison != "attention":
        height, width = refined_size(settings.height, settings.width, known)
        fps = known.defaults.fps * (2 if request.refinement == "space and time" else 1)
        lines.append(w("sample.plan_refined", width=width, height=height, fps=f"{fps:g}"))
    return lines


def attention_got(asked: Asked, known: Known, request: SampleRequest, settings: SampleSettings) -> str | None:
    """What attention the video will get and why, in the words of the core; None where that is not known yet."""
    if known.attention is None:
        return None
    choice = replace(known.attention, setting=request.attention or known.attention.setting)
    if request.sparsity is not None:
        choice = replace(choice, sparsity=request.sparsity)
    grid = known.grid.token_grid(settings.num_frames, settings.height, settings.width)
    held = 1 if request.start_frame is not None else BLOCK_LATENTS if asked.mode == "clip" else 0
    return choice.resolve(Grid(max(1, grid.t - held), grid.h, grid.w), grid).reason


def advice(settings: SampleSettings, w: Words) -> list[str]:
    """What the guide says of such settings."""
    if settings.guidance_scale > GUIDANCE_MOST:
        return [w("sample.advice_guidance", most=f"{GUIDANCE_MOST:g}", keeps=w.number(float(GUIDANCE_KEEPS), 1))]
    return []


def _strengths(asked: Asked, w: Words) -> list[float]:
    """`0, 0.5, 1`, or `0; 0,5; 1` where a comma is the decimal point."""
    text = (asked.strengths or "").strip()
    separators = r"[;\s]+" if ";" in text else r"[,\s]+"
    try:
        found = [float(part.replace(",", ".")) for part in re.split(separators, text)]
    except ValueError:
        found = []
    if not 2 <= len(found) <= MOST or not all(math.isfinite(strength) for strength in found):
        raise StudioError(w("sample.bad_strengths", most=MOST), w("sample.bad_strengths_remedy"))
    return found


def _whole(value: float | None) -> int | None:
    """0 and nothing mean the model's own."""
    return int(value) if value else None


def _has(source: str, name: str) -> bool:
    try:
        published_lora(source, name)
    except CheckpointError:
        return False
    return True
