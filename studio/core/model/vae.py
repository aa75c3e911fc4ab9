"""Pixels to normalised latents and back, through diffusers' Wan autoencoder.

Letters: B clips, C channels, T frames or latents, H W.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch.overrides import TorchFunctionMode


class _SmallClipsByOneDNN(TorchFunctionMode):
    """Sends fp32 convolutions on a CPU through oneDNN, as PyTorch does from some size on. For one small clip it would
    take its own loop, which is 2 to 12 times slower. What is not called as `nn.Conv3d` calls it, for a batch, is left
    to PyTorch.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.conv3d and len(args) == 7 and torch.backends.mkldnn.is_available():
            x, weight, bias, stride, padding, dilation, groups = args
            is_fp32 = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
            if is_fp32 and x.ndim == 5 and isinstance(padding, tuple):
                return torch.ops.aten.mkldnn_convolution(x, weight, bias, padding, stride, dilation, groups)
        return func(*args, **(kwargs or {}))


def _statistics(vae: AutoencoderKLWan) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, inv_std) of the latent channels, fp32 [1, C, 1, 1, 1]."""
    shape = (1, -1, 1, 1, 1)
    device = _device(vae)
    mean = torch.tensor(vae.config["latents_mean"], device=device).view(shape)
    return mean, 1 / torch.tensor(vae.config["latents_std"], device=device).view(shape)


def _device(vae: AutoencoderKLWan) -> torch.device:
    """Where it works: under the offload hooks of a pipeline that is not where it lies."""
    hook = getattr(vae, "_hf_hook", None)
    return torch.device(getattr(hook, "execution_device", None) or vae.device)


def frames_to_video(frames: np.ndarray) -> torch.Tensor:
    """fp32 [1, 3, T, H, W] in [-1, 1] of uint8 [T, H, W, 3]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2).unsqueeze(0) / 127.5 - 1


def video_to_frames(video: torch.Tensor) -> np.ndarray:
    """uint8 [T, H, W, 3] of one video [3, T, H, W] in [-1, 1]."""
    pixels = ((video.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(1, 2, 3, 0).cpu().numpy()


@torch.inference_mode()
def encode_video(vae: AutoencoderKLWan, video: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Normalised latents fp32 [B, C, T, H / 8, W / 8] of `video` [B, 3, frames, H, W] in [-1, 1].

    Sampled from the posterior, as the published pipelines do; `generator` lives on the CPU. Never in tiles, so tiling
    changes neither a cached latent nor a loss.
    """
    with _untiled(vae), _SmallClipsByOneDNN():
        posterior = cast(AutoencoderKLOutput, vae.encode(video.to(_device(vae), vae.dtype))).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean)
    mean, inv_std = _statistics(vae)
    return ((posterior.mean + posterior.std * noise).float() - mean) * inv_std


@contextmanager
def _untiled(vae: AutoencoderKLWan) -> Iterator[None]:
    tiled = vae.use_tiling
    vae.use_tiling = False
    try:
        yield
    finally:
        vae.use_tiling = tiled


@torch.inference_mode()
def decode_latents(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Video [B, 3, frames, H, W] in [-1, 1] of normalised latents."""
    mean, inv_std = _statistics(vae)
    with _SmallClipsByOneDNN():
        return cast(DecoderOutput, vae.decode((latents.to(mean.device) / inv_std + mean).to(vae.dtype))).sample
