"""From a start frame and a prompt to an mp4.

Letters: B batch, C channels, T H W latents or frames and pixels.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from studio.core.data.decode import resize_frames
from studio.core.errors import ConfigError
from studio.core.events import DenoiseStep, SampleDone, SampleEvent
from studio.core.model.load import ModelBundle
from studio.core.model.lora import lora_applied
from studio.core.model.memory import memory_errors
from studio.core.model.vae import decode_latents, encode_video, frames_to_video, video_to_frames
from studio.core.sample.denoise import denoise
from studio.core.sample.room import has_room_for_both, room_for_decoding, room_for_sample
from studio.core.sample.video import make_folder, write_video
from studio.core.types import Bucket

MAX_EDGE = 4096
"""Pixels; the largest published bucket has 2048."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRequest:
    """What to render; None in a field means the checkpoint's own default."""

    prompt: str
    start_frame: np.ndarray
    """uint8 [H, W, 3], any size: scaled to cover and centre-cropped."""
    negative_prompt: str = ""
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    seed: int = 0
    lora: Path | None = None
    lora_strength: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSettings:
    """A request with every default filled in."""

    height: int
    width: int
    num_frames: int
    num_inference_steps: int
    guidance_scale: float


def resolve_settings(request: SampleRequest, bundle: ModelBundle) -> SampleSettings:
    """Defaults filled in, a landscape default turned for a portrait start frame, and everything checked.

    Raises:
        ConfigError: a size or frame count that the model cannot take; the nearest that it can is named.
    """
    defaults = bundle.defaults
    height, width = request.height, request.width
    if height is None or width is None:
        height, width = defaults.height, defaults.width
        if request.start_frame.shape[0] > request.start_frame.shape[1]:
            height, width = max(height, width), min(height, width)
    num_frames = request.num_frames if request.num_frames is not None else defaults.num_frames
    num_steps = request.num_inference_steps if request.num_inference_steps is not None else defaults.num_inference_steps
    guidance = request.guidance_scale if request.guidance_scale is not None else defaults.guidance_scale
    unit = bundle.grid.pixel_multiple
    if not bundle.grid.is_legal_size(height, width):
        near = [max(unit, round(side / unit) * unit) for side in (height, width)]
        raise ConfigError(
            f"The size {height}x{width} (height x width) does not fit: both must be multiples of {unit}.",
            f"Use {near[0]}x{near[1]}.",
        )
    if max(height, width) > MAX_EDGE:
        raise ConfigError(f"The size {height}x{width} is beyond what the model can do.", f"Stay within {MAX_EDGE} px.")
    shortest = 1 + bundle.grid.temporal_stride
    if num_frames < shortest or not bundle.grid.is_legal_frame_count(num_frames):
        floor = max(shortest, bundle.grid.floor_frame_count(num_frames))
        raise ConfigError(
            f"{num_frames} frames do not fit: the model takes 4k+1 frames, {shortest} or more.",
            f"Use {floor} or {floor + bundle.grid.temporal_stride}.",
        )
    if num_steps < 1:
        raise ConfigError(f"{num_steps} steps render nothing.", "Use 1 step or more.")
    if not 0 <= request.seed < 2**63:
        raise ConfigError(f"The seed {request.seed} is out of range.", "Use a whole number from 0 to 2^63 - 1.")
    return SampleSettings(
        height=height,
        width=width,
        num_frames=num_frames,
        num_inference_steps=num_steps,
        guidance_scale=guidance,
    )


def sample(
    request: SampleRequest, bundle: ModelBundle, out: Path, *, should_stop: Callable[[], bool] = lambda: False
) -> Iterator[SampleEvent]:
    """Renders `request` with the LoRA that it names, or with none. See `render`. Raises AdapterError too."""
    said = "The device ran out of memory when the LoRA was put on."
    with (
        bundle.lock,
        memory_errors(said, lambda: room_for_sample(bundle, _size(resolve_settings(request, bundle)))),
        lora_applied(bundle.dit, request.lora, request.lora_strength),
    ):
        yield from render(request, bundle, out, should_stop=should_stop)


def render(
    request: SampleRequest, bundle: ModelBundle, out: Path, *, should_stop: Callable[[], bool] = lambda: False
) -> Iterator[SampleEvent]:
    """Renders `request` with the model as it stands and writes `out`; a stop between two steps writes nothing.

    The start frame's latent is encoded once and stands at the front of every step, bit for bit. Noise comes from a CPU
    generator, so a seed means the same video on every device up to rounding.

    Raises:
        OutOfMemory: the device has too little memory; says the cheapest change that fits.
    """
    settings = resolve_settings(request, bundle)
    size = _size(settings)
    shown = f"a video of {size.num_frames} frames of {size.height}x{size.width}"
    make_folder(out.parent)
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(request.seed)
    image = resize_frames(request.start_frame, settings.height, settings.width)
    said = f"The device ran out of memory while {shown} was rendered."
    with memory_errors(said, lambda: room_for_sample(bundle, size)):
        held = encode_video(bundle.vae, frames_to_video(image[None]), generator)
        grid = bundle.grid.latent_grid(settings.num_frames, settings.height, settings.width)
        noise = torch.randn(1, held.shape[1], grid.t, grid.h, grid.w, generator=generator).to(bundle.device)
        text = bundle.prompt_encoder
        prompt, negative = text.encode([request.prompt]), text.encode([request.negative_prompt])
        is_batched = settings.guidance_scale <= 1 or has_room_for_both(bundle, size)
        latents = held
        tick = time.perf_counter()
        loop = denoise(
            bundle.dit,
            bundle.scheduler,
            noise=noise,
            held=held,
            prompt=prompt,
            negative=negative,
            num_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            is_batched=is_batched,
        )
        for step, latents in enumerate(loop, start=1):  # noqa: B007 the last latents are the video
            if bundle.device.type == "cuda":
                # Queued work would make a bar run ahead of what is done.
                torch.cuda.synchronize(bundle.device)
            now = time.perf_counter()
            yield DenoiseStep(step=step, num_steps=settings.num_inference_steps, seconds=now - tick)
            tick = now
            if should_stop():
                return
    said = f"The device ran out of memory while {shown} was decoded."
    with memory_errors(said, lambda: room_for_decoding(bundle, size)):
        frames = video_to_frames(decode_latents(bundle.vae, latents)[0])
    seconds = time.perf_counter() - started
    notes = describe(request, settings, bundle, seconds, is_batched=is_batched)
    write_video(out, frames, bundle.defaults.fps, notes)
    used = bundle.attention_of(settings.num_frames, settings.height, settings.width)
    yield SampleDone(
        path=out,
        seconds=seconds,
        attention=used.kind,
        attention_reason=used.reason,
        attention_sparsity=used.sparsity,
        attention_block=used.block,
        is_batched=is_batched,
    )


def _size(settings: SampleSettings) -> Bucket:
    return Bucket(num_frames=settings.num_frames, height=settings.height, width=settings.width)


def describe(
    request: SampleRequest, settings: SampleSettings, bundle: ModelBundle, seconds: float, *, is_batched: bool
) -> dict[str, object]:
    """What the video carries: enough to render it again."""
    one_by_one = {} if is_batched else {"guidance_batched": False}
    used = bundle.attention_of(settings.num_frames, settings.height, settings.width)
    return {
        "model": bundle.source,
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "start_frame_sha256": hashlib.sha256(request.start_frame.tobytes()).hexdigest(),
        "height": settings.height,
        "width": settings.width,
        "num_frames": settings.num_frames,
        "num_inference_steps": settings.num_inference_steps,
        "guidance_scale": settings.guidance_scale,
        "seed": request.seed,
        "lora": request.lora.name if request.lora else None,
        "lora_strength": request.lora_strength if request.lora else None,
        "attention": used.kind,
        "attention_reason": used.reason,
        "attention_sparsity": used.sparsity,
        "attention_block": used.block,
        "device": str(bundle.device),
        "dtype": str(bundle.dtype).removeprefix("torch."),
        "seconds": round(seconds, 1),
        **one_by_one,
    }
