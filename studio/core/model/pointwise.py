"""The work around attention in plain PyTorch: norms, modulation, gates, rotation, SwiGLU.

The reference, and what runs on a CPU. `video_bsa.fused` has the same functions under the same names, each in one pass
over memory; a transformer is given one module or the other (`set_pointwise`).

Letters: B batch, T latent frames, S tokens, E model width, N heads, D head width.
fp32 inside any model dtype, as published: modulation, norms, gates with their residual, rotary embedding.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import cast

import torch
import torch.nn.functional as F

from studio.core.model.rope import rotate

EPS = 1e-6
"""Of every norm in the published transformer."""

Rotary = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines of every key token, each fp32 [S, D] (`rotary_table`)."""

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""(q, k, v, q_held, k_held, v_held), each [B, N, tokens, D]."""


def choose_pointwise(device: torch.device, dtype: torch.dtype) -> tuple[ModuleType, str | None]:
    """(the fused kernels where they run, else this module; why they do not run, or None)."""
    plain = sys.modules[__name__]
    if device.type == "cpu":
        return plain, None
    try:
        from video_bsa import fused
    except ImportError as error:
        return plain, f"the fused kernels need Triton ({error})"
    refusal = fused.refusal(device, dtype)
    return (plain if refusal else fused), refusal


def modulate(x_BSE: torch.Tensor, shift_BT1E: torch.Tensor, scale_BT1E: torch.Tensor) -> torch.Tensor:
    """LayerNorm(x) * (1 + scale) + shift, per latent frame, in fp32; back in the dtype of `x`."""
    normed = F.layer_norm(x_BSE.float(), (x_BSE.shape[-1],), eps=EPS)
    per_frame = normed.unflatten(1, (shift_BT1E.shape[1], -1))
    return (per_frame * (1 + scale_BT1E) + shift_BT1E).flatten(1, 2).to(x_BSE.dtype)


def layer_norm(x_BSE: torch.Tensor, weight_E: torch.Tensor, bias_E: torch.Tensor) -> torch.Tensor:
    """LayerNorm(x) * weight + bias, statistics and weights in fp32; back in the dtype of `x`."""
    return F.layer_norm(x_BSE.float(), (x_BSE.shape[-1],), weight_E.float(), bias_E.float(), EPS).to(x_BSE.dtype)


def rms_norm(x: torch.Tensor, weight_D: torch.Tensor) -> torch.Tensor:
    """Root-mean-square norm over the last axis, statistics in fp32; same shape and dtype."""
    inverse = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + EPS)
    return (x.float() * inverse).to(x.dtype) * weight_D.to(x.dtype)


def add_gated(x_BSE: torch.Tensor, update_BSE: torch.Tensor, gate_BT1E: torch.Tensor) -> torch.Tensor:
    """x + gate * update, per latent frame, in fp32; back in the dtype of `x`."""
    gated = update_BSE.float().unflatten(1, (gate_BT1E.shape[1], -1)) * gate_BT1E
    return (x_BSE.float() + gated.flatten(1, 2)).to(x_BSE.dtype)


def add_after(x_BSE: torch.Tensor, update: torch.Tensor, start: int) -> torch.Tensor:
    """x, with `update` [B, S - start, E] added to its tokens from `start` on."""
    if not start:
        return x_BSE + update
    return torch.cat((x_BSE[:, :start], x_BSE[:, start:] + update), dim=1)


def self_heads(
    qkv_BS3ND: torch.Tensor,
    q_weight_D: torch.Tensor,
    k_weight_D: torch.Tensor,
    rotary: Rotary,
    num_held: int,
    before: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> Heads:
    """Normed and rotated queries and keys, and values. q is of the tokens from `num_held` on, k and v are of all.

    `before` are rotated keys and values [B or 1, N, n, D] of tokens in front of these: k and v then begin with them,
    and positions count from them. `rotary` spans both.
    """
    q, k, v = qkv_BS3ND.permute(2, 0, 3, 1, 4)
    q, k = rms_norm(q, q_weight_D), rms_norm(k, k_weight_D)
    cos, sin = (table[-q.shape[2] :] for table in rotary)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    if before is not None:
        k = torch.cat((before[0].expand(k.shape[0], -1, -1, -1), k), dim=2)
        v = torch.cat((before[1].expand(v.shape[0], -1, -1, -1), v), dim=2)
    held = tuple(x[:, :, :num_held] for x in (q, k, v))
    return cast(Heads, (q[:, :, num_held:], k, v, *held))


def cross_heads(q_BSND: torch.Tensor, weight_D: torch.Tensor) -> torch.Tensor:
    """RMSNorm of each head, [B, N, S, D]."""
    return rms_norm(q_BSND, weight_D).transpose(1, 2)


def swiglu(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """SiLU(a) * b."""
    return F.silu(a) * b
