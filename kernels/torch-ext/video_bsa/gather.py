"""Passes over whole tensors around the attention: block means, block order, and what the backward needs per query.

Letters: B batch, N heads, S tokens, D head width, M blocks, P rows of a block (a power of two).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .grid import BlockGrid
from .rows import SIZES, head_offset, tile_rows, token_of_row


@triton.jit(do_not_specialize=SIZES)
def _gather_kernel(
    x_ptr, blocks_ptr, means_ptr, sizes_ptr, strides, heads, grid, num_blocks,
    BT: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr,
    BLOCKS: tl.constexpr, MEANS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    head = tl.program_id(1)
    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, D)
    token, valid = token_of_row(rows, block, grid, BT, BH, BW)
    has_token = rows < valid
    if KEYS:
        if head == 0:
            tl.store(sizes_ptr + block, valid)
        first, _ = token_of_row(0, block, grid, BT, BH, BW)
        token = tl.where(has_token, token, first)
        has_token = rows >= 0
    offsets = token.to(tl.int64)[:, None] * strides[2] + dims[None, :]
    x = tl.load(x_ptr + head_offset(head, heads, strides) + offsets, mask=has_token[:, None], other=0.0)
    at = (head * num_blocks + block).to(tl.int64)
    if BLOCKS:
        tl.store(blocks_ptr + at * (ROWS * D) + rows[:, None] * D + dims[None, :], x)
    if MEANS:
        tl.store(means_ptr + at * D + dims, tl.sum(x.to(tl.float32), 0) / valid)


def gather_blocks(x_BNSD: torch.Tensor, blocks: BlockGrid) -> torch.Tensor:
    """[B*N*M*P, D] in block order; rows that hold no token are zero."""
    return _gather(x_BNSD, blocks)


def gather_keys(k_BNSD: torch.Tensor, blocks: BlockGrid) -> tuple[torch.Tensor, torch.Tensor]:
    """(K [B*N*M*P, D] in block order, sizes int32 [M]); rows that hold no token repeat the block's first."""
    sizes = k_BNSD.new_empty(blocks.num_blocks, dtype=torch.int32)
    return _gather(k_BNSD, blocks, sizes), sizes


def _gather(x_BNSD: torch.Tensor, blocks: BlockGrid, sizes: torch.Tensor | None = None) -> torch.Tensor:
    batch, heads, _, width = x_BNSD.shape
    rows = tile_rows(blocks)
    out = x_BNSD.new_empty(batch * heads * blocks.num_blocks * rows, width)
    _gather_kernel[(blocks.num_blocks, batch * heads)](
        x_BNSD, out, out, out if sizes is None else sizes, x_BNSD.stride()[:3], heads, blocks.grid, blocks.num_blocks,
        *blocks.block, ROWS=rows, D=width, BLOCKS=True, MEANS=False, KEYS=sizes is not None,
    )  # fmt: skip
    return out


def block_means(x_BNSD: torch.Tensor, blocks: BlockGrid) -> torch.Tensor:
    """Mean of the tokens that each block has, fp32 [B*N, M, D]."""
    batch, heads, _, width = x_BNSD.shape
    means = x_BNSD.new_empty(batch * heads, blocks.num_blocks, width, dtype=torch.float32)
    _gather_kernel[(blocks.num_blocks, batch * heads)](
        x_BNSD, means, means, means, x_BNSD.stride()[:3], heads, blocks.grid, blocks.num_blocks,
        *blocks.block, ROWS=tile_rows(blocks), D=width, BLOCKS=False, MEANS=True, KEYS=False, num_warps=2,
    )  # fmt: skip
    return means


@triton.jit(do_not_specialize=SIZES)
def _query_stats_kernel(
    out_ptr, grad_ptr, lse_ptr, stats_ptr, blocks_ptr, out_strides, grad_strides, heads, grid, num_blocks, num_tokens,
    BT: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    head = tl.program_id(1)
    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, D)
    token, valid = token_of_row(rows, block, grid, BT, BH, BW)
    has_token = rows < valid
    wide_token = token.to(tl.int64)[:, None]
    out_at = out_ptr + head_offset(head, heads, out_strides) + wide_token * out_strides[2] + dims[None, :]
    grad_at = grad_ptr + head_offset(head, heads, grad_strides) + wide_token * grad_strides[2] + dims[None, :]
    out = tl.load(out_at, mask=has_token[:, None], other=0.0)
    grad = tl.load(grad_at, mask=has_token[:, None], other=0.0)
    lse = tl.load(lse_ptr + head.to(tl.int64) * num_tokens + token, mask=has_token, other=float("inf"))
    # A query without a list has lse -inf. As +inf it gives probabilities of zero, like a row without a token.
    lse = tl.where(lse == float("-inf"), float("inf"), lse)
    at = (head * num_blocks + block).to(tl.int64)
    stats_at = stats_ptr + at * (2 * ROWS) + rows
    tl.store(stats_at, lse * 1.4426950408889634)
    tl.store(stats_at + ROWS, tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1))
    if BLOCKS:
        tl.store(blocks_ptr + at * (ROWS * D) + rows[:, None] * D + dims[None, :], grad)


def query_stats(
    out_BNSD: torch.Tensor, grad_BNSD: torch.Tensor, lse_BNS: torch.Tensor, blocks: BlockGrid, *, gather: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(fp32 [B*N*M, 2*P]: log-sum-exp in base 2, then sum(out * grad); with `gather`, grad in block order).

    Rows without a token get +inf and 0, so that they add nothing to any gradient.
    """
    batch, heads, num_tokens, width = out_BNSD.shape
    rows = tile_rows(blocks)
    stats = lse_BNS.new_empty(batch * heads * blocks.num_blocks, 2 * rows)
    grad_blocks = grad_BNSD.new_empty(len(stats) * rows, width) if gather else stats
    _query_stats_kernel[(blocks.num_blocks, batch * heads)](
        out_BNSD, grad_BNSD, lse_BNS, stats, grad_blocks, out_BNSD.stride()[:3], grad_BNSD.stride()[:3], heads,
        blocks.grid, blocks.num_blocks, num_tokens, *blocks.block, ROWS=rows, D=width, BLOCKS=gather,
    )  # fmt: skip
    return stats, grad_blocks
