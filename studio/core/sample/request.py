"""What to render, and every default of it filled in and checked.

Letters: T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from studio.core.config import Attention
from studio.core.data.decode import cover_box
from studio.core.errors import ConfigError
from studio.core.geometry import GridSpec, round_to_grid
from studio.core.model.flow import Schedule
from studio.core.model.load import SampleDefaults
from studio.core.model.lora import LoraFile
from studio.core.published_buckets import published_size
from studio.core.types import Bucket

MAX_EDGE = 4096
"""Pixels; the largest published bucket has 2048."""
MAX_SEGMENTS = 100
"""Nine minutes at the published size."""
DISTILLED_STEPS = 16
DISTILLED_GUIDANCE = 1.0
"""No guidance: the distilled LoRA has learnt it (published demos)."""
REFINEMENT_STEPS = 50
"""Of the standard schedule, of which the last five run (published `generate_refine`)."""
REFINED_EDGE = 720
OTHER_REFINED_SCALE = 1.5
"""Of checkpoints whose size is none of the published 480p ones; 704 / 480 is about this."""
OVERLAP = 13
"""Frames of a clip that its continuation begins with: four latents (published `num_cond_frames`)."""

PUBLISHED_NEGATIVE_PROMPT = (
    "Bright tones, overexposed, static, blurred details, subtitles, style, works, paintings, images, static, "
    "overall gray, worst quality, low quality, JPEG compression residue, ugly, incomplete, extra fingers, "
    "poorly drawn hands, poorly drawn faces, deformed, disfigured, misshapen limbs, fused fingers, still picture, "
    "messy background, three legs, many people in the background, walking backwards"
)
"""Source: `negative_prompt` of every `run_demo_*.py` of meituan-longcat/LongCat-Video."""

Refinement = Literal["none", "space", "space and time"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRequest:
    """What to render; None in a field means the checkpoint's own default.

    A start frame makes it image-to-video, a clip makes it a continuation, neither text-to-video.
    """

    prompt: str
    start_frame: np.ndarray | None = None
    """uint8 [H, W, 3], any size: scaled to cover and centre-cropped."""
    clip: np.ndarray | None = None
    """uint8 [T, H, W, 3] of a clip to go on from; its last frames condition the new ones."""
    clip_fps: float | None = None
    """Frames per second of `clip`; None: the checkpoint's rate. Of faster ones frames are skipped."""
    negative_prompt: str = ""
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    """Of a segment, those that it begins with included."""
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    schedule: Schedule | None = None
    """None: `detailed` for continuations, else `standard`. `distilled` puts the published distilled LoRA on."""
    seed: int = 0
    loras: tuple[LoraFile, ...] = ()
    num_segments: int = 1
    """Above 1: a long video, in which each segment goes on from the last frames of the one before."""
    later_prompts: tuple[str, ...] = ()
    """Of the second segment and so on; the last one given, or `prompt`, goes for the rest."""
    num_overlap_frames: int = OVERLAP
    """Frames that a continuation has in common with what it goes on from."""
    refinement: Refinement = "none"
    """Renders again at 720p with the published refinement LoRA, and in `space and time` at twice the rate."""
    attention: Attention | None = None
    """None: as the model was loaded."""
    sparsity: float | None = None
    """Share of the key blocks that sparse attention skips; None: the checkpoint's own."""
    preview_steps: int = 0
    """An event every so many steps carries a preview of the frames; 0: none."""
    group: str = ""
    """Videos that are to be compared with each other have the same one."""
    label: str = ""
    """What tells this video from the others of its group, such as `without LoRA` or `0.5`."""

    @property
    def is_continued(self) -> bool:
        """True when the first segment goes on from a clip."""
        return self.clip is not None

    @property
    def prompts(self) -> tuple[str, ...]:
        """Of every segment."""
        given = (self.prompt, *self.later_prompts)
        return tuple(given[min(number, len(given) - 1)] for number in range(self.num_segments))


class SizeRules(Protocol):
    """What a checkpoint says of sizes: a loaded one, or one of which only the configuration was read."""

    @property
    def grid(self) -> GridSpec:
        """Its strides."""
        ...

    @property
    def defaults(self) -> SampleDefaults:
        """Its own size, frames and steps."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSettings:
    """A request with every default filled in."""

    height: int
    width: int
    num_frames: int
    """Of a segment."""
    num_inference_steps: int
    guidance_scale: float
    schedule: Schedule
    """Of the first segment."""
    later_schedule: Schedule
    """Of the segments after it."""
    crop: tuple[float, float, float, float] | None
    """(left, top, right, bottom) of the start frame or clip, in its pixels, that is left; None without one."""

    @property
    def size(self) -> Bucket:
        """Frames and pixels of a segment."""
        return Bucket(num_frames=self.num_frames, height=self.height, width=self.width)


def resolve_settings(request: SampleRequest, bundle: SizeRules) -> SampleSettings:
    """Defaults filled in, the size chosen after the start frame or clip, and everything checked.

    The size is the published 480p bucket whose aspect is nearest; of a checkpoint with another default size that one,
    turned for a portrait.

    Raises:
        ConfigError: what the model cannot take; the nearest that it can is named.
    """
    defaults = bundle.defaults
    picture = request.start_frame if request.clip is None else request.clip[0] if len(request.clip) else None
    shape = None if picture is None else picture.shape
    height, width = request.height, request.width
    if (height is None) != (width is None):
        raise ConfigError("Only one side of the size is given.", "Give height and width, or neither.")
    if height is None or width is None:
        height, width = default_size(defaults, shape, bundle.grid.pixel_multiple)
    is_distilled = request.schedule == "distilled"
    steps = DISTILLED_STEPS if is_distilled else defaults.num_inference_steps
    scale = DISTILLED_GUIDANCE if is_distilled else defaults.guidance_scale
    settings = SampleSettings(
        height=height,
        width=width,
        num_frames=request.num_frames if request.num_frames is not None else defaults.num_frames,
        num_inference_steps=request.num_inference_steps if request.num_inference_steps is not None else steps,
        guidance_scale=request.guidance_scale if request.guidance_scale is not None else scale,
        schedule=request.schedule or ("detailed" if request.is_continued else "standard"),
        later_schedule=request.schedule or "detailed",
        crop=None if shape is None else cover_box(shape[0], shape[1], height, width),
    )
    _check_size(settings, bundle)
    _check_rest(request, settings)
    _check_frames(request, settings, bundle)
    return settings


def default_size(defaults: SampleDefaults, shape: Sequence[int] | None, unit: int) -> tuple[int, int]:
    """(height, width) for a picture of `shape` (height, width, ...), or for none."""
    if shape is None:
        return defaults.height, defaults.width
    if (defaults.height, defaults.width) == (SampleDefaults().height, SampleDefaults().width):
        return published_size(shape[0], shape[1], defaults.height, unit)
    low, high = sorted((defaults.height, defaults.width))
    return (high, low) if shape[0] > shape[1] else (low, high)


def refined_size(height: int, width: int, bundle: SizeRules) -> tuple[int, int]:
    """(height, width) that refinement goes to: the nearest published 720p bucket on the grid of attention blocks."""
    unit = bundle.grid.bucket_alignment
    if (bundle.defaults.height, bundle.defaults.width) == (SampleDefaults().height, SampleDefaults().width):
        return published_size(height, width, REFINED_EDGE, unit)
    return round_to_grid(height * OTHER_REFINED_SCALE, unit), round_to_grid(width * OTHER_REFINED_SCALE, unit)


def _check_size(settings: SampleSettings, bundle: SizeRules) -> None:
    height, width, unit = settings.height, settings.width, bundle.grid.pixel_multiple
    if not bundle.grid.is_legal_size(height, width):
        near = [max(unit, round(side / unit) * unit) for side in (height, width)]
        raise ConfigError(
            f"The size {height}x{width} (height x width) does not fit: both must be multiples of {unit}.",
            f"Use {near[0]}x{near[1]}.",
        )
    if max(height, width) > MAX_EDGE:
        raise ConfigError(f"The size {height}x{width} is beyond what the model can do.", f"Stay within {MAX_EDGE} px.")


def _check_frames(request: SampleRequest, settings: SampleSettings, bundle: SizeRules) -> None:
    num_frames, stride, overlap = settings.num_frames, bundle.grid.temporal_stride, request.num_overlap_frames
    shortest = 1 + stride
    if num_frames < shortest or not bundle.grid.is_legal_frame_count(num_frames):
        floor = max(shortest, bundle.grid.floor_frame_count(num_frames))
        raise ConfigError(
            f"{num_frames} frames do not fit: the model takes 4k+1 frames, {shortest} or more.",
            f"Use {floor} or {floor + stride}.",
        )
    if not request.is_continued and request.num_segments == 1:
        return
    if not bundle.grid.is_legal_frame_count(overlap) or overlap >= num_frames:
        raise ConfigError(
            f"An overlap of {overlap} frames does not fit: it takes 4k+1 frames, fewer than the {num_frames} of a "
            "segment.",
            f"Use {min(OVERLAP, num_frames - stride)}.",
        )
    held = len(taken_frames(request, bundle)) if request.clip is not None else overlap
    if held < overlap:
        raise ConfigError(
            f"The clip has {held} frames at the model's rate of {bundle.defaults.fps:g} a second; "
            f"a continuation begins with {overlap}.",
            "Take a longer clip, or a smaller overlap.",
        )


def _check_rest(request: SampleRequest, settings: SampleSettings) -> None:
    if request.start_frame is not None and request.clip is not None:
        raise ConfigError("There is a start frame and a clip to go on from.", "Give one of them.")
    if settings.num_inference_steps < 1:
        raise ConfigError(f"{settings.num_inference_steps} steps render nothing.", "Use 1 step or more.")
    if not 0 <= request.seed < 2**63:
        raise ConfigError(f"The seed {request.seed} is out of range.", "Use a whole number from 0 to 2^63 - 1.")
    if not 1 <= request.num_segments <= MAX_SEGMENTS:
        raise ConfigError(f"{request.num_segments} segments cannot be rendered.", f"Use 1 to {MAX_SEGMENTS}.")
    if len(request.later_prompts) >= request.num_segments:
        raise ConfigError(
            f"There are {1 + len(request.later_prompts)} prompts for {request.num_segments} segments.",
            "Give one prompt for each segment, or fewer.",
        )
    if request.schedule == "refinement":
        raise ConfigError("The schedule refinement goes on from frames.", "Ask for a refinement instead.")
    if request.sparsity is not None and not 0 <= request.sparsity < 1:
        raise ConfigError(f"A sparsity of {request.sparsity:g} cannot be.", "Give a share from 0 to less than 1.")
    if request.sparsity is not None and request.attention == "dense":
        raise ConfigError("Dense attention has no sparsity.", "Leave the sparsity out, or use sparse attention.")
    if request.clip_fps is not None and not request.clip_fps > 0:
        raise ConfigError(f"A clip of {request.clip_fps} frames per second cannot be.", "Give its rate, or none.")


def taken_frames(request: SampleRequest, bundle: SizeRules, *, times: int = 1) -> np.ndarray:
    """Frames of the clip, uint8 [T, H, W, 3], at about `times` the model's rate: every n-th one.

    Source: `stride = max(1, round(fps / 15))` of the published demos.
    """
    assert request.clip is not None
    fps = request.clip_fps or bundle.defaults.fps
    return request.clip[:: max(1, round(fps / (bundle.defaults.fps * times)))]
