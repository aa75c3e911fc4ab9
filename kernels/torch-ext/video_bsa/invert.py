"""For the backward: which query blocks listed each key block.

Letters: B batch, N heads, Mq and Mk query and key blocks, R listed blocks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from .rows import SIZES

MAX_LISTED = 1 << 29
"""Positions are 32-bit numbers, of which a block in fp32 takes four."""


@triton.jit(do_not_specialize=SIZES)
def _mark_kernel(indices_ptr, counts_ptr, marks_ptr, num_k, width, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    positions = tl.arange(0, WIDTH)
    listed = positions < tl.minimum(tl.load(counts_ptr + row), width)
    block = tl.load(indices_ptr + row * width + positions, mask=listed, other=0)
    listed &= (block >= 0) & (block < num_k)
    tl.store(marks_ptr + row * num_k + block, tl.full([WIDTH], 1, tl.int8), mask=listed)


@triton.jit
def _column_kernel(
    marks_ptr, starts_ptr, out_ptr, num_q, num_k, FILL: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):  # fmt: skip
    """Counts the marks of each column, or with FILL writes their row numbers from the column's start on."""
    head = tl.program_id(1).to(tl.int64)
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    inside = cols < num_k
    at = tl.zeros([COLS], tl.int32)
    if FILL:
        at = tl.load(starts_ptr + head * num_k + cols, mask=inside, other=0)
    for first in range(0, num_q, ROWS):
        rows = first + tl.arange(0, ROWS)
        mask = (rows < num_q)[:, None] & inside[None, :]
        marks = tl.load(marks_ptr + (head * num_q + rows[:, None]) * num_k + cols[None, :], mask=mask, other=0)
        marks = marks.to(tl.int32)
        if FILL:
            position = at[None, :] + tl.cumsum(marks, 0) - 1
            tl.store(out_ptr + position, tl.broadcast_to(rows[:, None], (ROWS, COLS)), mask=marks == 1)
        at += tl.sum(marks, 0)
    if not FILL:
        tl.store(out_ptr + head * num_k + cols, at, mask=inside)


def invert_lists(indices: torch.Tensor, counts: torch.Tensor, num_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(query blocks, int32 [B*N*Mq*R]; starts, int32 [B*N*Mk + 1]) from lists [B, N, Mq, R] and counts [B, N, Mq].

    The query blocks of key block j of head h are those from `starts[h * Mk + j]` up to the next start, ascending. They
    depend on nothing but the lists, so a backward that follows them ends in the same bits every time.
    """
    batch, heads, num_q, width = indices.shape
    if indices.numel() >= MAX_LISTED:
        raise ValueError(f"{indices.numel():,} listed blocks are more than the backward counts ({MAX_LISTED:,})")
    rows = batch * heads * num_q
    marks = indices.new_zeros(rows, num_k, dtype=torch.int8)
    _mark_kernel[(rows,)](indices, counts, marks, num_k, width, WIDTH=triton.next_power_of_2(width), num_warps=1)
    tile = {"ROWS": 32, "COLS": 128}
    launch = (triton.cdiv(num_k, tile["COLS"]), batch * heads)
    listed = indices.new_empty(batch * heads * num_k)
    _column_kernel[launch](marks, listed, listed, num_q, num_k, FILL=False, **tile)
    starts = F.pad(listed.cumsum(0, dtype=torch.int32), (1, 0))
    queries = indices.new_empty(indices.numel())
    _column_kernel[launch](marks, starts, queries, num_q, num_k, FILL=True, **tile)
    return queries, starts
