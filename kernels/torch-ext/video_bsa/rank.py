"""Scores of block means, and the best key blocks of every query block in ascending order, without a sort.

Letters: B batch, N heads, D head width, Mq and Mk query and key blocks, R kept blocks.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .rows import SIZES

SCORE_BYTES = 1 << 28
"""Scores held at once: heads are taken in groups so that the matrix stays below it."""


@triton.jit
def _scores_kernel(
    q_ptr, k_ptr, scores_ptr, num_q, num_k, D: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    head = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(1) * TILE + tl.arange(0, TILE)
    cols = tl.program_id(0) * TILE + tl.arange(0, TILE)
    dims = tl.arange(0, D)
    q = tl.load(q_ptr + (head * num_q + rows[:, None]) * D + dims[None, :], mask=(rows < num_q)[:, None], other=0.0)
    k = tl.load(k_ptr + (head * num_k + cols[:, None]) * D + dims[None, :], mask=(cols < num_k)[:, None], other=0.0)
    # Three TF32 products are as exact as one in fp32, and heed no global precision switch.
    scores = tl.dot(q, tl.trans(k), input_precision="tf32x3")
    mask = (rows < num_q)[:, None] & (cols < num_k)[None, :]
    tl.store(scores_ptr + (head * num_q + rows[:, None]) * num_k + cols[None, :], scores, mask=mask)


@triton.jit(do_not_specialize=["num_kept", "per_frame", *SIZES])
def _keep_best_kernel(
    scores_ptr, indices_ptr, num_q, num_k, num_kept, per_frame, KEEP_FIRST: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, WIDTH)
    inside = cols < num_k
    score = tl.load(scores_ptr + row * num_k + cols, mask=inside, other=0.0)
    # Unsigned numbers in the order of the floats; 0 lies below every one of them.
    bits = (score + 0.0).to(tl.uint32, bitcast=True)  # + 0.0 makes one zero of two
    order = bits ^ tl.where(bits >> 31 == 1, 0xFFFFFFFF, 0x80000000).to(tl.uint32)
    if KEEP_FIRST:
        highest = tl.full([WIDTH], 0xFFFFFFFF, tl.uint32)
        order = tl.where(cols == (row % num_q) % per_frame, highest, order)
    order = tl.where(inside, order, 0)
    # The largest threshold that num_kept scores reach, bit by bit; one that exactly so many reach will do.
    threshold = tl.zeros([], tl.uint32)
    reached = num_k
    bit = tl.full([], 0x80000000, tl.uint32)
    while (reached != num_kept) & (bit != 0):
        higher = threshold | bit
        count = tl.sum((order >= higher).to(tl.int32), 0)
        if count >= num_kept:
            threshold = higher
            reached = count
        bit = bit >> 1
    keep = (order >= threshold) & inside
    if reached != num_kept:
        # Of the scores that equal the threshold, the first ones.
        above = order > threshold
        level = keep & (order == threshold)
        wanted = num_kept - tl.sum(above.to(tl.int32), 0)
        keep = above | (level & (tl.cumsum(level.to(tl.int32), 0) <= wanted))
    position = tl.cumsum(keep.to(tl.int32), 0) - 1
    tl.store(indices_ptr + row * num_kept + position, cols, mask=keep)


def best_blocks(
    means_q: torch.Tensor, means_k: torch.Tensor, num_kept: int, *, per_frame: int | None = None
) -> torch.Tensor:
    """int32 [B*N, Mq, R], ascending: the `num_kept` key blocks with the largest product of means.

    Args:
        means_q: fp32 [B*N, Mq, D].
        means_k: fp32 [B*N, Mk, D].
        num_kept: R, from 1 to Mk.
        per_frame: blocks of one block row of time, where the key block at the query block's place in the first one
            is always kept.

    Equal scores go to the lower block number.
    """
    heads, num_q, width = means_q.shape
    num_k = means_k.shape[1]
    indices = means_q.new_empty(heads, num_q, num_kept, dtype=torch.int32)
    group = max(1, SCORE_BYTES // (4 * num_q * num_k))
    scores = means_q.new_empty(min(group, heads), num_q, num_k)
    tile = 64
    for first in range(0, heads, group):
        q, k = means_q[first : first + group], means_k[first : first + group]
        _scores_kernel[(triton.cdiv(num_k, tile), triton.cdiv(num_q, tile), len(q))](
            q, k, scores, num_q, num_k, D=width, TILE=tile
        )
        block_width = triton.next_power_of_2(num_k)
        _keep_best_kernel[(len(q) * num_q,)](
            scores, indices[first:], num_q, num_k, num_kept, per_frame or 1,
            KEEP_FIRST=per_frame is not None, WIDTH=block_width, num_warps=max(1, min(8, block_width // 1024)),
        )  # fmt: skip
    return indices
