"""The parts of the LongCat-Video transformer, under their published state-dict names.

Letters: B batch, T latent frames, S tokens, E model width, N heads, D head width, L text length.
fp32 inside any model dtype, as published: modulation, norms, gates with their residual, rotary embedding.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from studio.core.geometry import Grid
from studio.core.model.attention import DENSE, AttentionChoice, AttentionRecorder, attend
from studio.core.model.rope import rotate

KeyValue = tuple[torch.Tensor, torch.Tensor]
"""Keys (after their norm, before rotation) and values, each [B, N, S, D]."""

Rotary = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines of every key token, each fp32 [S, D] (`rotary_table`)."""

NORM_EPS = 1e-6


def modulate(x_BSE: torch.Tensor, shift_BT1E: torch.Tensor, scale_BT1E: torch.Tensor) -> torch.Tensor:
    """LayerNorm(x) * (1 + scale) + shift, per latent frame, in fp32; back in the dtype of `x`."""
    normed = F.layer_norm(x_BSE.float(), (x_BSE.shape[-1],), eps=NORM_EPS)
    per_frame = normed.unflatten(1, (shift_BT1E.shape[1], -1))
    return (per_frame * (1 + scale_BT1E) + shift_BT1E).flatten(1, 2).to(x_BSE.dtype)


def add_gated(x_BSE: torch.Tensor, update_BSE: torch.Tensor, gate_BT1E: torch.Tensor) -> torch.Tensor:
    """x + gate * update, per latent frame, in fp32; back in the dtype of `x`."""
    gated = update_BSE.float().unflatten(1, (gate_BT1E.shape[1], -1)) * gate_BT1E
    return (x_BSE.float() + gated.flatten(1, 2)).to(x_BSE.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, statistics in fp32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` normed, same shape and dtype."""
        inverse = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + NORM_EPS)
        return (x.float() * inverse).to(x.dtype) * self.weight.to(x.dtype)


class FP32LayerNorm(nn.LayerNorm):
    """LayerNorm with its statistics and weights in fp32."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`input` normed, same shape and dtype."""
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(input.float(), self.normalized_shape, weight, bias, self.eps).to(input.dtype)


class TimestepEmbedder(nn.Module):
    """Sinusoid and two linears, in fp32; timesteps in 0..1000."""

    def __init__(self, width: int, frequency_width: int) -> None:
        super().__init__()
        self.frequency_width = frequency_width
        self.mlp = nn.Sequential(nn.Linear(frequency_width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, timestep_BT: torch.Tensor) -> torch.Tensor:
        """fp32 embedding [B, T, width]; cosines come first."""
        half = self.frequency_width // 2
        exponent = torch.arange(half, device=timestep_BT.device, dtype=torch.float32) / half
        angle = timestep_BT.float().unsqueeze(-1) * torch.exp(-math.log(10000.0) * exponent)
        return self.mlp(torch.cat((angle.cos(), angle.sin()), dim=-1))


class CaptionEmbedder(nn.Module):
    """Text embeddings to the model width."""

    def __init__(self, caption_width: int, width: int) -> None:
        super().__init__()
        self.y_proj = nn.Sequential(
            nn.Linear(caption_width, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
        )

    def forward(self, text_BLE: torch.Tensor) -> torch.Tensor:
        """[B, L, width]."""
        return self.y_proj(text_BLE)


class PatchEmbedder(nn.Module):
    """Latents to tokens: one convolution with kernel and stride (1, patch, patch)."""

    def __init__(self, in_channels: int, width: int, patch_size: tuple[int, int, int]) -> None:
        super().__init__()
        self.proj = nn.Conv3d(in_channels, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Tokens [B, S, width] in (t, h, w) order, from latents [B, C, T, H, W]."""
        return self.proj(latents).flatten(2).transpose(1, 2)


class SelfAttention(nn.Module):
    """Attention over video tokens. Conditioning tokens see only themselves; noise tokens see all."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_width = width // num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.q_norm = RMSNorm(self.head_width)
        self.k_norm = RMSNorm(self.head_width)
        self.choice: AttentionChoice = DENSE
        self.recorder: AttentionRecorder | None = None

    def forward(
        self, x_BSE: torch.Tensor, rotary: Rotary, grid: Grid, num_cond_latents: int, cache: KeyValue | None
    ) -> tuple[torch.Tensor, KeyValue]:
        """(output [B, S, E], keys and values of `x`).

        `grid` is that of `x`; with `cache`, the tokens of `x` follow those that made the cache in time.
        """
        cos, sin = rotary
        qkv = self.qkv(x_BSE).unflatten(-1, (3, self.num_heads, self.head_width))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        fresh = (k, v)
        if cache is not None:
            k = torch.cat((cache[0].expand(k.shape[0], -1, -1, -1), k), dim=2)
            v = torch.cat((cache[1].expand(v.shape[0], -1, -1, -1), v), dim=2)
        q = rotate(q, cos[-q.shape[2] :], sin[-q.shape[2] :])
        k = rotate(k, cos, sin)
        tokens_per_frame = grid.h * grid.w
        num_cond = num_cond_latents * tokens_per_frame
        grid_k = Grid(k.shape[2] // tokens_per_frame, grid.h, grid.w)
        grid_noise = Grid(grid.t - num_cond_latents, grid.h, grid.w)
        out = attend(
            q[:, :, num_cond:], k, v, grid_q=grid_noise, grid_k=grid_k, choice=self.choice, recorder=self.recorder
        )
        if num_cond:
            grid_cond = Grid(num_cond_latents, grid.h, grid.w)
            held = attend(
                q[:, :, :num_cond], k[:, :, :num_cond], v[:, :, :num_cond],
                grid_q=grid_cond, grid_k=grid_cond, choice=self.choice,
            )  # fmt: skip
            out = torch.cat((held, out), dim=2)
        return self.proj(out.transpose(1, 2).flatten(2)), fresh


class CrossAttention(nn.Module):
    """Attention of video tokens to text."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_width = width // num_heads
        self.q_linear = nn.Linear(width, width)
        self.kv_linear = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.q_norm = RMSNorm(self.head_width)
        self.k_norm = RMSNorm(self.head_width)

    def forward(self, x_BSE: torch.Tensor, text_BLE: torch.Tensor, mask_BL: torch.Tensor | None) -> torch.Tensor:
        """[B, S, E]; text tokens whose mask is False are not attended."""
        q = self.q_linear(x_BSE).unflatten(-1, (self.num_heads, self.head_width)).transpose(1, 2)
        kv = self.kv_linear(text_BLE).unflatten(-1, (2, self.num_heads, self.head_width))
        k, v = kv.permute(2, 0, 3, 1, 4)
        mask = None if mask_BL is None else mask_BL[:, None, None, :]
        out = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, attn_mask=mask)
        return self.proj(out.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """Feed-forward w2(SiLU(w1 x) * w3 x); its width is 2/3 of `hidden`, rounded up to 256."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        inner = 256 * math.ceil(int(2 * hidden / 3) / 256)
        self.w1 = nn.Linear(width, inner, bias=False)
        self.w2 = nn.Linear(inner, width, bias=False)
        self.w3 = nn.Linear(width, inner, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape as `x`."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class DitBlock(nn.Module):
    """One transformer layer: modulated self-attention, cross-attention, modulated feed-forward."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, adaln_width: int) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(adaln_width, 6 * width))
        self.attn = SelfAttention(width, num_heads)
        self.pre_crs_attn_norm = FP32LayerNorm(width, eps=NORM_EPS)
        self.cross_attn = CrossAttention(width, num_heads)
        self.ffn = SwiGLU(width, int(width * mlp_ratio))

    def forward(
        self,
        x_BSE: torch.Tensor,
        embedding_BTA: torch.Tensor,
        text_BLE: torch.Tensor | None,
        mask_BL: torch.Tensor | None,
        rotary: Rotary,
        grid: Grid,
        num_cond_latents: int,
        cache: KeyValue | None,
    ) -> tuple[torch.Tensor, KeyValue]:
        """(output [B, S, E], keys and values of the self-attention); no `text` skips the cross-attention.

        Source: the published block; the feed-forward adds to the un-normalised stream, the cross-attention is
        neither gated nor modulated, and conditioning tokens get exact zeros from it.
        """
        modulation = self.adaLN_modulation(embedding_BTA).unsqueeze(2).chunk(6, dim=-1)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = modulation
        update, fresh = self.attn(modulate(x_BSE, shift_msa, scale_msa), rotary, grid, num_cond_latents, cache)
        x = add_gated(x_BSE, update, gate_msa)
        if text_BLE is not None:
            num_cond = num_cond_latents * grid.h * grid.w
            noise = x[:, num_cond:]
            noise = noise + self.cross_attn(self.pre_crs_attn_norm(noise), text_BLE, mask_BL)
            x = torch.cat((x[:, :num_cond], noise), dim=1) if num_cond else noise
        return add_gated(x, self.ffn(modulate(x, shift_mlp, scale_mlp)), gate_mlp), fresh


class FinalLayer(nn.Module):
    """Modulated norm and one linear to patches, all in fp32."""

    def __init__(self, width: int, patch_channels: int, adaln_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, patch_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(adaln_width, 2 * width))

    def forward(self, x_BSE: torch.Tensor, embedding_BTA: torch.Tensor) -> torch.Tensor:
        """fp32 [B, S, patch_channels]."""
        shift, scale = self.adaLN_modulation(embedding_BTA).unsqueeze(2).chunk(2, dim=-1)
        return self.linear(modulate(x_BSE.float(), shift, scale))
