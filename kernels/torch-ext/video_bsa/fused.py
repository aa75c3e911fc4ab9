"""The work around attention in a video transformer, each piece in one pass over memory, differentiable.

For CUDA tensors; `refusal` says where they run. Weights, shifts, scales and gates get no gradient: what they stand in
is frozen. The plain PyTorch of each is in `kernels/tests/test_fused.py`, rounding for rounding.

Letters: B batch, T frames, S tokens, E model width, N heads, D head width.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import triton

from . import fused_kernels
from .triton_path import gpu_refusal, is_interpreted, on_device

EPS = 1e-6
ROWS = 8
"""Rows of a frame that one program takes, for one load of their shift and scale."""
FLAT = 1024
"""Numbers that one program takes of what has no rows."""

kernels: Any = fused_kernels

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""(q, k, v, q_held, k_held, v_held), each [B, N, tokens, D] and in memory [B, tokens, N, D]."""


def refusal(device: torch.device | str, dtype: torch.dtype) -> str | None:
    """Why these functions do not run for such tensors, a sentence without a full stop; None where they do."""
    device = torch.device(device)
    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return f"the fused kernels take bf16, fp16 and fp32, not {str(dtype).removeprefix('torch.')}"
    if is_interpreted():
        return None
    if device.type != "cuda":
        return f"the fused kernels need a CUDA device, not {device.type}"
    return gpu_refusal(device, "the fused kernels")


def modulate(x_BSE: torch.Tensor, shift_BT1E: torch.Tensor, scale_BT1E: torch.Tensor) -> torch.Tensor:
    """LayerNorm(x) * (1 + scale) + shift per frame, in fp32, back in the type of `x`; S = T * tokens of a frame.

    Raises:
        ValueError: shift or scale want a gradient, or are not rows of one fp32 tensor [B, T, 1, k * E].
    """
    frames = shift_BT1E.shape[0] * shift_BT1E.shape[1]
    stride = _frame_stride(shift_BT1E, scale_BT1E)
    return _ModulatedNorm.apply(x_BSE.contiguous(), shift_BT1E, scale_BT1E, frames, stride, True)  # pyright: ignore


def layer_norm(x_BSE: torch.Tensor, weight_E: torch.Tensor, bias_E: torch.Tensor) -> torch.Tensor:
    """LayerNorm(x) * weight + bias in fp32, back in the type of `x`."""
    return _ModulatedNorm.apply(x_BSE.contiguous(), bias_E.float(), weight_E.float(), 1, 0, False)  # pyright: ignore


def add_gated(x_BSE: torch.Tensor, update_BSE: torch.Tensor, gate_BT1E: torch.Tensor) -> torch.Tensor:
    """x + gate * update per frame, in fp32, back in the type of `x`. Raises ValueError as `modulate`."""
    return _AddGated.apply(x_BSE, update_BSE, gate_BT1E, _frame_stride(gate_BT1E))  # pyright: ignore


def add_after(x_BSE: torch.Tensor, update: torch.Tensor, start: int) -> torch.Tensor:
    """x, with `update` [B, S - start, E] added to its tokens from `start` on."""
    return _AddAfter.apply(x_BSE, update, start)  # pyright: ignore


def self_heads(
    qkv_BS3ND: torch.Tensor,
    q_weight_D: torch.Tensor,
    k_weight_D: torch.Tensor,
    rotary: tuple[torch.Tensor, torch.Tensor],
    num_held: int,
    before: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> Heads:
    """Normed and rotated queries and keys, and values. q is of the tokens from `num_held` on, k and v are of all.

    `before` are rotated keys and values [B or 1, N, n, D] of tokens in front of these: k and v then begin with them,
    positions count from them, and there is no gradient. `rotary` is (cos, sin), fp32 [n + S, D] each.
    """
    if before is None:
        return _SelfHeads.apply(qkv_BS3ND.contiguous(), q_weight_D, k_weight_D, *rotary, num_held)  # pyright: ignore
    batch, tokens, _, heads, width = qkv_BS3ND.shape
    num_before = before[0].shape[2]
    q = qkv_BS3ND.new_empty(batch, tokens, heads, width)
    k, v = (qkv_BS3ND.new_empty(batch, num_before + tokens, heads, width) for _ in "kv")
    k[:, :num_before], v[:, :num_before] = before[0].transpose(1, 2), before[1].transpose(1, 2)
    _launch_head_norm(qkv_BS3ND.contiguous(), q_weight_D, k_weight_D, *rotary, q, k, v, num_before)
    return _split_heads(q, k, v, num_held)


def cross_heads(q_BSND: torch.Tensor, weight_D: torch.Tensor) -> torch.Tensor:
    """RMSNorm of each head, [B, N, S, D]."""
    return _CrossHeads.apply(q_BSND.contiguous(), weight_D)  # pyright: ignore


def swiglu(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """SiLU(a) * b. The backward pass, of which there can be one, writes the gradients of a and b over them: they are
    the largest tensors of a layer, and a second pair of them would be the peak of its memory.

    Raises:
        ValueError: a or b is a parameter, or another leaf that wants a gradient.
    """
    if any(x.is_leaf and x.requires_grad for x in (a, b)):
        raise ValueError("swiglu writes gradients over what it is given; give it the output of a layer, not a leaf")
    return _SwiGLU.apply(a.contiguous(), b.contiguous())  # pyright: ignore


def quantise_rows(x_MK: torch.Tensor, columns_K: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """(x in float8_e4m3fn [M, K], fp32 [M, 1] to multiply it with): each row spans the range of the type.

    With fp32 `columns` it is of x * columns.
    """
    x = x_MK.contiguous()
    rows, width = x.shape
    out = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    scale = x.new_empty(rows, 1, dtype=torch.float32)
    with on_device(x):
        kernels.quantise_rows_kernel[(rows,)](
            x, scale if columns_K is None else columns_K, out, scale, width, torch.finfo(out.dtype).max,
            ROW=triton.next_power_of_2(width), BY_COLUMN=columns_K is not None, num_warps=_warps(width),
        )  # fmt: skip
    return out, scale


class _ModulatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, *how: Any) -> torch.Tensor:
        frames, stride, one_plus = how
        ctx.how = how
        ctx.save_for_backward(x, scale)
        out = torch.empty_like(x)
        kernel = kernels.modulated_norm_kernel
        _launch_by_frame(kernel, out, frames, stride, x, shift, scale, out, after=EPS, ONE_PLUS=one_plus)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x, scale = ctx.saved_tensors
        frames, stride, one_plus = ctx.how
        grad, dx = grads[0].contiguous(), torch.empty_like(x)
        kernel = kernels.modulated_norm_backward_kernel
        _launch_by_frame(kernel, dx, frames, stride, x, scale, grad, dx, after=EPS, ONE_PLUS=one_plus)
        return dx, None, None, None, None, None


class _AddGated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, update: torch.Tensor, gate: torch.Tensor, stride: int) -> torch.Tensor:
        ctx.stride = stride
        ctx.save_for_backward(gate)
        return _add(x.contiguous(), update.contiguous(), gate, stride)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (gate,) = ctx.saved_tensors
        grad = grads[0]
        return grad, _add(None, grad.contiguous(), gate, ctx.stride), None, None


class _AddAfter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, update: torch.Tensor, start: int) -> torch.Tensor:
        ctx.start = start
        return _add(x.contiguous(), update.contiguous(), None, 0, start)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return grads[0], grads[0][:, ctx.start :], None


class _SelfHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: torch.Tensor, q_weight: torch.Tensor, k_weight: torch.Tensor,
        cos: torch.Tensor, sin: torch.Tensor, num_held: int,
    ) -> Any:  # fmt: skip
        batch, tokens, _, heads, width = qkv.shape
        q, k = (qkv.new_empty(batch, tokens, heads, width) for _ in "qk")
        _launch_head_norm(qkv, q_weight, k_weight, cos, sin, q, k, None, 0)
        ctx.num_held = num_held
        ctx.save_for_backward(qkv, q_weight, k_weight, cos, sin)
        return _split_heads(q, k, qkv[:, :, 2], num_held)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        qkv, q_weight, k_weight, cos, sin = ctx.saved_tensors
        return _head_norm_backward(qkv, q_weight, k_weight, cos, sin, grads, ctx.num_held), *[None] * 5


class _CrossHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        out = torch.empty_like(x)
        _launch_head_norm(x.unsqueeze(2), weight, weight, None, None, out, None, None, 0)
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x, weight = ctx.saved_tensors
        dx = _head_norm_backward(x.unsqueeze(2), weight, weight, None, None, grads, 0)
        return dx.squeeze(2), None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(a, b)
        out = torch.empty_like(a)
        with on_device(a):
            kernels.swiglu_kernel[(triton.cdiv(a.numel(), FLAT),)](a, b, out, a.numel(), BLOCK=FLAT)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        a, b = ctx.saved_tensors
        with on_device(a):
            kernels.swiglu_backward_kernel[(triton.cdiv(a.numel(), FLAT),)](
                a, b, grads[0].contiguous(), a.numel(), BLOCK=FLAT
            )
        # Whoever wants them again, a second backward pass for one, gets an error instead of wrong numbers.
        torch.autograd.graph.increment_version((a, b))
        return a.detach(), b.detach()


def _add(
    x: torch.Tensor | None, update: torch.Tensor, gate: torch.Tensor | None, stride: int, start: int = 0
) -> torch.Tensor:
    """x + gate * update, or x + update from row `start` of a sample on, or gate * update."""
    out = torch.empty_like(update if x is None else x)
    frames = out.shape[0] if gate is None else gate.shape[0] * gate.shape[1]
    _launch_by_frame(
        kernels.add_gated_kernel, out, frames, stride, out if x is None else x, update, out if gate is None else gate,
        out, after=start, GATED=gate is not None, HAS_X=x is not None,
    )  # fmt: skip
    return out


def _launch_by_frame(
    kernel: Any, out: torch.Tensor, frames: int, stride: int, *tensors: torch.Tensor, after: float, **flags: bool
) -> None:
    """Starts a kernel that takes ROWS rows of a frame in a program; `after` is its last argument."""
    width = out.shape[-1]
    rows = out.numel() // width // frames
    with on_device(out):
        kernel[(triton.cdiv(rows, ROWS), frames)](
            *tensors, rows, stride, width, after, ROWS=ROWS, BLOCK=triton.next_power_of_2(width),
            num_warps=_warps(width), **flags,
        )  # fmt: skip


def _launch_head_norm(
    x: torch.Tensor, q_weight: torch.Tensor, k_weight: torch.Tensor, cos: torch.Tensor | None, sin: torch.Tensor | None,
    q: torch.Tensor, k: torch.Tensor | None, v: torch.Tensor | None, before: int,
) -> None:  # fmt: skip
    """Fills q, and k and v where they are given, from a projection [B, S, parts, N, D]."""
    batch, tokens, parts, heads, width = x.shape
    rotates = cos is not None
    with on_device(x):
        kernels.head_norm_kernel[(batch * tokens, 1 if k is None else 2 if v is None else 3)](
            x, q_weight, k_weight, cos if rotates else x, sin if rotates else x, q, q if k is None else k,
            q if v is None else v, parts * heads * width, tokens, before, EPS, N=heads, D=width, ROTATE=rotates,
            BLOCK_N=triton.next_power_of_2(heads), BLOCK_D=triton.next_power_of_2(width), num_warps=4,
        )  # fmt: skip


def _head_norm_backward(
    x: torch.Tensor, q_weight: torch.Tensor, k_weight: torch.Tensor, cos: torch.Tensor | None, sin: torch.Tensor | None,
    grads: tuple[torch.Tensor, ...], num_held: int,
) -> torch.Tensor:  # fmt: skip
    """Gradient of a projection [B, S, parts, N, D] from those of `Heads`, or of queries alone."""
    batch, tokens, parts, heads, width = x.shape
    grads = tuple(grad if grad.stride(-1) == 1 else grad.contiguous() for grad in grads)
    grads = grads if len(grads) == 6 else grads * 6
    rotates = cos is not None
    dx = torch.empty_like(x)
    with on_device(x):
        kernels.head_norm_backward_kernel[(batch * tokens, parts)](
            x, q_weight, k_weight, cos if rotates else x, sin if rotates else x, *grads,
            *(grad.stride()[:3] for grad in grads), dx, tokens, num_held, EPS, N=heads, D=width, ROTATE=rotates,
            PARTS=parts, BLOCK_N=triton.next_power_of_2(heads), BLOCK_D=triton.next_power_of_2(width), num_warps=4,
        )  # fmt: skip
    return dx


def _split_heads(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_held: int) -> Heads:
    """`Heads` as views of [B, S, N, D]."""
    held = (x[:, :num_held].transpose(1, 2) for x in (q, k, v))
    return cast(Heads, (q[:, num_held:].transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), *held))


def _frame_stride(*rows_BT1E: torch.Tensor) -> int:
    """Numbers from the row of one frame to that of the next, the same for all samples and arguments."""
    first = rows_BT1E[0]
    for rows in rows_BT1E:
        if rows.requires_grad:
            raise ValueError("shifts, scales and gates get no gradient from the fused kernels: freeze them")
        if rows.dtype != torch.float32 or rows.stride() != first.stride() or rows.stride(3) != 1:
            raise ValueError("shifts, scales and gates must be fp32 rows of one tensor")
        if rows.shape[0] > 1 and rows.stride(0) != rows.shape[1] * rows.stride(1):
            raise ValueError("shifts, scales and gates must lie frame after frame")
    return first.stride(1)


def _warps(width: int) -> int:
    return 8 if width >= 2048 else 4
