"""The full-size transformer with random weights, its plain and its fast path, and what a call of it takes.

The plain path is this project's own transformer without any of its own kernels: unfused, dense attention through
PyTorch, peft's own LoRA, each block recomputed whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, cast

import peft.tuners.lora.layer
import torch
from torch import nn

from studio.core.config import LoraSettings
from studio.core.geometry import GridSpec
from studio.core.model import pointwise
from studio.core.model.attention import AttentionChoice, choose_attention
from studio.core.model.dit import PUBLISHED_BSA, LongCatVideoTransformer3DModel
from studio.core.model.lora import TRAINING, add_lora, remove_lora
from studio.core.model.lora_linear import LoraLinear
from studio.core.model.pointwise import choose_pointwise
from studio.core.train.step import Batch, random_batch, training_loss
from studio.core.types import Bucket

SIZE = Bucket(num_frames=93, height=480, width=832)
"""The published default."""
TEXT_TOKENS = 512
REPEATS = 3
SHIFT = 12.0

Prepare = Callable[[LongCatVideoTransformer3DModel], None]
"""Sets a path on a transformer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """What one call took."""

    seconds: float
    """Median."""
    peak_bytes: int
    """Allocated on a CUDA device; 0 elsewhere."""


def random_transformer(device: torch.device) -> LongCatVideoTransformer3DModel:
    """The published size in the published types, on `device`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            dit = LongCatVideoTransformer3DModel(bsa_params=PUBLISHED_BSA)
    finally:
        torch.set_default_dtype(before)
    for name, module in dit.named_modules():
        if name.rpartition(".")[2] in dit._keep_in_fp32_modules:
            module.float()
    return dit.eval().requires_grad_(False)


def use_plain_path(dit: LongCatVideoTransformer3DModel) -> None:
    """The reference: dense attention, no kernel of ours, peft's own LoRA."""
    dit.set_attention(AttentionChoice(setting="dense"))
    dit.set_pointwise(pointwise)
    for module in dit.modules():
        if isinstance(module, LoraLinear):
            module.__class__ = cast(Any, peft.tuners.lora.layer.Linear)


def use_fast_path(dit: LongCatVideoTransformer3DModel, setting: Any = "dense") -> None:
    """What the studio runs on this device."""
    dtype, device = dit.x_embedder.proj.weight.dtype, dit.device
    dit.set_pointwise(choose_pointwise(device, dtype)[0])
    block, sparsity = tuple(PUBLISHED_BSA["chunk_3d_shape_k"]), PUBLISHED_BSA["sparsity"]
    head_width = dit.config["hidden_size"] // dit.config["num_heads"]
    dit.set_attention(
        choose_attention(
            setting, block=block, sparsity=sparsity, device=device, dtype=dtype, head_width=head_width
        )
    )  # fmt: skip


def loss_of(dit: LongCatVideoTransformer3DModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """(velocity, loss) of a training step."""
    velocities = []

    def predict(*args: Any, **kwargs: Any) -> torch.Tensor:
        velocities.append(dit(*args, **kwargs))
        return velocities[0]

    generators = [torch.Generator().manual_seed(index) for index in range(len(batch.latents))]
    loss = training_loss(predict, batch, shift=SHIFT, generators=generators)
    return velocities[0].detach(), loss


@torch.inference_mode()
def time_forward(
    dit: LongCatVideoTransformer3DModel, size: Bucket = SIZE, *, is_cached: bool = False, repeats: int = REPEATS
) -> Timing:
    """A forward with one conditioning latent; with `is_cached` as the sampler runs it, that latent's keys known."""
    grid = GridSpec().latent_grid(size.num_frames, size.height, size.width)
    batch = random_batch(dit, grid, text_length=TEXT_TOKENS, device=dit.device)
    timestep = torch.full((1, batch.latents.shape[2]), 500.0, device=dit.device)
    if is_cached:
        _, cache = dit(batch.start_latent, timestep[:, :1] * 0, None, return_kv=True)
        noise, at = batch.latents[:, :, 1:], timestep[:, 1:]
        return measure(lambda: dit(noise, at, batch.text, batch.text_mask, kv_cache=cache), repeats)
    timestep[:, 0] = 0
    return measure(lambda: dit(batch.latents, timestep, batch.text, batch.text_mask, num_cond_latents=1), repeats)


@contextmanager
def lora_in_training(
    dit: LongCatVideoTransformer3DModel, prepare: Prepare, *, keep_attention: bool, is_checkpointed: bool = True
) -> Iterator[list[nn.Parameter]]:
    """Inside, a LoRA of rank 8 is on and `dit` is ready to train it; gives its parameters."""
    parameters = add_lora(dit, LoraSettings(), seed=0)
    prepare(dit)
    if is_checkpointed:
        dit.enable_gradient_checkpointing()
    dit.keep_attention = keep_attention
    dit.train()
    try:
        yield parameters
    finally:
        dit.eval()
        dit.keep_attention = False
        dit.disable_gradient_checkpointing()
        remove_lora(dit, TRAINING)


def time_step(
    dit: LongCatVideoTransformer3DModel,
    prepare: Prepare,
    size: Bucket = SIZE,
    *,
    keep_attention: bool = True,
    repeats: int = 2,
) -> Timing:
    """A training step with gradient checkpointing."""
    with lora_in_training(dit, prepare, keep_attention=keep_attention) as parameters:
        return time_training(dit, parameters, size, repeats=repeats)


def time_training(
    dit: LongCatVideoTransformer3DModel,
    parameters: list[nn.Parameter],
    size: Bucket,
    *,
    batch_size: int = 1,
    repeats: int = 1,
) -> Timing:
    """Optimiser steps of a LoRA that is on."""
    grid = GridSpec().latent_grid(size.num_frames, size.height, size.width)
    batch = random_batch(dit, grid, text_length=TEXT_TOKENS, device=dit.device, batch_size=batch_size)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def step() -> None:
        loss_of(dit, batch)[1].backward()
        torch.nn.utils.clip_grad_norm_(parameters, 2.0)
        optimizer.step()
        optimizer.zero_grad()

    return measure(step, repeats)


def measure(call: Callable[[], object], repeats: int = REPEATS) -> Timing:
    """Times `call` after one warm-up."""
    is_cuda = torch.cuda.is_available()
    seconds = []
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(1 + repeats):
        started = time.perf_counter()
        call()
        if is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return Timing(seconds=median(seconds[1:]), peak_bytes=torch.cuda.max_memory_allocated() if is_cuda else 0)
