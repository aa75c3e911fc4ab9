"""The LongCat-Video transformer, faithful to the published one (`../DESIGN.md`).

Letters: B batch, C channels, T H W latents, S tokens, E model width, L text length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from studio.core.errors import DeviceError
from studio.core.geometry import Grid
from studio.core.model.attention import (
    AttentionChoice,
    AttentionRecord,
    AttentionRecorder,
    checkpointed,
)
from studio.core.model.dit_block import (
    CaptionEmbedder,
    DitBlock,
    FinalLayer,
    KeyValue,
    PatchEmbedder,
    TimestepEmbedder,
)
from studio.core.model.rope import rotary_table
from studio.core.model.ulysses import Ulysses

PUBLISHED_BSA = {"sparsity": 0.9375, "chunk_3d_shape_q": [4, 4, 4], "chunk_3d_shape_k": [4, 4, 4]}
"""`bsa_params` of the published `dit/config.json`."""


class LongCatVideoTransformer3DModel(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Predicts the velocity, clean minus noise, of noisy video latents.

    Constructor keys and state-dict names are the published ones, so no key map exists. The keys `enable_*` and
    `cp_split_hw` are kept for the published config and choose nothing here.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["DitBlock"]
    _keep_in_fp32_modules = ["t_embedder", "adaLN_modulation", "final_layer"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 16,
        out_channels: int = 16,
        hidden_size: int = 4096,
        depth: int = 48,
        num_heads: int = 32,
        caption_channels: int = 4096,
        mlp_ratio: float = 4,
        adaln_tembed_dim: int = 512,
        frequency_embedding_size: int = 256,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        enable_flashattn3: bool = False,
        enable_flashattn2: bool = False,
        enable_xformers: bool = False,
        enable_bsa: bool = False,
        bsa_params: dict[str, Any] | None = None,
        cp_split_hw: list[int] | None = None,
        text_tokens_zero_pad: bool = False,
    ) -> None:
        super().__init__()
        if hidden_size % num_heads or (hidden_size // num_heads) % 8:
            raise ValueError(
                f"hidden_size {hidden_size} over num_heads {num_heads} must be a head width that 8 divides"
            )
        patch = (int(patch_size[0]), int(patch_size[1]), int(patch_size[2]))
        if patch[0] != 1:
            raise ValueError(f"patch_size {patch} must not span latent frames: its first number must be 1")
        self.patch = patch
        self.out_channels = out_channels
        self.text_tokens_zero_pad = text_tokens_zero_pad
        self.x_embedder = PatchEmbedder(in_channels, hidden_size, patch)
        self.t_embedder = TimestepEmbedder(adaln_tembed_dim, frequency_embedding_size)
        self.y_embedder = CaptionEmbedder(caption_channels, hidden_size)
        self.blocks = nn.ModuleList(DitBlock(hidden_size, num_heads, mlp_ratio, adaln_tembed_dim) for _ in range(depth))
        self.final_layer = FinalLayer(hidden_size, patch[1] * patch[2] * out_channels, adaln_tembed_dim)
        self.gradient_checkpointing = False
        self.keep_attention = False
        """Gradient checkpointing keeps what attention gave too, which is the dearest to compute twice."""
        self.ulysses: Ulysses | None = None

    @property
    def _blocks(self) -> list[DitBlock]:
        return cast(list[DitBlock], self.blocks)

    def set_attention(self, choice: AttentionChoice) -> None:
        """Every self-attention runs `choice` from now on."""
        for block in self._blocks:
            block.attn.choice = choice

    def set_ulysses(self, ulysses: Ulysses | None) -> None:
        """Every forward is a call of several processes from now on, each with its part of the work and all with the
        whole result; None: of this one alone. Without gradients.

        Raises:
            DeviceError: the heads do not divide by the processes.
        """
        heads = self.config["num_heads"]
        if ulysses is not None and heads % ulysses.count:
            *fitting, most = [str(count) for count in range(2, heads + 1) if heads % count == 0]
            raise DeviceError(
                f"The {heads} attention heads do not divide by {ulysses.count} GPUs.",
                f"Use {', '.join(fitting)} or {most} GPUs.",
            )
        self.ulysses = ulysses
        for block in self._blocks:
            block.attn.ulysses = ulysses

    def set_pointwise(self, ops: ModuleType) -> None:
        """Every block does its work around attention with `ops` from now on (`choose_pointwise`)."""
        for block in self._blocks:
            block.ops = ops

    @contextmanager
    def recorded_attention(self) -> Iterator[list[AttentionRecord]]:
        """Inside, every block-sparse self-attention adds a record to the list, layer by layer."""
        records: list[AttentionRecord] = []
        for layer, block in enumerate(self._blocks):
            block.attn.recorder = AttentionRecorder(layer, records)
        try:
            yield records
        finally:
            for block in self._blocks:
                block.attn.recorder = None

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Callable[..., Any] | None = None) -> None:
        """Keeps a layer's input for the backward pass, which key blocks it chose, and with `keep_attention` what
        attention gave; the rest is recomputed.

        A loss is then differentiated once: what was kept is gone after its backward pass.
        """
        super().enable_gradient_checkpointing(gradient_checkpointing_func or self._checkpointed)

    def _checkpointed(self, block: DitBlock, *inputs: Any) -> Any:
        return checkpointed(
            block, *inputs, keep_blocks=block.attn.choice.is_ever_sparse, keep_attention=self.keep_attention
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None,
        encoder_attention_mask: torch.Tensor | None = None,
        num_cond_latents: int = 0,
        return_kv: bool = False,
        kv_cache: list[KeyValue] | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, list[KeyValue]]:
        """Velocity fp32 [B, C, T, H, W] of `hidden_states` [B, C, T, H, W]; H and W even.

        Args:
            hidden_states: latents; the first `num_cond_latents` frames are clean.
            timestep: [B] or [B, T] in 0..1000; 0 on clean frames.
            encoder_hidden_states: [B, 1, L, caption_channels]; None skips the cross-attention.
            encoder_attention_mask: [B, L], non-zero where there is text.
            num_cond_latents: clean frames at the front; they attend only to themselves and see no text.
            return_kv: also return the keys and values of every block.
            kv_cache: keys and values of the clean frames before `hidden_states`, from a call with `return_kv`.

        Raises:
            ValueError: when a shape does not fit; the numbers are in the message.
        """
        batch, _, frames, height, width = hidden_states.shape
        if height % self.patch[1] or width % self.patch[2]:
            raise ValueError(f"latents of {height}x{width} do not divide into patches of {self.patch[1:]}")
        grid = Grid(frames, height // self.patch[1], width // self.patch[2])
        dtype, ulysses = self.x_embedder.proj.weight.dtype, self.ulysses
        if ulysses is not None:
            hidden_states = ulysses.of_first(hidden_states)
            encoder_hidden_states = None if encoder_hidden_states is None else ulysses.of_first(encoder_hidden_states)
        x = self.x_embedder(hidden_states.to(dtype))
        # Rounding the timestep to the model dtype is published behaviour.
        timestep_BT = timestep.to(dtype).view(batch, -1).expand(batch, frames)
        embedding = self.t_embedder(timestep_BT)
        text, mask = self._embed_text(encoder_hidden_states, encoder_attention_mask, dtype)
        cached_tokens = kv_cache[0][0].shape[2] if kv_cache is not None else 0
        tokens_per_frame = grid.h * grid.w if ulysses is None else ulysses.share(grid.h * grid.w)
        grid_k = Grid(frames + cached_tokens // tokens_per_frame, grid.h, grid.w)
        cos, sin = rotary_table(grid_k, self._blocks[0].attn.head_width, x.device)
        if ulysses is not None:
            x = ulysses.split(x, grid.t)
            cos, sin = (ulysses.split(table.unsqueeze(0), grid_k.t).squeeze(0) for table in (cos, sin))
        rotary = (cos, sin)

        fresh: list[KeyValue] = []
        for index, block in enumerate(self._blocks):
            cache = kv_cache[index] if kv_cache is not None else None
            inputs = (x, embedding, text, mask, rotary, grid, num_cond_latents, cache, return_kv)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x, key_value = cast(Any, self._gradient_checkpointing_func)(block, *inputs)
            elif torch.is_grad_enabled() and block.is_swapped:
                x, key_value = self._checkpointed(block, *inputs)
            else:
                x, key_value = block(*inputs)
            if key_value is not None:
                fresh.append(key_value)
        patches = self.final_layer(x, embedding)
        velocity = self._unpatchify(patches if ulysses is None else ulysses.joined(patches, grid), grid)
        return (velocity, fresh) if return_kv else velocity

    def _embed_text(
        self, text: torch.Tensor | None, mask: torch.Tensor | None, dtype: torch.dtype
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """(text [B, L, E], mask of attended tokens or None for all).

        Source: with `text_tokens_zero_pad` the padded rows are zeroed after the projection and then attended.
        """
        if text is None:
            return None, None
        embedded = self.y_embedder(text.squeeze(1).to(dtype))
        if mask is None:
            return embedded, None
        if self.text_tokens_zero_pad:
            return embedded * mask.unsqueeze(-1).to(dtype), None
        return embedded, mask.bool()

    def _unpatchify(self, patches: torch.Tensor, grid: Grid) -> torch.Tensor:
        """[B, S, ph * pw * C], channels last in a patch, to latents [B, C, T, H, W]."""
        _, rows, columns = self.patch
        x = patches.view(-1, grid.t, grid.h, grid.w, rows, columns, self.out_channels)
        return x.permute(0, 6, 1, 2, 4, 3, 5).reshape(-1, self.out_channels, grid.t, grid.h * rows, grid.w * columns)
