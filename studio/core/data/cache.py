"""Latents and text embeddings on disk, found again by what they were made from.

What computes them is handed in: nothing here knows the model.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from studio.core.errors import MediaError

_TENSOR = "tensor"
_SAMPLED = 64
"""Numbers of each tensor that go into a fingerprint: training changes them all, and reading them is quick."""


class LatentCache:
    """Tensors in a folder, one safetensors file each, under the hash of what they depend on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get_or_compute(self, key: str, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The tensor of `key`, on the CPU; computed and written when it is not there, or not readable.

        Written under another name and then renamed: what has the final name is whole.

        Raises:
            MediaError: the folder cannot be written.
        """
        file = self.folder / key[:2] / f"{key}.safetensors"
        try:
            return load_file(file)[_TENSOR]
        except (FileNotFoundError, SafetensorError, KeyError):
            pass
        # A clone is an ordinary tensor, also when it was computed in inference mode.
        tensor = compute().detach().cpu().contiguous().clone()
        unfinished = file.with_name(f".{key}.{os.getpid()}.part")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({_TENSOR: tensor}, unfinished)
            unfinished.replace(file)
        except (OSError, SafetensorError) as error:
            unfinished.unlink(missing_ok=True)
            raise MediaError(
                f"The cache {self.folder} cannot be written: {error}.",
                "Check that the disk is not full, or choose another cache_dir.",
            ) from error
        return tensor


def fingerprint(module: nn.Module) -> str:
    """sha256 over name, shape, dtype and first numbers of every tensor: another checkpoint, another fingerprint."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.flatten()[:_SAMPLED].float().cpu().numpy().tobytes())
    return digest.hexdigest()
