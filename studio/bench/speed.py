"""The fast path beside the plain one: how far apart they are, and how much faster."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import nn

from studio.bench.paths import (
    TEXT_TOKENS,
    Prepare,
    Timing,
    loss_of,
    time_forward,
    time_step,
    use_fast_path,
    use_plain_path,
)
from studio.core.assets import TINY
from studio.core.config import BasePrecision, LoraSettings, ModelConfig
from studio.core.geometry import Grid
from studio.core.model.dit import LongCatVideoTransformer3DModel
from studio.core.model.load import load_bundle
from studio.core.model.lora import TRAINING, add_lora, remove_lora
from studio.core.model.precision import quantise_blocks
from studio.core.train.step import random_batch
from studio.view.terminal import write

SMALL = {"hidden_size": 64, "depth": 2, "num_heads": 4, "caption_channels": 32, "adaln_tembed_dim": 32}
"""The shape of the golden tensors' transformer (`tests/model/golden`)."""

LATENTS = Grid(5, 16, 16)
"""Of the videos that the paths are compared on."""
STEP_HEADER = "| LoRA step, rank 8 | ms | of plain | GiB |\n|---|---|---|---|"


def use_sparse_path(dit: LongCatVideoTransformer3DModel) -> None:
    """The fast path with the published sparsity."""
    use_fast_path(dit, "sparse")


def compare_paths(device: torch.device) -> None:
    """How far the fast path is from the plain one, forward and LoRA gradients, and how far bf16 itself is from fp32."""
    write("\nRelative differences: fast against plain, and for scale plain in this type against plain in fp32")
    write("\n| transformer | fast: velocity | LoRA gradients | plain: velocity | LoRA gradients |")
    write("|---|---|---|---|---|")
    for name, make in (("2 blocks, random weights", small_transformer), ("assets/tiny, 8 blocks", _tiny_transformer)):
        exact = None
        for dtype in (torch.float32, torch.bfloat16):
            plain = velocity_and_gradients(make(device, dtype), use_plain_path)
            fast = velocity_and_gradients(make(device, dtype), use_fast_path)
            exact = exact or plain
            cells = [distance(f, p) for f, p in zip(fast, plain, strict=True)]
            cells += [distance(p, e) for p, e in zip(plain, exact, strict=True)]
            write(f"| {name}, {str(dtype).removeprefix('torch.')} | {' | '.join(f'{cell:.1e}' for cell in cells)} |")


def time_forwards(dit: LongCatVideoTransformer3DModel) -> Timing:
    """The table of forwards in bf16; gives the plain one."""
    write("\n| forward | ms | of plain | GiB |\n|---|---|---|---|")
    use_plain_path(dit)
    plain = time_forward(dit)
    _write_row("plain", plain, plain)
    _write_forwards(dit, "exact", plain)
    return plain


def time_steps(dit: LongCatVideoTransformer3DModel) -> Timing:
    """The table of LoRA steps in bf16; gives the plain one."""
    write(f"\n{STEP_HEADER}")
    plain = time_step(dit, use_plain_path, keep_attention=False, repeats=1)
    _write_row("plain", plain, plain)
    _write_row("exact", time_step(dit, use_fast_path), plain)
    _write_row("exact, attention recomputed", time_step(dit, use_fast_path, keep_attention=False, repeats=1), plain)
    _write_row("sparse 0.9375", time_step(dit, use_sparse_path), plain)
    return plain


def time_eight_bits(
    dit: LongCatVideoTransformer3DModel, precision: BasePrecision, plain_forward: Timing, plain_step: Timing
) -> None:
    """The tables of a transformer in bf16, which is left in this precision, beside the plain path in bf16."""
    device, exact = dit.device, _velocity(dit)
    quantise_blocks(dit, precision, device)
    nn.Module.to(dit, device)
    error = distance(_velocity(dit), exact)
    write(f"\n{precision}: the velocity of random weights, dense, is {error:.1e} from that in bf16")
    write(f"\n{STEP_HEADER}")
    _write_row(f"dense, {precision}", time_step(dit, use_fast_path, repeats=1), plain_step)
    _write_row(f"sparse 0.9375, {precision}", time_step(dit, use_sparse_path), plain_step)
    write(f"\n| forward, {precision} | ms | of plain | GiB |\n|---|---|---|---|")
    _write_forwards(dit, "dense", plain_forward)


def _write_forwards(dit: LongCatVideoTransformer3DModel, dense: str, plain: Timing) -> None:
    """Four rows: dense, under this name, and sparse, each without and with a cached conditioning latent."""
    for name, prepare in ((dense, use_fast_path), ("sparse 0.9375", use_sparse_path)):
        prepare(dit)
        for is_cached in (False, True):
            timing = time_forward(dit, is_cached=is_cached)
            _write_row(f"{name}, conditioning latent cached" if is_cached else name, timing, plain)


@torch.inference_mode()
def _velocity(dit: LongCatVideoTransformer3DModel) -> torch.Tensor:
    """What a small video gets, dense."""
    use_fast_path(dit)
    batch = random_batch(dit, Grid(5, 32, 32), text_length=TEXT_TOKENS, device=dit.device)
    return dit(batch.latents, torch.full((1,), 500.0, device=dit.device), batch.text, batch.text_mask)


def small_transformer(device: torch.device, dtype: torch.dtype) -> LongCatVideoTransformer3DModel:
    """Two blocks of random weights, always the same, in the types that a checkpoint is loaded in."""
    torch.manual_seed(0)
    dit = LongCatVideoTransformer3DModel(**cast(Any, SMALL)).requires_grad_(False).eval()
    for name, module in dit.named_modules():
        if not any(part in dit._keep_in_fp32_modules for part in name.split(".")):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
    nn.Module.to(dit, device)
    return dit


def _tiny_transformer(device: torch.device, dtype: torch.dtype) -> LongCatVideoTransformer3DModel:
    name = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
    return load_bundle(ModelConfig(source=TINY, device=str(device), dtype=name, attention="dense")).dit


def velocity_and_gradients(
    dit: LongCatVideoTransformer3DModel, prepare: Prepare, grid: Grid = LATENTS
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of one training step with a LoRA of random numbers: of a fresh one half the gradients are zero."""
    parameters = add_lora(dit, LoraSettings(), seed=0)
    _fill(parameters)
    prepare(dit)
    velocity, loss = loss_of(dit, random_batch(dit, grid, text_length=64, device=dit.device))
    loss.backward()
    gradients = torch.cat([cast(torch.Tensor, parameter.grad).flatten() for parameter in parameters])
    remove_lora(dit, TRAINING)
    return velocity, gradients


def _fill(parameters: Iterable[nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in parameters:
        parameter.data.copy_(0.02 * torch.randn(parameter.shape, generator=generator))


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative, by norms; `b` is the measure."""
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def _write_row(name: str, timing: Timing, plain: Timing) -> None:
    share = timing.seconds / plain.seconds
    write(f"| {name} | {1000 * timing.seconds:,.0f} | {share:.2f} | {timing.peak_bytes / 2**30:.1f} |")
