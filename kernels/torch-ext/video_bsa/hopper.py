"""The attention and its gradients for sm_90, in Gluon: blocks of 64 rows, 16-bit operands.

A program owns one block of 64 rows in one warpgroup. The other side's tiles come through TMA into shared memory. Four
programs share an SM in the forward, so that one multiplies while another loads or exponentiates; in the backward it is
two, each with its next tiles under way and its products asynchronous. `kernels/README.md` has the measurements behind
each choice.

A wave of programs reads its ascending lists from the first key block to the last. Left alone, programs drift apart
until they read all over a head's keys and values, which do not fit the L2. So each program waits for most of the wave
before its own (`_keep_step`). That changes when a program runs and never what it computes.

Letters: B batch, N heads, S tokens, D head width, M blocks, R width of a list.
"""

from __future__ import annotations

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from .grid import BlockGrid
from .rows import SIZES, head_offset, token_of_row

ROWS = 64
"""Rows of a block: what one warpgroup multiplies at a time."""

LOG2_E = 1.4426950408889634

FORWARD_PROGRAMS, BACKWARD_PROGRAMS = 4, 2
"""Programs that an SM holds at once, by registers and shared memory."""

FORWARD_REGISTERS = 65536 // (FORWARD_PROGRAMS * 128)
"""Most that a thread may have, so that the programs fit whatever assembler Triton is pointed to. `torch.compile` points
it to PyTorch's own, which took 132, and an SM with three programs is a fifth slower."""

LAG, KEY_LAG = 0.05, 0.2
"""Shares of a wave that the next one does not wait for. Over key blocks, whose lists differ in length, it is more."""

_sync_threads = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier  # renamed in triton 3.7


@gluon.jit
def _keep_step(clock_ptr, number, wave, lag):
    """Waits until most of the earlier waves are done, for 1,000 looks at the clock at most: about a millisecond."""
    needed = number // wave * wave - lag
    done = gl.atomic_add(clock_ptr, 0, sem="relaxed")
    polls = 0
    while (done < needed) & (polls < 1000):
        done = gl.atomic_add(clock_ptr, 0, sem="relaxed")
        polls += 1


@gluon.jit
def _new_barriers(COUNT: gl.constexpr):
    """Barriers that wait for one load each."""
    bars = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for each in gl.static_range(COUNT):
        mbarrier.init(bars.index(each), count=1)
    fence_async_shared()
    _sync_threads()
    return bars


@gluon.jit
def _transposed_product(a, b, like):
    """a @ b.T, asynchronous; `like` lends its shape and layout."""
    return warpgroup_mma(a, b.permute((1, 0)), like, use_acc=False, is_async=True)


@gluon.jit
def _fetch(desc, buffer, bar, indices, first, count, step):
    """Starts the load of the tile that list entry `step` names."""
    if step < count:
        mbarrier.expect(bar, desc.block_type.nbytes)
        tma.async_copy_global_to_shared(desc, [(first + gl.load(indices + step)) * 64, 0], bar, buffer)


@gluon.jit(do_not_specialize=SIZES)
def _forward_kernel(
    k_desc, v_desc, q_ptr, out_ptr, lse_ptr, indices_ptr, counts_ptr, sizes_ptr, clock_ptr, wave, lag,
    q_strides, out_strides, heads, grid_q, num_q, num_k, num_tokens, width, scale_log2,
    BT: gl.constexpr, BH: gl.constexpr, BW: gl.constexpr, D: gl.constexpr, num_warps: gl.constexpr,
):  # fmt: skip
    ROWS: gl.constexpr = 64
    dtype: gl.constexpr = k_desc.dtype
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, ROWS, 16])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    LOAD: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    block = gl.program_id(0)
    head = gl.program_id(1)

    # Q where it lies, K and V in one buffer each: the other programs of the SM multiply while this one waits.
    rows = gl.arange(0, ROWS, gl.SliceLayout(1, LOAD))
    dims = gl.arange(0, D, gl.SliceLayout(0, LOAD))
    token, valid = token_of_row(rows, block, grid_q, BT, BH, BW)
    q_at = q_ptr + head_offset(head, heads, q_strides) + token.to(gl.int64)[:, None] * q_strides[2] + dims[None, :]
    q = gl.load(q_at, mask=(rows < valid)[:, None], other=0.0)
    q_buffer = gl.allocate_shared_memory(dtype, [ROWS, D], k_desc.layout, q)
    k_buffer = gl.allocate_shared_memory(dtype, [ROWS, D], k_desc.layout)
    v_buffer = gl.allocate_shared_memory(dtype, [ROWS, D], v_desc.layout)
    bars = _new_barriers(2)

    row_list = (head * num_q + block).to(gl.int64)
    count = gl.load(counts_ptr + row_list)
    indices = indices_ptr + row_list * width
    first = head * num_k
    _fetch(k_desc, k_buffer, bars.index(0), indices, first, count, 0)
    _fetch(v_desc, v_buffer, bars.index(1), indices, first, count, 0)
    _keep_step(clock_ptr, head * num_q + block, wave, lag)

    highest = gl.full([ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, SCORES))
    total = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, SCORES))
    out = gl.zeros([ROWS, D], gl.float32, OUT)
    like = gl.zeros([ROWS, ROWS], gl.float32, SCORES)
    cols = gl.arange(0, ROWS, gl.SliceLayout(0, SCORES))
    for i in range(count):
        mbarrier.wait(bars.index(0), i & 1)
        scores = warpgroup_mma(q_buffer, k_buffer.permute((1, 0)), like, use_acc=False)
        _sync_threads()
        _fetch(k_desc, k_buffer, bars.index(0), indices, first, count, i + 1)
        higher = gl.maximum(highest, gl.max(scores, 1) * scale_log2)
        shrink = gl.exp2(highest - higher)
        probs = gl.exp2(scores * scale_log2 - higher[:, None])
        # Rows without a token repeat the block's first key, which moves no maximum, and have values of zero. Only the
        # sum has to leave them out: they weigh as much as the first column does.
        missing = ROWS - gl.load(sizes_ptr + gl.load(indices + i))
        weights = gl.where(cols == 0, 1.0 - missing.to(gl.float32), 1.0)
        total = total * shrink + gl.sum(probs * weights[None, :], 1)
        highest = higher
        probs_16 = gl.convert_layout(probs.to(dtype), gl.DotOperandLayout(0, OUT, 2))
        out = out * gl.convert_layout(shrink, gl.SliceLayout(1, OUT))[:, None]
        mbarrier.wait(bars.index(1), i & 1)
        out = warpgroup_mma(probs_16, v_buffer, out)
        _sync_threads()
        _fetch(v_desc, v_buffer, bars.index(1), indices, first, count, i + 1)
    for each in gl.static_range(2):
        mbarrier.invalidate(bars.index(each))
    gl.atomic_add(clock_ptr, 1, sem="relaxed")

    # A query without a list: zeros, and a log-sum-exp of -inf.
    share = gl.where(count > 0, 1.0 / total, 0.0)
    out = out * gl.convert_layout(share, gl.SliceLayout(1, OUT))[:, None]
    _store_block(out_ptr, out.to(dtype), head, heads, block, out_strides, grid_q, BT, BH, BW)
    rows = gl.arange(0, ROWS, gl.SliceLayout(1, SCORES))
    token, valid = token_of_row(rows, block, grid_q, BT, BH, BW)
    lse = gl.where(count > 0, (highest + gl.log2(total)) * 0.6931471805599453, float("-inf"))
    gl.store(lse_ptr + head.to(gl.int64) * num_tokens + token, lse, mask=rows < valid)


@gluon.jit
def _store_block(
    x_ptr, x, head, heads, block, strides, grid, BT: gl.constexpr, BH: gl.constexpr, BW: gl.constexpr
):  # fmt: skip
    """Writes the rows of a block that hold a token, where they lie."""
    ROWS: gl.constexpr = x.shape[0]
    D: gl.constexpr = x.shape[1]
    STORE: gl.constexpr = gl.BlockedLayout([2, 8], [256 // D, D // 8], [4, 1], [1, 0])
    rows = gl.arange(0, ROWS, gl.SliceLayout(1, STORE))
    dims = gl.arange(0, D, gl.SliceLayout(0, STORE))
    token, valid = token_of_row(rows, block, grid, BT, BH, BW)
    at = x_ptr + head_offset(head, heads, strides) + token.to(gl.int64)[:, None] * strides[2] + dims[None, :]
    gl.store(at, gl.convert_layout(x, STORE), mask=(rows < valid)[:, None])


@gluon.jit
def _fetch_queries(
    q_desc, grad_desc, stats_desc, q_ring, grad_ring, stats_ring, bars, queries, first, count, step, slot
):
    """Starts the loads of a step: a query block, its output gradient, and its statistics."""
    if step < count:
        at = first + gl.load(queries + step)
        bar = bars.index(slot)
        mbarrier.expect(bar, 2 * q_desc.block_type.nbytes + stats_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(q_desc, [at * 64, 0], bar, q_ring.index(slot))
        tma.async_copy_global_to_shared(grad_desc, [at * 64, 0], bar, grad_ring.index(slot))
        tma.async_copy_global_to_shared(stats_desc, [at, 0], bar, stats_ring.index(slot))


@gluon.jit(do_not_specialize=SIZES)
def _key_gradients_kernel(
    k_desc, v_desc, q_desc, grad_desc, stats_desc, dk_ptr, dv_ptr, queries_ptr, starts_ptr, order_ptr, clock_ptr,
    wave, lag,
    dk_strides, dv_strides, heads, grid_k, num_q, num_k, scale_log2, scale,
    BT: gl.constexpr, BH: gl.constexpr, BW: gl.constexpr, D: gl.constexpr, num_warps: gl.constexpr,
):  # fmt: skip
    ROWS: gl.constexpr = 64
    STAGES: gl.constexpr = 2
    dtype: gl.constexpr = k_desc.dtype
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, ROWS, 16])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    head = gl.program_id(1)
    number = head * num_k + gl.program_id(0)
    block = gl.load(order_ptr + number)
    k_buffer = gl.allocate_shared_memory(dtype, [ROWS, D], k_desc.layout)
    v_buffer = gl.allocate_shared_memory(dtype, [ROWS, D], k_desc.layout)
    q_ring = gl.allocate_shared_memory(dtype, [STAGES, ROWS, D], k_desc.layout)
    grad_ring = gl.allocate_shared_memory(dtype, [STAGES, ROWS, D], k_desc.layout)
    stats_ring = gl.allocate_shared_memory(gl.float32, [STAGES, 1, 2 * ROWS], stats_desc.layout)
    bars = _new_barriers(STAGES + 1)

    at = head * num_k + block
    begin = gl.load(starts_ptr + at)
    count = gl.load(starts_ptr + at + 1) - begin
    queries = queries_ptr + begin
    first = head * num_q
    mbarrier.expect(bars.index(STAGES), 2 * k_desc.block_type.nbytes)
    tma.async_copy_global_to_shared(k_desc, [at * ROWS, 0], bars.index(STAGES), k_buffer)
    tma.async_copy_global_to_shared(v_desc, [at * ROWS, 0], bars.index(STAGES), v_buffer)
    for stage in gl.static_range(STAGES):
        _fetch_queries(
            q_desc, grad_desc, stats_desc, q_ring, grad_ring, stats_ring, bars, queries, first, count, stage, stage
        )
    _keep_step(clock_ptr, number, wave, lag)
    dk = gl.zeros([ROWS, D], gl.float32, OUT)
    dv = gl.zeros([ROWS, D], gl.float32, OUT)
    like = gl.zeros([ROWS, ROWS], gl.float32, SCORES)
    mbarrier.wait(bars.index(STAGES), 0)
    for i in range(count):
        slot = i % STAGES
        mbarrier.wait(bars.index(slot), i // STAGES & 1)
        q_buffer = q_ring.index(slot)
        grad_buffer = grad_ring.index(slot)
        stats = stats_ring.index(slot).reshape([2 * ROWS])
        # Keys down, queries across: the probabilities come out as the left operand of the products to follow.
        scores_running = _transposed_product(k_buffer, q_buffer, like)
        slope_running = _transposed_product(v_buffer, grad_buffer, like)
        lse = stats.slice(0, ROWS).load(gl.SliceLayout(0, SCORES))
        scores = warpgroup_mma_wait(1, deps=[scores_running])
        probs = gl.exp2(scores * scale_log2 - lse[None, :])
        probs_16 = gl.convert_layout(probs.to(dtype), gl.DotOperandLayout(0, OUT, 2))
        dv_running = warpgroup_mma(probs_16, grad_buffer, dv, is_async=True)
        delta = stats.slice(ROWS, ROWS).load(gl.SliceLayout(0, SCORES))
        slope = probs * (warpgroup_mma_wait(1, deps=[slope_running]) - delta[None, :])
        slope_16 = gl.convert_layout(slope.to(dtype), gl.DotOperandLayout(0, OUT, 2))
        dk_running = warpgroup_mma(slope_16, q_buffer, dk, is_async=True)
        dk, dv, probs_16, slope_16 = warpgroup_mma_wait(0, deps=[dk_running, dv_running, probs_16, slope_16])
        _sync_threads()
        _fetch_queries(
            q_desc, grad_desc, stats_desc, q_ring, grad_ring, stats_ring, bars, queries, first, count, i + STAGES, slot
        )
    for stage in gl.static_range(STAGES + 1):
        mbarrier.invalidate(bars.index(stage))
    gl.atomic_add(clock_ptr, 1, sem="relaxed")
    _store_block(dk_ptr, (dk * scale).to(dtype), head, heads, block, dk_strides, grid_k, BT, BH, BW)
    _store_block(dv_ptr, dv.to(dtype), head, heads, block, dv_strides, grid_k, BT, BH, BW)


@gluon.jit
def _fetch_keys(k_desc, v_desc, k_ring, v_ring, bars, indices, first, count, step, slot):
    """Starts the loads of a step: a key block and its values."""
    if step < count:
        at = first + gl.load(indices + step)
        bar = bars.index(slot)
        mbarrier.expect(bar, 2 * k_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(k_desc, [at * 64, 0], bar, k_ring.index(slot))
        tma.async_copy_global_to_shared(v_desc, [at * 64, 0], bar, v_ring.index(slot))


@gluon.jit(do_not_specialize=SIZES)
def _query_gradients_kernel(
    k_desc, v_desc, q_desc, grad_desc, stats_ptr, dq_ptr, indices_ptr, counts_ptr, clock_ptr, wave, lag,
    dq_strides, heads, grid_q, num_q, num_k, width, scale_log2, scale,
    BT: gl.constexpr, BH: gl.constexpr, BW: gl.constexpr, D: gl.constexpr, num_warps: gl.constexpr,
):  # fmt: skip
    ROWS: gl.constexpr = 64
    STAGES: gl.constexpr = 2
    dtype: gl.constexpr = k_desc.dtype
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, ROWS, 16])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    block = gl.program_id(0)
    head = gl.program_id(1)
    q_buffer = gl.allocate_shared_memory(dtype, [ROWS, D], k_desc.layout)
    grad_buffer = gl.allocate_shared_memory(dtype, [ROWS, D], k_desc.layout)
    k_ring = gl.allocate_shared_memory(dtype, [STAGES, ROWS, D], k_desc.layout)
    v_ring = gl.allocate_shared_memory(dtype, [STAGES, ROWS, D], k_desc.layout)
    bars = _new_barriers(STAGES + 1)

    at = head * num_q + block
    count = gl.load(counts_ptr + at)
    indices = indices_ptr + at.to(gl.int64) * width
    first = head * num_k
    mbarrier.expect(bars.index(STAGES), 2 * k_desc.block_type.nbytes)
    tma.async_copy_global_to_shared(q_desc, [at * ROWS, 0], bars.index(STAGES), q_buffer)
    tma.async_copy_global_to_shared(grad_desc, [at * ROWS, 0], bars.index(STAGES), grad_buffer)
    for stage in gl.static_range(STAGES):
        _fetch_keys(k_desc, v_desc, k_ring, v_ring, bars, indices, first, count, stage, stage)
    _keep_step(clock_ptr, at, wave, lag)
    rows = gl.arange(0, ROWS, gl.SliceLayout(1, SCORES))
    lse = gl.load(stats_ptr + at.to(gl.int64) * (2 * ROWS) + rows)
    delta = gl.load(stats_ptr + at.to(gl.int64) * (2 * ROWS) + ROWS + rows)
    dq_running = warpgroup_mma_init(gl.zeros([ROWS, D], gl.float32, OUT))
    slope_16 = gl.zeros([ROWS, ROWS], dtype, gl.DotOperandLayout(0, OUT, 2))
    like = gl.zeros([ROWS, ROWS], gl.float32, SCORES)
    mbarrier.wait(bars.index(STAGES), 0)
    for i in range(count):
        slot = i % STAGES
        mbarrier.wait(bars.index(slot), i // STAGES & 1)
        k_buffer = k_ring.index(slot)
        scores_running = _transposed_product(q_buffer, k_buffer, like)
        slope_running = _transposed_product(grad_buffer, v_ring.index(slot), like)
        scores, slope_16 = warpgroup_mma_wait(1, deps=[scores_running, slope_16])
        # Products end in order, so the last step's product with K is done too and its buffers are free.
        if i > 0:
            _sync_threads()
            _fetch_keys(k_desc, v_desc, k_ring, v_ring, bars, indices, first, count, i - 1 + STAGES, (i - 1) % STAGES)
        # No probability is above one. A row without a token has a key of zeros, whose score may lie above lse.
        probs = gl.exp2(gl.minimum(scores * scale_log2 - lse[:, None], 0.0))
        slope = probs * (warpgroup_mma_wait(0, deps=[slope_running]) - delta[:, None])
        slope_16 = gl.convert_layout(slope.to(dtype), gl.DotOperandLayout(0, OUT, 2))
        dq_running = warpgroup_mma(slope_16, k_buffer, dq_running, is_async=True)
    dq, slope_16 = warpgroup_mma_wait(0, deps=[dq_running, slope_16])
    for stage in gl.static_range(STAGES + 1):
        mbarrier.invalidate(bars.index(stage))
    gl.atomic_add(clock_ptr, 1, sem="relaxed")
    _store_block(dq_ptr, (dq * scale).to(dtype), head, heads, block, dq_strides, grid_q, BT, BH, BW)


def _descriptor(blocks_RD: torch.Tensor) -> TensorDescriptor:
    """Tiles of 64 rows of a tensor in block order."""
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    width = blocks_RD.shape[1]
    return TensorDescriptor(blocks_RD, list(blocks_RD.shape), [width, 1], [ROWS, width], layout)


def _step_keeping(device: torch.device, programs_per_sm: int, share: float = LAG) -> tuple[torch.Tensor, int, int]:
    """(clock at zero, programs of a wave, how many of them the next wave does not wait for)."""
    wave = programs_per_sm * torch.cuda.get_device_properties(device).multi_processor_count
    return torch.zeros(1, dtype=torch.int32, device=device), wave, int(share * wave)


def forward(
    q: torch.Tensor, k_blocks: torch.Tensor, v_blocks: torch.Tensor, sizes: torch.Tensor, indices: torch.Tensor,
    counts: torch.Tensor, blocks_q: BlockGrid, blocks_k: BlockGrid, out: torch.Tensor, lse: torch.Tensor,
) -> None:  # fmt: skip
    """Writes out [B, N, Sq, D] and lse fp32 [B, N, Sq].

    `k_blocks` and `sizes` come from `gather_keys`, `v_blocks` from `gather_blocks`.
    """
    batch, heads, num_tokens, width = q.shape
    _forward_kernel[(blocks_q.num_blocks, batch * heads)](
        _descriptor(k_blocks), _descriptor(v_blocks), q, out, lse, indices, counts,
        sizes, *_step_keeping(q.device, FORWARD_PROGRAMS), q.stride()[:3], out.stride()[:3],
        heads, blocks_q.grid, blocks_q.num_blocks, blocks_k.num_blocks, num_tokens, indices.shape[-1],
        width**-0.5 * LOG2_E, *blocks_q.block, D=width, num_warps=4, maxnreg=FORWARD_REGISTERS,
    )  # fmt: skip


def key_gradients(
    q_blocks: torch.Tensor, k_blocks: torch.Tensor, v_blocks: torch.Tensor, grad_blocks: torch.Tensor,
    stats: torch.Tensor, queries: torch.Tensor, starts: torch.Tensor, blocks_q: BlockGrid, blocks_k: BlockGrid,
    dk: torch.Tensor, dv: torch.Tensor,
) -> None:  # fmt: skip
    """Writes dk and dv [B, N, Sk, D]; `queries` and `starts` come from `invert_lists`, the rest is in block order."""
    batch, heads, _, width = dk.shape
    # The most listed key blocks first, so that the programs of a wave take about as long as one another.
    order = starts.diff().view(-1, blocks_k.num_blocks).argsort(dim=-1, descending=True, stable=True).int()
    layout = gl.NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=32, rank=2)
    stats_desc = TensorDescriptor(stats, list(stats.shape), [2 * ROWS, 1], [1, 2 * ROWS], layout)
    _key_gradients_kernel[(blocks_k.num_blocks, batch * heads)](
        _descriptor(k_blocks), _descriptor(v_blocks), _descriptor(q_blocks), _descriptor(grad_blocks), stats_desc,
        dk, dv, queries, starts, order, *_step_keeping(dk.device, BACKWARD_PROGRAMS, KEY_LAG),
        dk.stride()[:3], dv.stride()[:3], heads, blocks_k.grid, blocks_q.num_blocks, blocks_k.num_blocks,
        width**-0.5 * LOG2_E, width**-0.5, *blocks_k.block, D=width, num_warps=4,
    )  # fmt: skip


def query_gradients(
    q_blocks: torch.Tensor, k_blocks: torch.Tensor, v_blocks: torch.Tensor, grad_blocks: torch.Tensor,
    stats: torch.Tensor, indices: torch.Tensor, counts: torch.Tensor, blocks_q: BlockGrid, blocks_k: BlockGrid,
    dq: torch.Tensor,
) -> None:  # fmt: skip
    """Writes dq [B, N, Sq, D]; the operands are in block order, `stats` comes from `query_stats`."""
    batch, heads, _, width = dq.shape
    _query_gradients_kernel[(blocks_q.num_blocks, batch * heads)](
        _descriptor(k_blocks), _descriptor(v_blocks), _descriptor(q_blocks), _descriptor(grad_blocks), stats, dq,
        indices, counts, *_step_keeping(dq.device, BACKWARD_PROGRAMS), dq.stride()[:3], heads, blocks_q.grid,
        blocks_q.num_blocks, blocks_k.num_blocks, indices.shape[-1], width**-0.5 * LOG2_E, width**-0.5,
        *blocks_q.block, D=width, num_warps=4,
    )  # fmt: skip
