"""The sampling loop: from noise, after clean latents or after none, to the latents of a video.

Letters: B batch, C channels, T H W latents, L text length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from studio.core.model.dit import LongCatVideoTransformer3DModel
from studio.core.model.dit_block import KeyValue
from studio.core.model.flow import Schedule, guide, set_schedule
from studio.core.model.text import TextCondition


@dataclass(frozen=True, kw_only=True, slots=True)
class Denoised:
    """Where a step has led."""

    step: int
    """Counted from 1."""
    num_steps: int
    timestep: float
    """Of the step, 1000 for pure noise."""
    latents: torch.Tensor
    """fp32 [B, C, T, H, W], the noisy frames only."""
    clean: torch.Tensor
    """What the model takes the clean latents for, of that shape: latents + sigma * velocity."""


def denoise(
    dit: LongCatVideoTransformer3DModel,
    scheduler: FlowMatchEulerDiscreteScheduler,
    *,
    noise: torch.Tensor,
    held: torch.Tensor | None,
    prompt: TextCondition,
    negative: TextCondition,
    num_steps: int,
    guidance_scale: float,
    schedule: Schedule = "standard",
    guides_over_held: bool = True,
    is_batched: bool = True,
    on_step: Callable[[Denoised], torch.Tensor] | None = None,
) -> Iterator[torch.Tensor]:
    """Yields the fp32 latents [B, C, T, H, W] after each step; the last ones are the video.

    The clean latents `held` [B or 1, C, n, H, W] stand at the front of every yield, bit for bit. What the model
    computes from them depends on neither noise, prompt nor step (timestep 0, attention to themselves alone, no text),
    so their keys and values are computed once here and reused. Of `noise` [B, C, T, H, W] the first n frames are not
    used. With `held` None all frames are noise (text-to-video).
    Guidance runs when `guidance_scale` is above 1: both prompts in one batch, or one after the other, which takes
    less memory, where `is_batched` is False. Its optimised scale is taken over the whole prediction, as published for
    image-to-video, or over the noisy frames alone (`guides_over_held` False), as published for continuations, whose
    clean frames are cached there too.
    `on_step` gives the latents to go on with, of the noisy frames: `latents` of what it gets, or others.
    """
    num_held = 0 if held is None else held.shape[2]
    latents = noise[:, :, num_held:].float()
    is_guided = guidance_scale > 1
    texts = [negative, prompt] if is_guided else [prompt]
    if is_batched:
        texts = [_joined(texts)]
    cache, held_velocity = None, None
    if held is not None:
        held = held.float().expand(noise.shape[0], -1, -1, -1, -1)
        with torch.no_grad():
            held_velocity, cache = dit(held, torch.zeros(len(held), device=held.device), None, return_kv=True)
        if is_guided and is_batched and len(held) > 1:
            cache = [(k.repeat(2, 1, 1, 1), v.repeat(2, 1, 1, 1)) for k, v in cache]
    guided_over = held_velocity if guides_over_held else None
    set_schedule(scheduler, num_steps, schedule)
    timesteps, sigmas = cast(torch.Tensor, scheduler.timesteps), cast(torch.Tensor, scheduler.sigmas)
    for step, timestep in enumerate(timesteps, start=1):
        with torch.no_grad():
            velocity = torch.cat([_velocity(dit, latents, timestep, text, cache) for text in texts])
            if is_guided:
                uncond, cond = velocity.chunk(2)
                velocity = guide(cond, uncond, guidance_scale, guided_over)
            latents = cast(Any, scheduler).step(-velocity, timestep, latents, return_dict=False)[0]
            if on_step is not None:
                clean = latents + sigmas[step].item() * velocity
                at = timestep.item()
                latents = on_step(
                    Denoised(step=step, num_steps=len(timesteps), timestep=at, latents=latents, clean=clean)
                )
        yield latents if held is None else torch.cat((held, latents), dim=2)


def _joined(texts: Sequence[TextCondition]) -> TextCondition:
    """Several conditions as one batch."""
    return TextCondition(embeds=torch.cat([t.embeds for t in texts]), mask=torch.cat([t.mask for t in texts]))


def _velocity(
    dit: LongCatVideoTransformer3DModel,
    latents: torch.Tensor,
    timestep: torch.Tensor,
    text: TextCondition,
    cache: list[KeyValue] | None,
) -> torch.Tensor:
    """What the model predicts for `latents`, once for each condition in `text`."""
    batch = latents.repeat(len(text.mask) // len(latents), 1, 1, 1, 1)
    at = timestep.to(batch.device).expand(len(batch))
    return dit(batch, at, text.embeds, text.mask, kv_cache=cache)
