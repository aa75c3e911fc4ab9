"""Linears whose products run in fp8: `base_model_precision: "fp8-torchao"`.

The recipe is torchao's row-wise one: the weight is quantised once with a scale for every output, activations (and in
the backward pass gradients) by token as they come, sums are fp32. The product is `torch._scaled_mm`.

Letters: M tokens, K inputs, N outputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

FP8 = torch.float8_e4m3fn


class Fp8Linear(nn.Linear):
    """`linear`, frozen, on its device: `weight` in fp8 [N, K], `scale` fp32 [N]; a gradient reaches the input only.

    On a CUDA device of compute capability 8.9 or higher the products run in fp8; on a CPU they are those of the same
    rounded numbers, in the type of the input.
    """

    def __init__(self, linear: nn.Linear) -> None:
        with torch.device("meta"):
            super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        weight, scale = quantise_rows(linear.weight.detach())
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = linear.bias
        self.register_buffer("scale", scale.flatten())

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., N] of [..., K], in the type of the input."""
        return _Fp8Product.apply(input, self.weight, self.scale, self.bias)  # pyright: ignore[reportReturnType]


def quantise_rows(x_MK: torch.Tensor, columns_K: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """(fp8 [M, K], fp32 [M, 1] to multiply it with) of x, or of x * columns."""
    if x_MK.is_cuda:
        from video_bsa import fused

        return fused.quantise_rows(x_MK, columns_K)
    x = x_MK.float() if columns_K is None else x_MK.float() * columns_K
    scale = x.abs().amax(1, keepdim=True).clamp_min(1e-12) / torch.finfo(FP8).max
    return (x / scale).to(FP8), scale


class _Fp8Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight_NK: torch.Tensor, scale_N: torch.Tensor, bias_N: torch.Tensor | None
    ) -> torch.Tensor:
        # An alias, as autograd itself keeps of a linear's weight: whoever offloads gives the parameter other data.
        ctx.save_for_backward(weight_NK.detach(), scale_N)
        out = _multiply(*quantise_rows(x.flatten(0, -2)), weight_NK, scale_N, bias_N, x.dtype)
        # No view for autograd, so that an adapter may add to it in place.
        return torch.ops.aten._unsafe_view(out, (*x.shape[:-1], out.shape[-1]))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        weight_NK, scale_N = ctx.saved_tensors
        grad_MN = grads[0].flatten(0, -2)
        # The scale of an output lies along the sum here, so it goes to the gradient.
        rounded, scale_M1 = quantise_rows(grad_MN, scale_N)
        # The units take both operands along the sum only: a copy of the weight, small beside the product.
        weight_KN = weight_NK.view(torch.uint8).t().contiguous().view(FP8)
        ones_K = scale_N.new_ones(weight_NK.shape[1])
        dx = _multiply(rounded, scale_M1, weight_KN, ones_K, None, grad_MN.dtype)
        return dx.view(*grads[0].shape[:-1], weight_NK.shape[1]), None, None, None


def _multiply(
    x_MK: torch.Tensor, scale_M1: torch.Tensor, weight_NK: torch.Tensor, scale_N: torch.Tensor,
    bias_N: torch.Tensor | None, dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    """(x * scale) (weight * scale)^T + bias, [M, N] in `dtype`."""
    if x_MK.is_cuda:
        return torch._scaled_mm(
            x_MK, weight_NK.t(), scale_M1, scale_N.unsqueeze(0), bias=bias_N, out_dtype=dtype, use_fast_accum=True
        )
    x, weight = x_MK.float() * scale_M1, weight_NK.float() * scale_N.unsqueeze(1)
    return F.linear(x, weight, None if bias_N is None else bias_N.float()).to(dtype)
