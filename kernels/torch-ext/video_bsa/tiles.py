"""How the portable kernels cut their work, by pass, operand width and shared memory of the GPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Tile:
    """Compile-time choices of one launch."""

    cols: int
    """Rows of the streamed side (keys, or queries in the pass over key blocks) that one step takes."""
    num_warps: int
    num_stages: int
    """Depth of the software pipeline over the streamed side."""


LARGE_SHARED_MEMORY = 160 * 1024
"""sm_80 has 163 KiB a block, sm_90 and sm_100 have 227 KiB; sm_86, sm_89 and sm_120 have 99 KiB."""

TILES = {
    ("forward", "large"): Tile(cols=64, num_warps=4, num_stages=3),
    ("key_gradients", "large"): Tile(cols=64, num_warps=8, num_stages=2),
    ("query_gradients", "large"): Tile(cols=64, num_warps=8, num_stages=2),
    ("forward", "small"): Tile(cols=64, num_warps=4, num_stages=2),
    ("key_gradients", "small"): Tile(cols=32, num_warps=8, num_stages=2),
    ("query_gradients", "small"): Tile(cols=32, num_warps=8, num_stages=2),
}
"""By pass and shared memory, for blocks of up to 64 rows in 16 bits. `tests/test_triton_compiles.py` shows that each
fits its GPUs without a spill. Only sm_90 was timed, where other kernels take the 64-row blocks."""

BIG_BLOCK_TILE = Tile(cols=32, num_warps=8, num_stages=1)
"""For blocks of 128 rows."""

FP32_TILE = Tile(cols=16, num_warps=16, num_stages=1)
"""fp32 is multiplied without tensor cores: exact, slow, and not tuned."""


def tile_for(kernel: str, q: torch.Tensor, rows: int) -> Tile:
    """The choices for a pass (`forward`, `key_gradients`, `query_gradients`) over tensors like `q`, `rows` a block."""
    if q.element_size() == 4:
        return FP32_TILE
    if rows > 64:
        return BIG_BLOCK_TILE
    shared_memory = torch.cuda.get_device_properties(q.device).shared_memory_per_block_optin if q.is_cuda else 0
    return TILES[kernel, "large" if shared_memory >= LARGE_SHARED_MEMORY else "small"]
