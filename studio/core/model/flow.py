"""Flow matching: noise levels, the noisy sample, the velocity target, guidance.

The sign, in one place: a sample is x = (1 - sigma) * clean + sigma * noise, and the network predicts the velocity
clean - noise. diffusers' Euler scheduler steps along noise - clean, so samplers negate the prediction.
Source: LongCat-Video technical report, equations 19 and 20, and its pipelines.
"""

from __future__ import annotations

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

TIMESTEPS = 1000.0
"""A timestep is sigma times this."""

SMALLEST_SIGMA = 0.001
"""Last unshifted noise level before zero (published sampling loop)."""

DISTILL_BASE_STEPS = 50
"""Unshifted grid that the distilled schedule picks from (published `use_distill`)."""


def shift_sigma(sigma: torch.Tensor, shift: float) -> torch.Tensor:
    """shift * sigma / (1 + (shift - 1) * sigma); published shift 12."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def add_noise(clean: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """(1 - sigma) * clean + sigma * noise; `sigma` broadcasts against both."""
    return (1 - sigma) * clean + sigma * noise


def velocity_target(clean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """What the network learns to predict: clean - noise."""
    return clean - noise


def set_schedule(scheduler: FlowMatchEulerDiscreteScheduler, num_steps: int, *, distilled: bool = False) -> None:
    """Gives the scheduler the published noise levels for `num_steps`; it applies its own shift and ends at 0."""
    if distilled:
        base = [(i + 1) / DISTILL_BASE_STEPS for i in reversed(range(DISTILL_BASE_STEPS))]
        sigmas = [base[i * DISTILL_BASE_STEPS // num_steps] for i in range(num_steps)]
    else:
        sigmas = torch.linspace(1, SMALLEST_SIGMA, num_steps).tolist()
    scheduler.set_timesteps(sigmas=sigmas)


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
