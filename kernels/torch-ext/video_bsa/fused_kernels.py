"""Triton kernels of the work around attention, one pass over memory each; `fused` calls them.

A kernel rounds where the plain PyTorch that it stands for rounds: the two differ by the order of fp32 sums only.

Letters: B batch, T frames, S tokens, E model width, N heads, D head width.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _centred(row_ptr, mask, width):
    """A row without its mean, fp32; zero where masked."""
    x = tl.load(row_ptr, mask=mask, other=0.0).to(tl.float32)
    return tl.where(mask, x - tl.sum(x, 0) / width, 0.0)


@triton.jit
def modulated_norm_kernel(
    x_ptr, shift_ptr, scale_ptr, out_ptr, rows_per_frame, frame_stride, width, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, ONE_PLUS: tl.constexpr,
):  # fmt: skip
    """LayerNorm(x) * (scale or 1 + scale) + shift; a program takes ROWS rows of a frame, which share these two."""
    frame = tl.program_id(1)
    cols = tl.arange(0, BLOCK)
    inside = cols < width
    shift = tl.load(shift_ptr + frame * frame_stride + cols, mask=inside, other=0.0)
    scale = tl.load(scale_ptr + frame * frame_stride + cols, mask=inside, other=0.0)
    if ONE_PLUS:
        scale += 1.0
    for step in range(ROWS):
        row = tl.program_id(0) * ROWS + step
        mask = inside & (row < rows_per_frame)
        at = (frame.to(tl.int64) * rows_per_frame + row) * width + cols
        centred = _centred(x_ptr + at, mask, width)
        inverse = tl.rsqrt(tl.sum(centred * centred, 0) / width + eps)
        out = centred * inverse * scale + shift
        tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def modulated_norm_backward_kernel(
    x_ptr, scale_ptr, grad_ptr, dx_ptr, rows_per_frame, frame_stride, width, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, ONE_PLUS: tl.constexpr,
):  # fmt: skip
    """Gradient of x; that of shift and scale is not taken."""
    frame = tl.program_id(1)
    cols = tl.arange(0, BLOCK)
    inside = cols < width
    scale = tl.load(scale_ptr + frame * frame_stride + cols, mask=inside, other=0.0)
    if ONE_PLUS:
        scale += 1.0
    for step in range(ROWS):
        row = tl.program_id(0) * ROWS + step
        mask = inside & (row < rows_per_frame)
        at = (frame.to(tl.int64) * rows_per_frame + row) * width + cols
        centred = _centred(x_ptr + at, mask, width)
        inverse = tl.rsqrt(tl.sum(centred * centred, 0) / width + eps)
        grad = tl.load(grad_ptr + at, mask=mask, other=0.0).to(tl.float32) * scale
        normed = centred * inverse
        along = tl.sum(grad * normed, 0) / width
        dx = inverse * (grad - tl.sum(grad, 0) / width - normed * along)
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def add_gated_kernel(
    x_ptr, update_ptr, gate_ptr, out_ptr, rows_per_frame, frame_stride, width, start,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, GATED: tl.constexpr, HAS_X: tl.constexpr,
):  # fmt: skip
    """x + gate * update; without GATED x + update from row `start` of a frame on; without HAS_X gate * update."""
    frame = tl.program_id(1)
    cols = tl.arange(0, BLOCK)
    inside = cols < width
    gate = tl.load(gate_ptr + frame * frame_stride + cols, mask=inside & GATED, other=0.0)
    for step in range(ROWS):
        row = tl.program_id(0) * ROWS + step
        mask = inside & (row < rows_per_frame)
        at = (frame.to(tl.int64) * rows_per_frame + row) * width + cols
        from_row = frame.to(tl.int64) * (rows_per_frame - start) + row - start
        update = tl.load(update_ptr + from_row * width + cols, mask=mask & (row >= start), other=0.0).to(tl.float32)
        out = update * gate if GATED else update
        if HAS_X:
            out += tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _angles(cos_ptr, sin_ptr, position, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Cosines and sines of a position, one for each pair [1, D / 2]: both numbers of a pair have the same."""
    pairs = 2 * tl.arange(0, BLOCK_D // 2)
    cos = tl.load(cos_ptr + position * D + pairs, mask=pairs < D, other=0.0)
    sin = tl.load(sin_ptr + position * D + pairs, mask=pairs < D, other=0.0)
    return cos[None, :], sin[None, :]


@triton.jit
def _rotate(x, cos, sin, N: tl.constexpr, D: tl.constexpr):
    """Pairs of x [N, D] turned by their angles."""
    even, odd = tl.split(tl.reshape(x, [N, D // 2, 2]))
    return tl.reshape(tl.join(even * cos - odd * sin, odd * cos + even * sin), [N, D])


@triton.jit
def head_norm_kernel(
    x_ptr, q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr, q_ptr, k_ptr, v_ptr, x_stride, tokens, before, eps,
    N: tl.constexpr, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, ROTATE: tl.constexpr,
):  # fmt: skip
    """RMSNorm of each head, then the rotation; program (token of the batch, part: q, k or v, which is only copied).

    The keys and values of a sample go behind `before` rows that were there already; so do the positions of q and k.
    """
    token = tl.program_id(0)
    part = tl.program_id(1)
    heads = tl.arange(0, BLOCK_N)
    dims = tl.arange(0, BLOCK_D)
    mask = (heads < N)[:, None] & (dims < D)[None, :]
    offsets = heads[:, None] * D + dims[None, :]
    here = x_ptr + token.to(tl.int64) * x_stride + part * (N * D)
    x = tl.load(here + offsets, mask=mask, other=0.0)
    sample = token // tokens
    row = token.to(tl.int64) + (sample + 1) * before
    if part == 2:
        tl.store(v_ptr + row * (N * D) + offsets, x, mask=mask)
    else:
        weight_ptr = q_weight_ptr if part == 0 else k_weight_ptr
        exact = x.to(tl.float32)
        inverse = tl.rsqrt(tl.sum(exact * exact, 1) / D + eps)[:, None]
        weight = tl.load(weight_ptr + dims, mask=dims < D, other=0.0).to(q_ptr.dtype.element_ty)[None, :]
        out = ((exact * inverse).to(q_ptr.dtype.element_ty) * weight).to(q_ptr.dtype.element_ty)
        if ROTATE:
            cos, sin = _angles(cos_ptr, sin_ptr, token - sample * tokens + before, D, BLOCK_D)
            out = _rotate(out.to(tl.float32), cos, sin, BLOCK_N, BLOCK_D).to(q_ptr.dtype.element_ty)
        if part == 0:
            tl.store(q_ptr + token.to(tl.int64) * (N * D) + offsets, out, mask=mask)
        else:
            tl.store(k_ptr + row * (N * D) + offsets, out, mask=mask)


@triton.jit
def head_norm_backward_kernel(
    x_ptr, q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr,
    dq_ptr, dk_ptr, dv_ptr, dq_held_ptr, dk_held_ptr, dv_held_ptr,
    dq_strides, dk_strides, dv_strides, dq_held_strides, dk_held_strides, dv_held_strides,
    dx_ptr, tokens, held, eps,
    N: tl.constexpr, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, ROTATE: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """Gradient of the projection [B, S, PARTS, N, D] from those of its heads.

    q: of the rows from `held` on in dq, of those before in dq_held. k and v: of all rows, plus those before `held`.
    """
    token = tl.program_id(0)
    part = tl.program_id(1)
    heads = tl.arange(0, BLOCK_N)
    dims = tl.arange(0, BLOCK_D)
    mask = (heads < N)[:, None] & (dims < D)[None, :]
    sample = (token // tokens).to(tl.int64)
    row = token - (token // tokens) * tokens
    is_held = row < held
    number = dx_ptr.dtype.element_ty
    at = (token.to(tl.int64) * PARTS + part) * (N * D) + heads[:, None] * D + dims[None, :]
    if part == 0:
        late = sample * dq_strides[0] + (row - held).to(tl.int64) * dq_strides[2] + heads[:, None] * dq_strides[1]
        early = sample * dq_held_strides[0] + row.to(tl.int64) * dq_held_strides[2]
        early += heads[:, None] * dq_held_strides[1]
        grad = _of_queries(dq_ptr + late, dq_held_ptr + early, dims, mask, is_held)
    elif part == 1:
        late = sample * dk_strides[0] + row.to(tl.int64) * dk_strides[2] + heads[:, None] * dk_strides[1]
        early = sample * dk_held_strides[0] + row.to(tl.int64) * dk_held_strides[2]
        early += heads[:, None] * dk_held_strides[1]
        grad = _of_keys(dk_ptr + late, dk_held_ptr + early, dims, mask, is_held, number)
    else:
        late = sample * dv_strides[0] + row.to(tl.int64) * dv_strides[2] + heads[:, None] * dv_strides[1]
        early = sample * dv_held_strides[0] + row.to(tl.int64) * dv_held_strides[2]
        early += heads[:, None] * dv_held_strides[1]
        grad = _of_keys(dv_ptr + late, dv_held_ptr + early, dims, mask, is_held, number)
    if part == 2:
        tl.store(dx_ptr + at, grad.to(number), mask=mask)
    else:
        if ROTATE:
            cos, sin = _angles(cos_ptr, sin_ptr, row, D, BLOCK_D)
            grad = _rotate(grad, cos, -sin, BLOCK_N, BLOCK_D).to(number).to(tl.float32)
        weight_ptr = q_weight_ptr if part == 0 else k_weight_ptr
        weight = tl.load(weight_ptr + dims, mask=dims < D, other=0.0).to(number).to(tl.float32)[None, :]
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        inverse = tl.rsqrt(tl.sum(x * x, 1) / D + eps)[:, None]
        grad = (grad * weight).to(number).to(tl.float32)
        along = tl.sum(grad * x, 1)[:, None]
        through_mean = (-along * inverse * inverse * inverse / D * x).to(number).to(tl.float32)
        dx = (grad * inverse).to(number).to(tl.float32) + through_mean
        tl.store(dx_ptr + at, dx.to(number), mask=mask)


@triton.jit
def _of_queries(late_ptr, early_ptr, dims, mask, is_held):
    late = tl.load(late_ptr + dims[None, :], mask=mask & (is_held == 0), other=0.0).to(tl.float32)
    return late + tl.load(early_ptr + dims[None, :], mask=mask & is_held, other=0.0).to(tl.float32)


@triton.jit
def _of_keys(late_ptr, early_ptr, dims, mask, is_held, number: tl.constexpr):
    late = tl.load(late_ptr + dims[None, :], mask=mask, other=0.0).to(tl.float32)
    early = tl.load(early_ptr + dims[None, :], mask=mask & is_held, other=0.0).to(tl.float32)
    return (late + early).to(number).to(tl.float32)


@triton.jit
def swiglu_kernel(a_ptr, b_ptr, out_ptr, count, BLOCK: tl.constexpr):
    """SiLU(a) * b."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    a = tl.load(a_ptr + at, mask=at < count, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + at, mask=at < count, other=0.0)
    silu = (a / (1 + tl.exp(-a))).to(b.dtype)
    tl.store(out_ptr + at, silu * b, mask=at < count)


@triton.jit
def swiglu_backward_kernel(a_ptr, b_ptr, grad_ptr, count, BLOCK: tl.constexpr):
    """Writes the gradients of a and b over them."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    a = tl.load(a_ptr + at, mask=at < count, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + at, mask=at < count, other=0.0)
    grad = tl.load(grad_ptr + at, mask=at < count, other=0.0)
    gate = 1 / (1 + tl.exp(-a))
    silu = (a * gate).to(b.dtype)
    of_silu = (grad * b).to(tl.float32)
    tl.store(a_ptr + at, (of_silu * gate * (1 + a * (1 - gate))).to(b.dtype), mask=at < count)
    tl.store(b_ptr + at, grad * silu, mask=at < count)


@triton.jit
def quantise_rows_kernel(
    x_ptr, columns_ptr, out_ptr, scale_ptr, width, largest, ROW: tl.constexpr, BY_COLUMN: tl.constexpr
):  # fmt: skip
    """x / scale in fp8 and scale = max |x| / largest, by row; BY_COLUMN x is multiplied with a row of fp32 first."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, ROW)
    x = tl.load(x_ptr + row * width + cols, mask=cols < width, other=0.0).to(tl.float32)
    if BY_COLUMN:
        x *= tl.load(columns_ptr + cols, mask=cols < width, other=0.0)
    scale = tl.maximum(tl.max(tl.abs(x), 0), 1e-12) / largest
    tl.store(out_ptr + row * width + cols, (x / scale).to(out_ptr.dtype.element_ty), mask=cols < width)
    tl.store(scale_ptr + row, scale)
