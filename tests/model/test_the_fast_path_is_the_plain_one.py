"""The transformer on the fused kernels gives what it gives in plain PyTorch: forward, gradients, cached keys.

On a GPU in bf16 and fp32. Elsewhere Triton's interpreter runs the kernels on the CPU in fp32, in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from studio.bench.paths import use_plain_path
from studio.bench.speed import distance, small_transformer, velocity_and_gradients
from studio.core.geometry import Grid
from studio.core.train.step import random_batch

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HAS_GPU = torch.cuda.is_available()
# The interpreter of Triton 3.6 cannot count a loop with NumPy 2.4 and later.
pytest.importorskip("triton", minversion="3.6" if HAS_GPU else "3.7")

DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
BOUND = {torch.float32: 1e-5, torch.bfloat16: 2e-3}


def runs_kernels(test):
    skips = pytest.mark.skipif(not (HAS_GPU or IS_INTERPRETED), reason="runs in the interpreter's process")
    return skips(test) if IS_INTERPRETED else pytest.mark.gpu(skips(test))


def use_fused(dit):
    from video_bsa import fused

    dit.set_pointwise(fused)


@runs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16] if HAS_GPU else [torch.float32])
def test_velocity_and_lora_gradients_agree(dtype):
    grid = Grid(5, 16, 16) if HAS_GPU else Grid(2, 2, 4)
    plain = velocity_and_gradients(small_transformer(DEVICE, dtype), use_plain_path, grid)
    fused = velocity_and_gradients(small_transformer(DEVICE, dtype), use_fused, grid)
    assert not torch.equal(plain[1], fused[1]), "the fused kernels did not run"
    for found, expected in zip(fused, plain, strict=True):
        assert distance(found, expected) <= BOUND[dtype]


@runs_kernels
@torch.no_grad()
def test_cached_keys_agree():
    found = []
    for prepare in (use_plain_path, use_fused):
        dit = small_transformer(DEVICE, torch.float32)
        prepare(dit)
        batch = random_batch(dit, Grid(3, 4, 4), text_length=8, device=DEVICE, batch_size=2)
        _, cache = dit(batch.start_latent[:1], torch.zeros(1, device=DEVICE), None, return_kv=True)
        noise, timestep = batch.latents[:, :, 1:], torch.full((2,), 500.0, device=DEVICE)
        found.append(dit(noise, timestep, batch.text, batch.text_mask, kv_cache=cache))
    assert distance(found[1], found[0]) <= 1e-5


@pytest.mark.skipif(HAS_GPU or IS_INTERPRETED, reason="a GPU runs the kernels themselves")
def test_in_the_interpreter():
    result = subprocess.run(
        [sys.executable, "-m", "pytest", __file__, "-q", "-p", "no:cacheprovider", "-W", "ignore::RuntimeWarning"],
        env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-4000:]
    assert "2 passed" in result.stdout
