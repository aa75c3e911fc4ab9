"""The training step as a function: a batch of clean latents in, a loss out.

Letters: B batch, C channels, T H W latents, L text length, E encoder width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from studio.core.geometry import Grid
from studio.core.model.dit import LongCatVideoTransformer3DModel
from studio.core.model.flow import TIMESTEPS, add_noise, shift_sigma, velocity_target

NUM_START_LATENTS = 1
"""The start frame is one latent frame."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Clips of one bucket, with their start frames and captions, on the model's device."""

    latents: torch.Tensor
    """fp32 [B, C, T, H, W], normalised, of the clips."""
    start_latent: torch.Tensor
    """fp32 [B, C, 1, H, W], normalised, of the start frames, encoded by themselves."""
    text: torch.Tensor
    """[B, 1, L, E]."""
    text_mask: torch.Tensor
    """int64 [B, L], non-zero where there is text."""


def training_loss(
    dit: Callable[..., torch.Tensor], batch: Batch, *, shift: float, generators: Sequence[torch.Generator]
) -> torch.Tensor:
    """The mean of `clip_losses` at levels and noise that `draw_noise` draws, a scalar in fp32."""
    return clip_losses(dit, batch, *draw_noise(batch, shift=shift, generators=generators)).mean()


def draw_noise(
    batch: Batch, *, shift: float, generators: Sequence[torch.Generator], sigmoid_scale: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise levels, fp32 [B], and noise like the clips, from one CPU generator for each clip.

    Levels are uniform, or with `sigmoid_scale` the sigmoid of a normal draw times it, and then moved by `shift`.
    """
    device, shape = batch.latents.device, batch.latents[0].shape
    if sigmoid_scale is None:
        sigma = torch.stack([torch.rand((), generator=g) for g in generators])
    else:
        sigma = torch.stack([torch.randn((), generator=g) for g in generators]).mul(sigmoid_scale).sigmoid()
    noise = torch.stack([torch.randn(shape, generator=g) for g in generators])
    return shift_sigma(sigma.to(device), shift), noise.to(device)


def clip_losses(
    dit: Callable[..., torch.Tensor], batch: Batch, sigma: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """Mean squared error of each clip, fp32 [B], of the velocity that `dit` predicts for the frames after the start
    frame, at noise levels `sigma` [B] with `noise` [B, C, T, H, W].

    The start frame stands clean in front, at timestep 0, in place of the clip's own first latent; it is shown to the
    model and is no part of the loss.

    Source: LongCat-Video technical report, section on image-to-video: condition frames at t = 0, out of the loss.
    """
    noisy = add_noise(batch.latents, noise, sigma.view(-1, 1, 1, 1, 1))
    shown = torch.cat((batch.start_latent, noisy[:, :, NUM_START_LATENTS:]), dim=2)
    timestep = (TIMESTEPS * sigma)[:, None].repeat(1, batch.latents.shape[2])
    timestep[:, :NUM_START_LATENTS] = 0

    velocity = dit(shown, timestep, batch.text, batch.text_mask, num_cond_latents=NUM_START_LATENTS)
    target = velocity_target(batch.latents, noise)
    error = velocity[:, :, NUM_START_LATENTS:].float() - target[:, :, NUM_START_LATENTS:]
    return error.square().flatten(1).mean(1)


def collate(
    latents: Sequence[torch.Tensor],
    start_latents: Sequence[torch.Tensor],
    texts: Sequence[torch.Tensor],
    *,
    text_length: int,
    device: torch.device,
) -> Batch:
    """One batch on `device` of [C, T, H, W], [C, 1, H, W] and [n, E] tensors; texts are padded with zeros."""
    text = torch.stack([torch.nn.functional.pad(t, (0, 0, 0, text_length - len(t))) for t in texts])
    lengths = torch.tensor([len(t) for t in texts])
    mask = (torch.arange(text_length) < lengths[:, None]).long()
    return Batch(
        latents=torch.stack(list(latents)).float().to(device),
        start_latent=torch.stack(list(start_latents)).float().to(device),
        text=text.unsqueeze(1).to(device),
        text_mask=mask.to(device),
    )


def random_batch(
    dit: LongCatVideoTransformer3DModel, size: Grid, *, text_length: int, device: torch.device, batch_size: int = 1
) -> Batch:
    """Clips of random latents of a `size`, always the same, with random text that fills its whole length: to measure
    a step with.
    """
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(batch_size, *shape, device=device, generator=generator)

    channels = dit.config["in_channels"]
    return Batch(
        latents=random(channels, size.t, size.h, size.w),
        start_latent=random(channels, NUM_START_LATENTS, size.h, size.w),
        text=random(1, text_length, dit.config["caption_channels"]).to(dit.x_embedder.proj.weight.dtype),
        text_mask=torch.ones(batch_size, text_length, dtype=torch.int64, device=device),
    )
