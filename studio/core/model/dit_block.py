"""The parts of the LongCat-Video transformer, under their published state-dict names.

Letters: B batch, T latent frames, S tokens, E model width, N heads, D head width, L text length.
"""

from __future__ import annotations

import math
from functools import partial
from types import ModuleType

import torch
from torch import nn

from studio.core.geometry import Grid
from studio.core.model import pointwise
from studio.core.model.attention import DENSE, AttentionChoice, AttentionRecorder, attend, attend_densely
from studio.core.model.pointwise import EPS, Rotary
from studio.core.model.rope import rotate
from studio.core.model.ulysses import Ulysses

KeyValue = tuple[torch.Tensor, torch.Tensor]
"""Keys (after their norm, before rotation) and values, each [B, N, S, D]."""


class RMSNorm(nn.Module):
    """The weight of a root-mean-square norm over the head width; `pointwise` applies it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))


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
        self.ulysses: Ulysses | None = None
        """Where a video is spread over several processes: the tokens are the own ones of each frame."""

    def forward(
        self,
        x_BSE: torch.Tensor,
        rotary: Rotary,
        grid: Grid,
        num_cond_latents: int,
        cache: KeyValue | None,
        return_kv: bool,
        ops: ModuleType,
    ) -> tuple[torch.Tensor, KeyValue | None]:
        """(output [B, S, E], keys and values of `x` if `return_kv`).

        `grid` is that of `x`; with `cache`, the tokens of `x` follow those that made the cache in time.
        """
        qkv = self.qkv(x_BSE).unflatten(-1, (3, self.num_heads, self.head_width))
        fresh = None
        if return_kv:
            k, v = qkv[:, :, 1:].permute(2, 0, 3, 1, 4)
            fresh = (pointwise.rms_norm(k, self.k_norm.weight), v.clone())
        before = None
        if cache is not None:
            cos, sin = (table[: cache[0].shape[2]] for table in rotary)
            before = (rotate(cache[0], cos, sin), cache[1])
        tokens_per_frame = x_BSE.shape[1] // grid.t
        num_cond = num_cond_latents * tokens_per_frame
        q, k, v, *held = ops.self_heads(qkv, self.q_norm.weight, self.k_norm.weight, rotary, num_cond, before)
        grid_k = Grid(k.shape[2] // tokens_per_frame, grid.h, grid.w)
        grid_noise = Grid(grid.t - num_cond_latents, grid.h, grid.w)
        out = self._attend(q, k, v, grid_noise, grid_k, self.recorder)
        if num_cond:
            grid_cond = Grid(num_cond_latents, grid.h, grid.w)
            q_held, k_held, v_held = held
            of_held = self._attend(q_held, k_held, v_held, grid_cond, grid_cond)
            out = torch.cat((of_held.transpose(1, 2), out.transpose(1, 2)), dim=1).transpose(1, 2)
        return self.proj(out.transpose(1, 2).flatten(2)), fresh

    def _attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        grid_q: Grid,
        grid_k: Grid,
        recorder: AttentionRecorder | None = None,
    ) -> torch.Tensor:
        """`attend`, on one process or on several."""
        attention = partial(attend, grid_q=grid_q, grid_k=grid_k, choice=self.choice, recorder=recorder)
        if self.ulysses is None:
            return attention(q, k, v)
        return self.ulysses.around(attention, q, k, v, grid_q, grid_k)


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

    def forward(
        self, x_BSE: torch.Tensor, text_BLE: torch.Tensor, mask_BL: torch.Tensor | None, ops: ModuleType
    ) -> torch.Tensor:
        """[B, S, E]; text tokens whose mask is False are not attended."""
        q = ops.cross_heads(self.q_linear(x_BSE).unflatten(-1, (self.num_heads, self.head_width)), self.q_norm.weight)
        k, v = self.kv_linear(text_BLE).unflatten(-1, (2, self.num_heads, self.head_width)).unbind(2)
        k, v = ops.cross_heads(k, self.k_norm.weight), v.transpose(1, 2)
        mask = None if mask_BL is None else mask_BL[:, None, None, :]
        return self.proj(attend_densely(q, k, v, mask).transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """Feed-forward w2(SiLU(w1 x) * w3 x); its width is 2/3 of `hidden`, rounded up to 256."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        inner = 256 * math.ceil(int(2 * hidden / 3) / 256)
        self.w1 = nn.Linear(width, inner, bias=False)
        self.w2 = nn.Linear(inner, width, bias=False)
        self.w3 = nn.Linear(width, inner, bias=False)

    def forward(self, x: torch.Tensor, ops: ModuleType) -> torch.Tensor:
        """Same shape as `x`."""
        return self.w2(ops.swiglu(self.w1(x), self.w3(x)))


class DitBlock(nn.Module):
    """One transformer layer: modulated self-attention, cross-attention, modulated feed-forward."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, adaln_width: int) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(adaln_width, 6 * width))
        self.attn = SelfAttention(width, num_heads)
        self.pre_crs_attn_norm = nn.LayerNorm(width, eps=EPS)
        self.cross_attn = CrossAttention(width, num_heads)
        self.ffn = SwiGLU(width, int(width * mlp_ratio))
        self.ops: ModuleType = pointwise
        self.is_swapped = False
        """True where the weights visit the device for a call only (`swap.py`), so that none can be kept for a
        backward pass."""

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
        return_kv: bool,
    ) -> tuple[torch.Tensor, KeyValue | None]:
        """(output [B, S, E], keys and values of the self-attention if `return_kv`); no `text` skips the
        cross-attention.

        Source: the published block; the feed-forward adds to the un-normalised stream, the cross-attention is
        neither gated nor modulated, and conditioning tokens get exact zeros from it.
        """
        ops = self.ops
        modulation = self.adaLN_modulation(embedding_BTA).unsqueeze(2).chunk(6, dim=-1)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = modulation
        normed = ops.modulate(x_BSE, shift_msa, scale_msa)
        update, fresh = self.attn(normed, rotary, grid, num_cond_latents, cache, return_kv, ops)
        x = ops.add_gated(x_BSE, update, gate_msa)
        if text_BLE is not None:
            num_cond = num_cond_latents * (x.shape[1] // grid.t)
            normed = ops.layer_norm(x[:, num_cond:], self.pre_crs_attn_norm.weight, self.pre_crs_attn_norm.bias)
            x = ops.add_after(x, self.cross_attn(normed, text_BLE, mask_BL, ops), num_cond)
        return ops.add_gated(x, self.ffn(ops.modulate(x, shift_mlp, scale_mlp), ops), gate_mlp), fresh


class FinalLayer(nn.Module):
    """Modulated norm and one linear to patches, all in fp32."""

    def __init__(self, width: int, patch_channels: int, adaln_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, patch_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(adaln_width, 2 * width))

    def forward(self, x_BSE: torch.Tensor, embedding_BTA: torch.Tensor) -> torch.Tensor:
        """fp32 [B, S, patch_channels]."""
        shift, scale = self.adaLN_modulation(embedding_BTA).unsqueeze(2).chunk(2, dim=-1)
        return self.linear(pointwise.modulate(x_BSE.float(), shift, scale))
