"""Frames from latents without the autoencoder: one linear map of the channels of a latent to its mean colour.

Letters: C channels, T H W latents, N latents of one size.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from PIL import Image

from studio.core.data.shapes import BASE_MOTIONS, draw_clips, random_scenes, to_uint8
from studio.core.model.vae import encode_video, frames_to_video

SOFT_CLIPS, SHAPE_CLIPS = 2, 6
FIT_FRAMES = 9
FIT_EDGE = 64
"""Clips, their frames and their height and width in pixels that a map is fitted on."""


PREVIEW_MS = 267
"""A latent frame stands for four frames of fifteen a second."""
PREVIEW_EDGE = 64
"""Pixels of the longer side below which a picture is enlarged: a browser smooths what it enlarges ten times badly."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentColors:
    """The map: colour = weight latent + bias, in [-1, 1]."""

    weight: torch.Tensor
    """fp32 [3, C]."""
    bias: torch.Tensor
    """fp32 [3]."""

    def paint(self, latents: torch.Tensor) -> np.ndarray:
        """uint8 [T, H, W, 3], one picture for each latent frame, one pixel for each latent, of [C, T, H, W]."""
        colors = torch.einsum("rc,cthw->thwr", self.weight.to(latents.device), latents.float())
        pixels = ((colors + self.bias.to(latents.device)).clamp(-1, 1) + 1) * 127.5
        return pixels.round().to(torch.uint8).cpu().numpy()


def preview_webp(frames: np.ndarray) -> bytes:
    """uint8 [T, H, W, 3] as an animated WebP, enlarged where it is small."""
    times = max(1, math.ceil(PREVIEW_EDGE / max(frames.shape[1:3])))
    size = (frames.shape[2] * times, frames.shape[1] * times)
    first, *rest = (Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC) for frame in frames)
    data = io.BytesIO()
    first.save(data, "WEBP", save_all=True, append_images=rest, duration=PREVIEW_MS, loop=0, quality=80, method=0)
    return data.getvalue()


def fit_latent_colors(vae: AutoencoderKLWan, video: torch.Tensor) -> LatentColors:
    """The least-squares map from the latents of `video` [N, 3, T, H, W] in [-1, 1] to the mean colours beneath them.

    A latent stands for 8x8 pixels of its last frame or frames: the first one for one frame, the others for four.
    """
    latents = encode_video(vae, video, torch.Generator().manual_seed(0)).cpu()
    colors = mean_colors(video, vae.config["scale_factor_temporal"], vae.config["scale_factor_spatial"])
    known = latents.movedim(1, -1).reshape(-1, latents.shape[1])
    known = torch.cat((known, torch.ones(len(known), 1)), dim=1)
    found = torch.linalg.lstsq(known.double(), colors.movedim(1, -1).reshape(-1, 3).double()).solution.float()
    return LatentColors(weight=found[:-1].t().contiguous(), bias=found[-1])


def mean_colors(video: torch.Tensor, stride: int, edge: int) -> torch.Tensor:
    """Mean colours [N, 3, T latents, H / edge, W / edge] of the pixels that each latent stands for."""
    first, rest = video[:, :, :1], video[:, :, 1:]
    small = [F.avg_pool3d(first, (1, edge, edge))]
    return torch.cat(small + ([F.avg_pool3d(rest, (stride, edge, edge))] if rest.shape[2] else []), dim=2)


def latent_colors(vae: AutoencoderKLWan) -> LatentColors:
    """The map of this autoencoder, fitted on soft colours that drift and on moving shapes, the same ones each time.

    On the tiny checkpoint it takes a second or two on a CPU and comes to 24 dB of the decoded video made small, where
    the best map for the very videos comes to 28: more is not in a linear map.
    """
    generator = torch.Generator().manual_seed(0)
    scenes = random_scenes(SHAPE_CLIPS, height=FIT_EDGE, width=FIT_EDGE, generator=generator, motions=BASE_MOTIONS)
    shapes = [frames_to_video(frames) for frames in to_uint8(draw_clips(scenes, FIT_FRAMES))]
    return fit_latent_colors(vae, torch.cat((soft_colors(SOFT_CLIPS, FIT_FRAMES, FIT_EDGE), *shapes)))


def soft_colors(num_clips: int, num_frames: int, edge: int) -> torch.Tensor:
    """fp32 [N, 3, T, edge, edge] in [-1, 1]: random colours, coarse to fine, that move slowly from one to another."""
    generator = torch.Generator().manual_seed(0)
    video = torch.zeros(num_clips, 3, num_frames, edge, edge)
    for cells in (1, 3, 8):
        colors = torch.randn(num_clips, 3, 2, cells, cells, generator=generator)
        video += F.interpolate(colors, size=(num_frames, edge, edge), mode="trilinear", align_corners=True)
    return (0.6 * video).tanh()
