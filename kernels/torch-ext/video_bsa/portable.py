"""The attention and its gradients in Triton, for every GPU that Triton knows and for its interpreter.

Query, key and value rows are read where they lie, block by block, by token number: nothing is copied or padded first.
Products of 16-bit operands accumulate in fp32; fp32 operands are multiplied in fp32. The softmax runs in base 2, with
its scale in fp32. No program adds to what another one writes, so every result has the same bits in every run.

Letters: B batch, N heads, S tokens, D head width, M blocks, P rows of a block's tile, R width of a list.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .grid import BlockGrid
from .rows import SIZES, head_offset, tile_rows, token_of_row
from .tiles import Tile, tile_for

LOG2_E = 1.4426950408889634


@triton.jit
def _load_rows(x_ptr, strides, token, valid, rows, dims):
    """[rows, D] of one head, zero where a row holds no token."""
    at = x_ptr + token.to(tl.int64)[:, None] * strides[2] + dims[None, :]
    return tl.load(at, mask=(rows < valid)[:, None], other=0.0)


@triton.jit
def _store_rows(x_ptr, strides, token, valid, rows, dims, x):
    at = x_ptr + token.to(tl.int64)[:, None] * strides[2] + dims[None, :]
    tl.store(at, x.to(x_ptr.dtype.element_ty), mask=(rows < valid)[:, None])


@triton.jit
def _scores(a, b):
    """a @ b.T of [rows, D] and [cols, D], in fp32.

    Exponentials magnify its rounding. In fp32, pieces of 32 along D are summed apart, which halves it.
    """
    if a.dtype == tl.float32:
        pieces: tl.constexpr = a.shape[1] // 32
        a = tl.permute(tl.reshape(a, (a.shape[0], pieces, 32)), (1, 0, 2))
        b = tl.permute(tl.reshape(b, (b.shape[0], pieces, 32)), (1, 2, 0))
        product = tl.sum(tl.dot(a, b, input_precision="ieee"), 0)
    else:
        product = tl.dot(a, tl.trans(b))
    return product


@triton.jit(do_not_specialize=SIZES)
def _forward_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, indices_ptr, counts_ptr, q_strides, k_strides, v_strides, out_strides,
    heads, grid_q, grid_k, num_q, num_tokens, width, scale_log2,
    BT: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    head = tl.program_id(1)
    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, D)
    token_q, valid_q = token_of_row(rows, block, grid_q, BT, BH, BW)
    q = _load_rows(q_ptr + head_offset(head, heads, q_strides), q_strides, token_q, valid_q, rows, dims)
    k_at = k_ptr + head_offset(head, heads, k_strides)
    v_at = v_ptr + head_offset(head, heads, v_strides)
    row_list = (head * num_q + block).to(tl.int64)
    count = tl.load(counts_ptr + row_list)
    indices = indices_ptr + row_list * width
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, D], tl.float32)
    for step in range(count * (ROWS // COLS)):
        key_block = tl.load(indices + step // (ROWS // COLS))
        cols = step % (ROWS // COLS) * COLS + tl.arange(0, COLS)
        token_k, valid_k = token_of_row(cols, key_block, grid_k, BT, BH, BW)
        k = _load_rows(k_at, k_strides, token_k, valid_k, cols, dims)
        v = _load_rows(v_at, v_strides, token_k, valid_k, cols, dims)
        scores = _scores(q, k) * scale_log2
        scores = tl.where((cols < valid_k)[None, :], scores, float("-inf"))
        # The first rows of a block always hold a token, so the running maximum is finite from the first step on.
        higher = tl.maximum(highest, tl.max(scores, 1))
        shrink = tl.exp2(highest - higher)
        probs = tl.exp2(scores - higher[:, None])
        total = total * shrink + tl.sum(probs, 1)
        out = out * shrink[:, None] + tl.dot(probs.to(v.dtype), v, input_precision="ieee")
        highest = higher
    # A query without a list: zeros, and a log-sum-exp of -inf.
    out = tl.where(count > 0, out / total[:, None], 0.0)
    lse = tl.where(count > 0, (highest + tl.log2(total)) * 0.6931471805599453, float("-inf"))
    _store_rows(out_ptr + head_offset(head, heads, out_strides), out_strides, token_q, valid_q, rows, dims, out)
    tl.store(lse_ptr + head.to(tl.int64) * num_tokens + token_q, lse, mask=rows < valid_q)


@triton.jit(do_not_specialize=SIZES)
def _key_gradients_kernel(
    q_ptr, k_ptr, v_ptr, grad_ptr, stats_ptr, dk_ptr, dv_ptr, queries_ptr, starts_ptr,
    q_strides, k_strides, v_strides, grad_strides, dk_strides, dv_strides,
    heads, grid_q, grid_k, num_q, num_k, scale_log2, scale,
    BT: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    head = tl.program_id(1)
    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, D)
    token_k, valid_k = token_of_row(rows, block, grid_k, BT, BH, BW)
    k = _load_rows(k_ptr + head_offset(head, heads, k_strides), k_strides, token_k, valid_k, rows, dims)
    v = _load_rows(v_ptr + head_offset(head, heads, v_strides), v_strides, token_k, valid_k, rows, dims)
    q_at = q_ptr + head_offset(head, heads, q_strides)
    grad_at = grad_ptr + head_offset(head, heads, grad_strides)
    begin = tl.load(starts_ptr + head * num_k + block)
    end = tl.load(starts_ptr + head * num_k + block + 1)
    dk = tl.zeros([ROWS, D], tl.float32)
    dv = tl.zeros([ROWS, D], tl.float32)
    for step in range(begin * (ROWS // COLS), end * (ROWS // COLS)):
        query_block = tl.load(queries_ptr + step // (ROWS // COLS))
        cols = step % (ROWS // COLS) * COLS + tl.arange(0, COLS)
        token_q, valid_q = token_of_row(cols, query_block, grid_q, BT, BH, BW)
        q = _load_rows(q_at, q_strides, token_q, valid_q, cols, dims)
        grad = _load_rows(grad_at, grad_strides, token_q, valid_q, cols, dims)
        stats = stats_ptr + (head * num_q + query_block).to(tl.int64) * (2 * ROWS) + cols
        lse, delta = tl.load(stats), tl.load(stats + ROWS)
        scores = _scores(k, q) * scale_log2
        probs = tl.exp2(scores - lse[None, :])
        dv += tl.dot(probs.to(grad.dtype), grad, input_precision="ieee")
        slope = probs * (tl.dot(v, tl.trans(grad), input_precision="ieee") - delta[None, :])
        dk += tl.dot(slope.to(q.dtype), q, input_precision="ieee")
    _store_rows(dk_ptr + head_offset(head, heads, dk_strides), dk_strides, token_k, valid_k, rows, dims, dk * scale)
    _store_rows(dv_ptr + head_offset(head, heads, dv_strides), dv_strides, token_k, valid_k, rows, dims, dv)


@triton.jit(do_not_specialize=SIZES)
def _query_gradients_kernel(
    q_ptr, k_ptr, v_ptr, grad_ptr, stats_ptr, dq_ptr, indices_ptr, counts_ptr,
    q_strides, k_strides, v_strides, grad_strides, dq_strides,
    heads, grid_q, grid_k, num_q, width, scale_log2, scale,
    BT: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    head = tl.program_id(1)
    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, D)
    token_q, valid_q = token_of_row(rows, block, grid_q, BT, BH, BW)
    q = _load_rows(q_ptr + head_offset(head, heads, q_strides), q_strides, token_q, valid_q, rows, dims)
    grad = _load_rows(grad_ptr + head_offset(head, heads, grad_strides), grad_strides, token_q, valid_q, rows, dims)
    k_at = k_ptr + head_offset(head, heads, k_strides)
    v_at = v_ptr + head_offset(head, heads, v_strides)
    row_list = (head * num_q + block).to(tl.int64)
    stats = stats_ptr + row_list * (2 * ROWS) + rows
    lse, delta = tl.load(stats), tl.load(stats + ROWS)
    count = tl.load(counts_ptr + row_list)
    indices = indices_ptr + row_list * width
    dq = tl.zeros([ROWS, D], tl.float32)
    for step in range(count * (ROWS // COLS)):
        key_block = tl.load(indices + step // (ROWS // COLS))
        cols = step % (ROWS // COLS) * COLS + tl.arange(0, COLS)
        token_k, valid_k = token_of_row(cols, key_block, grid_k, BT, BH, BW)
        k = _load_rows(k_at, k_strides, token_k, valid_k, cols, dims)
        v = _load_rows(v_at, v_strides, token_k, valid_k, cols, dims)
        scores = _scores(q, k) * scale_log2
        scores = tl.where((cols < valid_k)[None, :], scores, float("-inf"))
        probs = tl.exp2(scores - lse[:, None])
        slope = probs * (tl.dot(grad, tl.trans(v), input_precision="ieee") - delta[:, None])
        dq += tl.dot(slope.to(k.dtype), k, input_precision="ieee")
    _store_rows(dq_ptr + head_offset(head, heads, dq_strides), dq_strides, token_q, valid_q, rows, dims, dq * scale)


def _launch(tile: Tile, blocks: BlockGrid, width: int) -> dict[str, int]:
    """Compile-time numbers of a kernel."""
    time, height, across = blocks.block
    rows = tile_rows(blocks)
    return {
        "BT": time, "BH": height, "BW": across, "ROWS": rows, "COLS": min(tile.cols, rows), "D": width,
        "num_warps": tile.num_warps, "num_stages": tile.num_stages,
    }  # fmt: skip


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, indices: torch.Tensor, counts: torch.Tensor,
    blocks_q: BlockGrid, blocks_k: BlockGrid, out: torch.Tensor, lse: torch.Tensor,
) -> None:  # fmt: skip
    """Writes out [B, N, Sq, D] and lse fp32 [B, N, Sq]."""
    batch, heads, num_tokens, width = q.shape
    _forward_kernel[(blocks_q.num_blocks, batch * heads)](
        q, k, v, out, lse, indices, counts, q.stride()[:3], k.stride()[:3], v.stride()[:3], out.stride()[:3],
        heads, blocks_q.grid, blocks_k.grid, blocks_q.num_blocks, num_tokens, indices.shape[-1], width**-0.5 * LOG2_E,
        **_launch(tile_for("forward", q, tile_rows(blocks_q)), blocks_q, width),
    )  # fmt: skip


def key_gradients(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grad: torch.Tensor, stats: torch.Tensor,
    queries: torch.Tensor, starts: torch.Tensor, blocks_q: BlockGrid, blocks_k: BlockGrid,
    dk: torch.Tensor, dv: torch.Tensor,
) -> None:  # fmt: skip
    """Writes dk and dv [B, N, Sk, D]; `queries` and `starts` come from `invert_lists`, `stats` from `query_stats`."""
    batch, heads, _, width = q.shape
    _key_gradients_kernel[(blocks_k.num_blocks, batch * heads)](
        q, k, v, grad, stats, dk, dv, queries, starts,
        q.stride()[:3], k.stride()[:3], v.stride()[:3], grad.stride()[:3], dk.stride()[:3], dv.stride()[:3],
        heads, blocks_q.grid, blocks_k.grid, blocks_q.num_blocks, blocks_k.num_blocks,
        width**-0.5 * LOG2_E, width**-0.5,
        **_launch(tile_for("key_gradients", q, tile_rows(blocks_k)), blocks_k, width),
    )  # fmt: skip


def query_gradients(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grad: torch.Tensor, stats: torch.Tensor,
    indices: torch.Tensor, counts: torch.Tensor, blocks_q: BlockGrid, blocks_k: BlockGrid, dq: torch.Tensor,
) -> None:  # fmt: skip
    """Writes dq [B, N, Sq, D]; `stats` comes from `query_stats`."""
    batch, heads, _, width = q.shape
    _query_gradients_kernel[(blocks_q.num_blocks, batch * heads)](
        q, k, v, grad, stats, dq, indices, counts,
        q.stride()[:3], k.stride()[:3], v.stride()[:3], grad.stride()[:3], dq.stride()[:3],
        heads, blocks_q.grid, blocks_k.grid, blocks_q.num_blocks, indices.shape[-1],
        width**-0.5 * LOG2_E, width**-0.5,
        **_launch(tile_for("query_gradients", q, tile_rows(blocks_q)), blocks_q, width),
    )  # fmt: skip
