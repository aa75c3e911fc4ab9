"""From a start frame, a clip or nothing, and a prompt, to an mp4.

Letters: B batch, C channels, T H W latents or frames and pixels.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from studio.core.config import Attention
from studio.core.data.decode import resize_frames
from studio.core.errors import DeviceError
from studio.core.events import DenoiseStep, SampleDone, SampleEvent, SamplePhase, SampleStarted
from studio.core.geometry import Grid
from studio.core.model.attention import AttentionUsed
from studio.core.model.flow import Schedule, set_schedule
from studio.core.model.load import ModelBundle
from studio.core.model.lora import LoraFile, loras_applied
from studio.core.model.memory import memory_errors
from studio.core.model.published_loras import DISTILLED_LORA, REFINEMENT_LORA, published_lora
from studio.core.model.text import TextCondition
from studio.core.model.vae import decode_latents, encode_video, frames_to_video, video_to_frames
from studio.core.sample.denoise import Denoised, denoise
from studio.core.sample.figures import video_figures
from studio.core.sample.preview import LatentColors, latent_colors
from studio.core.sample.refine import enlarge, known_latents, plan_padding, start_latents
from studio.core.sample.request import (
    REFINEMENT_STEPS,
    SampleRequest,
    SampleSettings,
    refined_size,
    resolve_settings,
    taken_frames,
)
from studio.core.sample.room import has_room_for_both, room_for_decoding, room_for_sample
from studio.core.sample.video import make_folder, write_video
from studio.core.types import Bucket

OnStep = Callable[[Denoised], torch.Tensor]
"""Gets every denoising step, and gives the latents to go on with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendered:
    """What was rendered, before it is a file."""

    segments: tuple[np.ndarray, ...]
    """uint8 [T, H, W, 3] each; those after the first begin with frames of the one before, the first with those of the
    clip that it goes on from."""
    before: np.ndarray
    """uint8 [T, H, W, 3]: the frames of that clip, at the size and rate of the segments; empty without a clip."""
    overlap: int
    """Frames that a segment has in common with what it goes on from."""
    fps: float
    attention: AttentionUsed
    """Of the first segment."""
    is_batched: bool = True
    latents: torch.Tensor | None = None
    """fp32 [1, C, T, H, W] of the last segment; None after refinement."""

    @property
    def frames(self) -> np.ndarray:
        """uint8 [T, H, W, 3]: all of it, each frame once."""
        first = self.overlap if len(self.before) else 0
        rest = (segment[self.overlap :] for segment in self.segments[1:])
        return np.concatenate((self.before, self.segments[0][first:], *rest))


def sample(
    request: SampleRequest, bundle: ModelBundle, out: Path, *, should_stop: Callable[[], bool] = lambda: False
) -> Iterator[SampleEvent]:
    """Renders `request` with the LoRAs that it names, or with none, and refines it if asked to.

    A stop between two steps writes nothing. Nothing of the model is changed afterwards.

    Raises:
        ConfigError: the request asks for what the model cannot do.
        AdapterError: a LoRA cannot be used.
        CheckpointError: the checkpoint lacks the published LoRA that the request needs.
        DeviceError: sparse attention does not run here.
        OutOfMemory: the device has too little memory; says the cheapest change that fits.
        MediaError: the video cannot be written.
    """
    started = time.perf_counter()
    with bundle.lock:
        rendered = yield from frames_of(request, bundle, should_stop=should_stop)
        if rendered is not None:
            yield from write_rendered(request, bundle, rendered, out, time.perf_counter() - started)


def render(
    request: SampleRequest, bundle: ModelBundle, out: Path | None, *, should_stop: Callable[[], bool] = lambda: False
) -> Iterator[SampleEvent]:
    """Renders `request` with the model as it stands, its LoRAs and refinement left aside, as `sample` does; writes
    nothing where there is no `out`.
    """
    started = time.perf_counter()
    rendered = yield from _base_pass(replace(request, refinement="none"), bundle, should_stop, None)
    if rendered is not None and out is not None:
        yield from write_rendered(request, bundle, rendered, out, time.perf_counter() - started)


def frames_of(
    request: SampleRequest,
    bundle: ModelBundle,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    on_step: OnStep | None = None,
    generator: torch.Generator | None = None,
) -> Generator[SampleEvent, None, Rendered | None]:
    """Yields the events of `sample` up to the file, and returns what was rendered; None when it was stopped.

    The caller holds `bundle.lock`. `generator` lives on the CPU; None: one of the request's seed. Raises as `sample`.
    """
    settings = resolve_settings(request, bundle)
    generator = generator or torch.Generator().manual_seed(request.seed)
    is_refined = request.refinement != "none"
    refining = (LoraFile(path=published_lora(bundle.source, REFINEMENT_LORA)),) if is_refined else ()
    said = "The device ran out of memory when the LoRA was put on."
    with (
        attention_set(bundle, request.attention, request.sparsity) as chosen,
        memory_errors(said, lambda: room_for_sample(bundle, settings.size)),
        loras_applied(bundle.dit, loras_of(request, bundle)),
    ):
        rendered = yield from _base_pass(request, chosen, should_stop, on_step, generator)
    if rendered is None or not is_refined:
        return rendered
    with (
        attention_set(bundle, refining_attention(request, bundle), request.sparsity) as chosen,
        memory_errors(said, lambda: room_for_sample(bundle, settings.size)),
        loras_applied(bundle.dit, refining),
    ):
        return (yield from _refine(request, rendered, chosen, should_stop, on_step, generator))


def loras_of(request: SampleRequest, bundle: ModelBundle) -> tuple[LoraFile, ...]:
    """The request's LoRAs; the distilled one first where its schedule is asked for. Raises CheckpointError."""
    if request.schedule != "distilled":
        return request.loras
    return (LoraFile(path=published_lora(bundle.source, DISTILLED_LORA)), *request.loras)


def refining_attention(request: SampleRequest, bundle: ModelBundle) -> Attention | None:
    """Sparse, as published, unless the request says otherwise or its kernels do not run on this device."""
    runs = bundle.attention.refusal is None or bundle.device.type == "cpu"
    return request.attention or ("sparse" if runs else None)


@contextmanager
def attention_set(
    bundle: ModelBundle, setting: Attention | None, sparsity: float | None = None
) -> Iterator[ModelBundle]:
    """Inside, the model attends as `setting` says, or as it was loaded; gives the bundle that says so.

    Raises:
        DeviceError: sparse was asked for where it does not run.
    """
    known = bundle.attention
    choice = replace(known, setting=setting or known.setting, sparsity=known.sparsity if sparsity is None else sparsity)
    if choice == known:
        yield bundle
        return
    if setting == "sparse" and choice.refusal is not None and bundle.device.type != "cpu":
        raise DeviceError(
            f"Sparse attention was asked for, but it does not run here: {choice.refusal}.",
            "Use auto or dense attention.",
        )
    bundle.dit.set_attention(choice)
    try:
        yield replace(bundle, attention=choice)
    finally:
        bundle.dit.set_attention(bundle.attention)


@dataclass(kw_only=True, slots=True)
class _Loop:
    """Runs denoising loops one after another, and counts their steps through the whole sample."""

    bundle: ModelBundle
    num_steps: int
    """Of the whole sample."""
    num_segments: int
    preview_steps: int
    should_stop: Callable[[], bool]
    on_step: OnStep | None
    done: int = 0

    def run(
        self,
        noise: torch.Tensor,
        held: torch.Tensor | None,
        texts: tuple[TextCondition, TextCondition],
        size: Bucket,
        settings: SampleSettings,
        schedule: Schedule,
        segment: int,
        *,
        guides_over_held: bool = True,
        is_batched: bool = True,
    ) -> Generator[SampleEvent, None, torch.Tensor | None]:
        """Yields its steps and returns the last latents [1, C, T, H, W]; None when it was stopped."""
        bundle, latest, latents = self.bundle, list[Denoised](), noise
        is_refining = schedule == "refinement"

        def on_step(denoised: Denoised) -> torch.Tensor:
            latest[:] = [denoised]
            return denoised.latents if self.on_step is None else self.on_step(denoised)

        tick = time.perf_counter()
        loop = denoise(
            bundle.dit,
            bundle.scheduler,
            noise=noise,
            held=held,
            prompt=texts[0],
            negative=texts[1],
            num_steps=REFINEMENT_STEPS if is_refining else settings.num_inference_steps,
            guidance_scale=1.0 if is_refining else settings.guidance_scale,
            schedule=schedule,
            guides_over_held=guides_over_held,
            is_batched=is_batched,
            on_step=on_step,
        )
        for latents in loop:  # noqa: B007 the last latents are the video
            if bundle.device.type == "cuda":
                # Queued work would make a bar run ahead of what is done.
                torch.cuda.synchronize(bundle.device)
            now = time.perf_counter()
            self.done += 1
            yield DenoiseStep(
                step=self.done,
                num_steps=self.num_steps,
                seconds=now - tick,
                segment=segment,
                num_segments=self.num_segments,
                is_refining=is_refining,
                preview=self._preview(latest.pop(), held),
            )
            tick = time.perf_counter()
            if self.should_stop():
                return None
        return latents

    def _preview(self, denoised: Denoised, held: torch.Tensor | None) -> np.ndarray | None:
        if not self.preview_steps or (denoised.step % self.preview_steps and denoised.step < denoised.num_steps):
            return None
        if "latent_colors" not in self.bundle.kept:
            self.bundle.kept["latent_colors"] = latent_colors(self.bundle.vae)
        colors: LatentColors = self.bundle.kept["latent_colors"]
        clean = denoised.clean if held is None else torch.cat((held.to(denoised.clean), denoised.clean), dim=2)
        return colors.paint(clean[0])


def _base_pass(
    request: SampleRequest,
    bundle: ModelBundle,
    should_stop: Callable[[], bool],
    on_step: OnStep | None,
    generator: torch.Generator | None = None,
) -> Generator[SampleEvent, None, Rendered | None]:
    """All segments, with the model as it stands.

    A start frame's latent, or the latents of a clip's last frames, are encoded once and stand at the front of every
    step, bit for bit. Noise comes from a CPU generator, so a seed means the same video on every device up to rounding.
    """
    settings = resolve_settings(request, bundle)
    size, overlap = settings.size, request.num_overlap_frames
    generator = generator or torch.Generator().manual_seed(request.seed)
    shown = f"a video of {size.num_frames} frames of {size.height}x{size.width}"
    said = f"The device ran out of memory while {shown} was rendered."
    segments: list[np.ndarray] = []
    before = np.zeros((0, size.height, size.width, 3), np.uint8)
    schedules = _schedules(settings, request.num_segments)
    loop = _Loop(
        bundle=bundle,
        num_steps=sum(set_schedule(bundle.scheduler, settings.num_inference_steps, schedule) for schedule in schedules)
        + (
            set_schedule(bundle.scheduler, REFINEMENT_STEPS, "refinement")
            * len(schedules)
            * (request.refinement != "none")
        ),
        num_segments=request.num_segments,
        preview_steps=request.preview_steps,
        should_stop=should_stop,
        on_step=on_step,
    )
    yield _started(request, settings, bundle, loop.num_steps)
    attention, latents, are_batched = None, None, True
    for number, (prompt, schedule) in enumerate(zip(request.prompts, schedules, strict=True), start=1):
        yield SamplePhase(name="encode", segment=number, num_segments=request.num_segments)
        with memory_errors(said, lambda: room_for_sample(bundle, size)):
            if request.clip is not None and number == 1:
                before = resize_frames(taken_frames(request, bundle), size.height, size.width)
            known = segments[-1][-overlap:] if segments else before[-overlap:]
            if request.start_frame is not None and number == 1:
                known = resize_frames(request.start_frame, size.height, size.width)[None]
            held = encode_video(bundle.vae, frames_to_video(known), generator) if len(known) else None
            grid = bundle.grid.latent_grid(size.num_frames, size.height, size.width)
            channels = bundle.dit.config["in_channels"]
            noise = torch.randn(1, channels, grid.t, grid.h, grid.w, generator=generator).to(bundle.device)
            texts = bundle.prompt_encoder.encode([prompt]), bundle.prompt_encoder.encode([request.negative_prompt])
            num_held = 0 if held is None else held.shape[2]
            attention = attention or attention_used(bundle, size, num_held)
            is_batched = settings.guidance_scale <= 1 or bundle.processes.all_agree(
                has_room_for_both(bundle, size, max(1, num_held))
            )
            are_batched = are_batched and is_batched
            yield SamplePhase(name="denoise", segment=number, num_segments=request.num_segments)
            latents = yield from loop.run(
                noise, held, texts, size, settings, schedule, number,
                guides_over_held=len(known) == 1, is_batched=is_batched,
            )  # fmt: skip
        if latents is None:
            return None
        yield SamplePhase(name="decode", segment=number, num_segments=request.num_segments)
        segments.append(_decoded(bundle, latents, size, shown))
    return Rendered(
        segments=tuple(segments),
        before=before,
        overlap=overlap,
        fps=bundle.defaults.fps,
        attention=attention or attention_used(bundle, size, 0),
        is_batched=are_batched,
        latents=latents,
    )


def _refine(
    request: SampleRequest,
    base: Rendered,
    bundle: ModelBundle,
    should_stop: Callable[[], bool],
    on_step: OnStep | None,
    generator: torch.Generator,
) -> Generator[SampleEvent, None, Rendered | None]:
    """Every segment of `base` again at the refined size, each after the last frames of the one before.

    The first goes after the start frame or the clip, at the refined size, where there is one. A long video is refined
    without a prompt, as published.
    """
    settings = resolve_settings(request, bundle)
    height, width = refined_size(settings.height, settings.width, bundle)
    times = 2 if request.refinement == "space and time" else 1
    overlap, prompt = base.overlap * times, request.prompt if len(base.segments) == 1 else ""
    shown = f"a video of {settings.num_frames * times} frames of {height}x{width}"
    said = f"The device ran out of memory while {shown} was rendered."
    per_segment = set_schedule(bundle.scheduler, REFINEMENT_STEPS, "refinement")
    before = np.zeros((0, height, width, 3), np.uint8)
    known = before
    if request.start_frame is not None:
        known = request.start_frame[None]
    elif request.clip is not None:
        before = resize_frames(taken_frames(request, bundle, times=times), height, width)
        known = before[-overlap:]
    total = sum(
        set_schedule(bundle.scheduler, settings.num_inference_steps, kind)
        for kind in _schedules(settings, len(base.segments))
    )
    loop = _Loop(
        bundle=bundle,
        num_steps=total + per_segment * len(base.segments),
        num_segments=len(base.segments),
        preview_steps=request.preview_steps,
        should_stop=should_stop,
        on_step=on_step,
        done=total,
    )
    segments: list[np.ndarray] = []
    attention = None
    for number, frames in enumerate(base.segments, start=1):
        yield SamplePhase(name="enlarge", segment=number, num_segments=len(base.segments))
        num_frames = len(frames) * times
        padding = plan_padding(num_frames, len(known), stride=bundle.grid.temporal_stride)
        latent_frames = padding.cond_latents + padding.noise_latents
        size = Bucket(num_frames=1 + (latent_frames - 1) * bundle.grid.temporal_stride, height=height, width=width)
        with memory_errors(said, lambda: room_for_sample(bundle, settings.size)):
            larger = enlarge(frames, height, width, num_frames, bundle.device)
            start = start_latents(bundle, larger, padding, generator)
            del larger
            held = known_latents(bundle, known, height, width, padding, generator) if len(known) else None
            text = bundle.prompt_encoder.encode([prompt])
            attention = attention or attention_used(bundle, size, padding.cond_latents)
            yield SamplePhase(name="refine", segment=number, num_segments=len(base.segments))
            latents = yield from loop.run(start, held, (text, text), size, settings, "refinement", number)
        if latents is None:
            return None
        yield SamplePhase(name="decode", segment=number, num_segments=len(base.segments))
        decoded = _decoded(bundle, latents, size, shown)
        segments.append(decoded[padding.front : padding.front + num_frames])
        known = segments[-1][-overlap:]
    return Rendered(
        segments=tuple(segments),
        before=before,
        overlap=overlap,
        fps=base.fps * times,
        attention=attention or base.attention,
        is_batched=base.is_batched,
    )


def _schedules(settings: SampleSettings, num_segments: int) -> list[Schedule]:
    """Of every segment."""
    later: list[Schedule] = [settings.later_schedule] * (num_segments - 1)
    return [settings.schedule, *later]


def _decoded(bundle: ModelBundle, latents: torch.Tensor, size: Bucket, shown: str) -> np.ndarray:
    """uint8 [T, H, W, 3]. Raises OutOfMemory."""
    said = f"The device ran out of memory while {shown} was decoded."
    with memory_errors(said, lambda: room_for_decoding(bundle, size)):
        return video_to_frames(decode_latents(bundle.vae, latents)[0])


def attention_used(bundle: ModelBundle, size: Bucket, num_held: int) -> AttentionUsed:
    """The attention of the noisy tokens, which follow `num_held` clean latent frames."""
    grid = bundle.grid.token_grid(size.num_frames, size.height, size.width)
    return bundle.attention.resolve(Grid(grid.t - num_held, grid.h, grid.w), grid)


def _started(request: SampleRequest, settings: SampleSettings, bundle: ModelBundle, num_steps: int) -> SampleStarted:
    is_refined = request.refinement != "none"
    height, width = settings.height, settings.width
    return SampleStarted(
        height=height,
        width=width,
        num_frames=settings.num_frames,
        num_segments=request.num_segments,
        num_steps=num_steps,
        guidance_scale=settings.guidance_scale,
        schedule=settings.schedule,
        crop=settings.crop,
        refined_size=refined_size(height, width, bundle) if is_refined else None,
    )


def write_rendered(
    request: SampleRequest, bundle: ModelBundle, rendered: Rendered, out: Path, seconds: float
) -> Iterator[SampleEvent]:
    """Writes the mp4 with the settings inside, and says so; `seconds` went into rendering. Raises MediaError."""
    yield SamplePhase(name="write", segment=request.num_segments, num_segments=request.num_segments)
    make_folder(out.parent)
    frames, start = rendered.frames, request.start_frame
    figures = video_figures(frames, None if start is None else resize_frames(start, *frames.shape[1:3]))
    notes = describe(request, bundle, rendered, seconds)
    notes["figures"] = {name: value if value is None else round(value, 3) for name, value in asdict(figures).items()}
    write_video(out, frames, rendered.fps, notes)
    used = rendered.attention
    yield SampleDone(
        path=out,
        seconds=seconds,
        attention=used.kind,
        attention_reason=used.reason,
        attention_sparsity=used.sparsity,
        attention_block=used.block,
        is_batched=rendered.is_batched,
        start_psnr=figures.start_psnr,
        motion=figures.motion,
        is_frozen=figures.is_frozen,
        flicker=figures.flicker,
        color_drift=figures.color_drift,
    )


def describe(request: SampleRequest, bundle: ModelBundle, rendered: Rendered, seconds: float) -> dict[str, object]:
    """What the video carries: enough to render it again. What the request leaves at its default is left out."""
    settings = resolve_settings(request, bundle)
    used, last = rendered.attention, rendered.segments[-1]
    sources = {"start_frame": request.start_frame, "clip": request.clip}
    extra: dict[str, object] = {
        "clip_fps": request.clip_fps,
        "later_prompts": list(request.later_prompts),
        "num_segments": request.num_segments if request.num_segments > 1 else None,
        "num_overlap_frames": rendered.overlap if request.num_segments > 1 or request.is_continued else None,
        "refinement": request.refinement if request.refinement != "none" else None,
        "refined_height": last.shape[1] if request.refinement != "none" else None,
        "refined_width": last.shape[2] if request.refinement != "none" else None,
        "gpus": bundle.processes.count if bundle.processes.count > 1 else None,
        "guidance_batched": None if rendered.is_batched else False,
        "group": request.group or None,
        "label": request.label or None,
        **{f"{name}_sha256": _digest(pixels) for name, pixels in sources.items() if pixels is not None},
    }
    return {
        "model": bundle.source,
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "height": settings.height,
        "width": settings.width,
        "crop": settings.crop,
        "num_frames": settings.num_frames,
        "num_inference_steps": settings.num_inference_steps,
        "guidance_scale": settings.guidance_scale,
        "schedule": settings.schedule,
        "seed": request.seed,
        "loras": [{"file": lora.path.name, "strength": lora.strength} for lora in request.loras],
        "attention": used.kind,
        "attention_reason": used.reason,
        "attention_sparsity": used.sparsity,
        "attention_block": used.block,
        "fps": rendered.fps,
        "device": str(bundle.device),
        "dtype": str(bundle.dtype).removeprefix("torch."),
        "seconds": round(seconds, 1),
        **{name: value for name, value in extra.items() if value not in (None, [])},
    }


def _digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
