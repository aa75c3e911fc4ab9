"""Where the rows of a block lie: the one piece of geometry that every kernel shares.

The tokens that a block has fill its first rows, in (t, h, w) order; an edge block has fewer. So one count per block
tells which rows hold a token, and no kernel needs a grid that the block divides.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from .grid import BlockGrid

SIZES = ("heads", "num_q", "num_k", "num_blocks", "num_tokens", "width", "wave", "lag")
"""Arguments that differ from call to call: kernels are not compiled anew when one is divisible by 16 or equals 1."""


def tile_rows(blocks: BlockGrid) -> int:
    """Rows of the tile that holds a block: a power of two, at least 16."""
    return max(16, triton.next_power_of_2(math.prod(blocks.block)))


@triton.jit
def _divided(row, divisor):
    """(row // divisor, row % divisor), both at most 256, without a division in every row."""
    fixed_point = row * ((65535 + divisor) // divisor)
    return fixed_point >> 16, (fixed_point & 0xFFFF) * divisor >> 16


@triton.jit
def token_of_row(row, block, grid, BT: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr):
    """(token numbers of the rows of a block, how many rows hold a token); `grid` is (t, h, w) in tokens."""
    grid_t, grid_h, grid_w = grid
    across_h = tl.cdiv(grid_h, BH)
    across_w = tl.cdiv(grid_w, BW)
    first_t = block // (across_h * across_w) * BT
    first_h = block // across_w % across_h * BH
    first_w = block % across_w * BW
    tall = tl.minimum(grid_h - first_h, BH)
    wide = tl.minimum(grid_w - first_w, BW)
    line, column = _divided(row, wide)
    frame, line = _divided(line, tall)
    t = first_t + frame
    h = first_h + line
    w = first_w + column
    return (t * grid_h + h) * grid_w + w, tl.minimum(grid_t - first_t, BT) * tall * wide


@triton.jit
def head_offset(head, heads, strides):
    """Offset of a head, counted over the batch, in elements (int64); `strides` are those of (batch, head, token)."""
    batch_stride, head_stride, _ = strides
    return (head // heads).to(tl.int64) * batch_stride + (head % heads).to(tl.int64) * head_stride
