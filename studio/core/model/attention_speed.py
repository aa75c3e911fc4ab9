"""How long dense and block-sparse self-attention take on a device, for videos of several lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter

import torch

from studio.core.geometry import Grid
from studio.core.model.attention import AttentionChoice, attend

REPEATS = 5
PUBLISHED_HEADS = (32, 128)
"""Heads and their width in the published model, which a GPU is timed with."""
SMALL_HEADS = (4, 64)
"""Those of the tiny checkpoint, which a CPU is timed with."""
PUBLISHED_GRIDS = (Grid(6, 30, 52), Grid(12, 30, 52), Grid(24, 30, 52), Grid(24, 44, 80))
"""Tokens of 480x832 with 21, 45 and 93 frames, and of 704x1280 with 93."""
SMALL_GRIDS = (Grid(5, 8, 8), Grid(9, 8, 8), Grid(9, 16, 16))
"""Tokens of 128x128 with 17 and 33 frames, and of 256x256 with 33."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionTiming:
    """One self-attention of a video, forward."""

    tokens: int
    dense: float
    """Seconds."""
    sparse: float | None
    """Seconds; None where nothing block-sparse runs on the device."""


def time_attention(choice: AttentionChoice, device: torch.device) -> Iterator[AttentionTiming]:
    """Times of self-attention, its choice of key blocks included, on random numbers in the type that runs there.

    On a GPU with the heads and sizes of the published model, elsewhere with those of the tiny checkpoint. Of `choice`
    block and sparsity are taken.
    """
    is_gpu = device.type == "cuda"
    heads, width = PUBLISHED_HEADS if is_gpu else SMALL_HEADS
    half = torch.bfloat16 if is_gpu and torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    dtype = half if is_gpu else torch.float32
    dense, sparse = replace(choice, setting="dense"), replace(choice, setting="sparse")
    can_be_sparse = choice.refusal is None or device.type == "cpu"
    for grid in PUBLISHED_GRIDS if is_gpu else SMALL_GRIDS:
        generator = torch.Generator(device).manual_seed(0)
        shape = 1, heads, grid.size, width
        qkv = [torch.randn(shape, generator=generator, device=device, dtype=dtype) for _ in range(3)]
        yield AttentionTiming(
            tokens=grid.size,
            dense=_seconds(qkv, grid, dense),
            sparse=_seconds(qkv, grid, sparse) if can_be_sparse else None,
        )


@torch.inference_mode()
def _seconds(qkv: Sequence[torch.Tensor], grid: Grid, choice: AttentionChoice) -> float:
    """Median of several calls, after one that is not counted."""

    def call() -> None:
        attend(*qkv, grid_q=grid, grid_k=grid, choice=choice)
        if qkv[0].is_cuda:
            torch.cuda.synchronize(qkv[0].device)

    call()
    return median(_timed(call) for _ in range(REPEATS))


def _timed(call: Callable[[], None]) -> float:
    started = perf_counter()
    call()
    return perf_counter() - started
