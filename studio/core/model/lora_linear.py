"""peft's LoRA on a linear, on tensor cores: the fp32 of its small factors kept, the bf16 of the activations untouched.

peft itself copies the activations to fp32 and multiplies there, which costs more than the layer. Here an fp32 factor is
the sum of two bf16 numbers, so that products with the activations, exact in bf16 already, run in bf16 with fp32 sums.

Letters: M tokens, K inputs, N outputs, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear


class LoraLinear(Linear):
    """As peft's, faster for bf16 on a CUDA device; elsewhere it is peft's."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """base(x) + scaling * (x A^T) B^T."""
        name = self._only_adapter(x) if not (args or kwargs) else None
        if name is None:
            return super().forward(x, *args, **kwargs)
        a, b, scaling = self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
        out, dropout = self.base_layer(x), self.lora_dropout[name]
        if self.training and isinstance(dropout, torch.nn.Dropout):
            # The scale goes to the LoRA, so that no activation is rounded.
            x, scaling = x * torch.empty_like(x).bernoulli_(1 - dropout.p), scaling / (1 - dropout.p)
        return _AddLora.apply(out, x, a, b, scaling)  # pyright: ignore

    def _only_adapter(self, x: torch.Tensor) -> str | None:
        """The one adapter that is on, where the fast way knows all that it asks for."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        is_plain = x.is_cuda and x.dtype == torch.bfloat16 and not self.disable_adapters and not self.merged
        if not is_plain or len(names) != 1 or names[0] in self.lora_variant:
            return None
        return None if self.lora_B[names[0]].bias is not None else names[0]


class _AddLora(torch.autograd.Function):
    """out + scaling * (x A^T) B^T, written into `out`."""

    @staticmethod
    def forward(
        ctx: Any, out: torch.Tensor, x: torch.Tensor, a_RK: torch.Tensor, b_NR: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        inner_MR = scaling * _times(x.flatten(0, -2), a_RK.float().t())
        ctx.scaling = scaling
        ctx.save_for_backward(x, a_RK, b_NR, inner_MR)
        ctx.mark_dirty(out)
        left, right = _both_split(inner_MR, b_NR.float().t())
        # Not `flatten`, which may copy: this must be the memory of `out`.
        out.view(-1, out.shape[-1]).addmm_(left, right)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x, a_RK, b_NR, inner_MR = ctx.saved_tensors
        grad_MN, x_MK = grads[0].flatten(0, -2).contiguous(), x.flatten(0, -2)
        grad_MR = ctx.scaling * _times(grad_MN, b_NR.float())
        dx = None
        if ctx.needs_input_grad[1]:
            left, right = _both_split(grad_MR, a_RK.float())
            dx = (left @ right).view(x.shape)
        da = _times(x_MK.t(), grad_MR).t()
        db = _times(grad_MN.t(), inner_MR)
        return grads[0], dx, da.to(a_RK.dtype), db.to(b_NR.dtype), None


def _split(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """fp32 as the sum of two bf16 numbers, 16 bits of it."""
    high = x.bfloat16()
    return high, (x - high.float()).bfloat16()


def _times(exact: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """bf16 [M, K] times fp32 [K, R], in fp32."""
    both = torch.mm(exact, torch.cat(_split(factor), dim=1), out_dtype=torch.float32)
    high, low = both.chunk(2, dim=1)
    return high + low


def _both_split(left_MR: torch.Tensor, right_RN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """bf16 [M, 3R] and [3R, N] whose product is that of the two fp32 factors, but for the 2^-16 of low times low."""
    (left_high, left_low), (right_high, right_low) = _split(left_MR), _split(right_RN)
    return torch.cat((left_high, left_low, left_high), dim=1), torch.cat((right_high, right_high, right_low))
