"""Flow matching: noise levels, the noisy sample, the velocity target, guidance.

The sign, in one place: a sample is x = (1 - sigma) * clean + sigma * noise, and the network predicts the velocity
clean - noise. diffusers' Euler scheduler steps along noise - clean, so samplers negate the prediction.
Source: LongCat-Video technical report, equations 19 and 20, and its pipelines.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

TIMESTEPS = 1000.0
"""A timestep is sigma times this."""

SMALLEST_SIGMA = 0.001
"""Last unshifted noise level before zero (published sampling loop)."""

DISTILL_BASE_STEPS = 50
"""Unshifted grid that the distilled schedule picks from (published `use_distill`)."""

HALFWAY = 500.0
"""Timestep at which refinement begins (published `t_thresh` 0.5), and the steps of `detailed` become even."""

DETAIL_STEPS = 10
"""Even steps of `detailed` (published `enhance_hf`)."""

Schedule = Literal["standard", "distilled", "detailed", "refinement"]


def shift_sigma(sigma: torch.Tensor, shift: float) -> torch.Tensor:
    """shift * sigma / (1 + (shift - 1) * sigma); published shift 12."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def add_noise(clean: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """(1 - sigma) * clean + sigma * noise; `sigma` broadcasts against both."""
    return (1 - sigma) * clean + sigma * noise


def velocity_target(clean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """What the network learns to predict: clean - noise."""
    return clean - noise


def set_schedule(scheduler: FlowMatchEulerDiscreteScheduler, num_steps: int, schedule: Schedule = "standard") -> int:
    """Gives the scheduler the published noise levels, ending at 0; returns how many steps they make.

    - `standard`: sigma evenly from 1 to 0.001 in `num_steps`, then shifted.
    - `distilled`: `num_steps` of a grid of 50, for the distilled LoRA (16 steps), then shifted.
    - `detailed`: the standard ones above timestep 500, then 500, 450, ..., 50: more steps for what is fine. Published
      as `enhance_hf`, for continuations; 56 steps of 50.
    - `refinement`: 500, then the standard ones below it: 5 steps of 50.

    Source: `get_timesteps_sigmas`, `generate_vc` and `generate_refine` of the published pipeline.
    """
    if schedule == "distilled":
        base = [(i + 1) / DISTILL_BASE_STEPS for i in reversed(range(DISTILL_BASE_STEPS))]
        sigmas = [base[i * DISTILL_BASE_STEPS // num_steps] for i in range(num_steps)]
    else:
        sigmas = torch.linspace(1, SMALLEST_SIGMA, num_steps).tolist()
    scheduler.set_timesteps(sigmas=sigmas)
    timesteps = cast(torch.Tensor, scheduler.timesteps)
    if schedule == "detailed":
        tail = torch.linspace(HALFWAY, 0, DETAIL_STEPS + 1)[:-1]
        _set_timesteps(scheduler, torch.cat((timesteps[timesteps > HALFWAY], tail)))
    elif schedule == "refinement":
        _set_timesteps(scheduler, torch.cat((torch.tensor([HALFWAY]), timesteps[timesteps < HALFWAY])))
    return len(cast(torch.Tensor, scheduler.timesteps))


def _set_timesteps(scheduler: FlowMatchEulerDiscreteScheduler, timesteps: torch.Tensor) -> None:
    """These very timesteps, not shifted again."""
    scheduler.timesteps = cast(torch.IntTensor, timesteps)
    scheduler.sigmas = torch.cat((timesteps / TIMESTEPS, torch.zeros(1)))


def guide(prompt: torch.Tensor, negative: torch.Tensor, scale: float, held: torch.Tensor | None = None) -> torch.Tensor:
    """Guided velocity with the optimised scale (CFG-zero), per sample, for any batch size.

    Args:
        prompt: velocity under the prompt, [B, ...].
        negative: velocity under the negative prompt, [B, ...].
        scale: guidance scale.
        held: velocity of the clean frames, [B or 1, ...], the same under both prompts; the published scale is
            taken over the whole prediction, these frames included.

    Source: s = <v_c, v_u> / (|v_u|^2 + 1e-8); v = s * v_u + g * (v_c - s * v_u) (published `optimized_scale`).
    """
    batch = prompt.shape[0]
    along = (prompt.flatten(1) * negative.flatten(1)).sum(1)
    square = negative.flatten(1).pow(2).sum(1)
    if held is not None:
        extra = held.flatten(1).pow(2).sum(1).expand(batch)
        along, square = along + extra, square + extra
    best = (along / (square + 1e-8)).view(batch, *[1] * (prompt.dim() - 1))
    return best * negative + scale * (prompt - best * negative)
