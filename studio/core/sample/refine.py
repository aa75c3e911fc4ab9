"""Refinement: frames of the base pass rendered again at 720p, and at twice the rate, from half-way noise.

Only the numbers of the published page can be checked without the published weights; the tests do that, and run the
loop on the tiny checkpoint with crafted LoRAs.

Source: `generate_refine` of the published pipeline, and its demos for what is put where.
Letters: B batch, C channels, T frames or latents, H W.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from studio.core.data.decode import resize_frames
from studio.core.model.flow import HALFWAY, TIMESTEPS, add_noise
from studio.core.model.load import ModelBundle
from studio.core.model.vae import encode_video, frames_to_video

BLOCK_LATENTS = 4
"""Clean and noisy latents are filled up to multiples of this, which attention blocks span (published)."""
START_SIGMA = HALFWAY / TIMESTEPS
"""Noise level at which refinement begins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Padding:
    """How frames are filled up, so that clean and noisy latents fill whole attention blocks."""

    front: int
    """Copies of the first frame before it."""
    back: int
    """Copies of the last frame after it."""
    cond_latents: int
    noise_latents: int


def plan_padding(num_frames: int, num_cond_frames: int, *, stride: int = 4) -> Padding:
    """For `num_frames` of the new rate, of which the first `num_cond_frames` are known; `stride` frames a latent."""
    cond_latents = front = 0
    if num_cond_frames:
        cond_latents = _filled(1 + math.ceil((num_cond_frames - 1) / stride))
        front = 1 + (cond_latents - 1) * stride - num_cond_frames
    num_noise_frames = num_frames - num_cond_frames
    noise_latents = _filled(math.ceil(num_noise_frames / stride))
    return Padding(
        front=front,
        back=noise_latents * stride - num_noise_frames,
        cond_latents=cond_latents,
        noise_latents=noise_latents,
    )


def enlarge(frames: np.ndarray, height: int, width: int, num_frames: int, device: torch.device) -> torch.Tensor:
    """fp32 [1, 3, num_frames, height, width] in [-1, 1] of uint8 [T, H, W, 3]: bilinear in space, then linear in time.

    The first and the last frame stay the first and the last (`align_corners`).
    """
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).to(device).permute(0, 3, 1, 2).float()
    larger = F.interpolate(pixels, size=(height, width), mode="bilinear", align_corners=True) / 255
    video = larger.permute(1, 0, 2, 3).unsqueeze(0)
    if num_frames != len(frames):
        video = F.interpolate(video, size=(num_frames, height, width), mode="trilinear", align_corners=True)
    return video * 2 - 1


def start_latents(
    bundle: ModelBundle, video: torch.Tensor, padding: Padding, generator: torch.Generator
) -> torch.Tensor:
    """fp32 [1, C, T, H, W]: the latents of the padded `video` [1, 3, T, H, W], half noise."""
    first, last = video[:, :, :1], video[:, :, -1:]
    padded = torch.cat([first] * padding.front + [video] + [last] * padding.back, dim=2)
    latents = encode_video(bundle.vae, padded, generator)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    return add_noise(latents, noise, torch.tensor(START_SIGMA))


def known_latents(
    bundle: ModelBundle, frames: np.ndarray, height: int, width: int, padding: Padding, generator: torch.Generator
) -> torch.Tensor:
    """Clean latents fp32 [1, C, n, H, W] of the known frames, uint8 [T, H, W, 3] of any size, the first repeated."""
    sized = resize_frames(frames, height, width)
    return encode_video(bundle.vae, frames_to_video(np.concatenate([sized[:1]] * padding.front + [sized])), generator)


def _filled(count: int) -> int:
    return math.ceil(count / BLOCK_LATENTS) * BLOCK_LATENTS
