"""Which attention runs, and the one call that runs it.

Letters: B batch, N heads, S tokens, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from video_bsa import (
    BlockGrid,
    BlockSelection,
    block_sparse_attention,
    kernel_refusal,
    list_overlap,
    retained_mass,
    select_blocks,
)

from studio.core.config import Attention
from studio.core.errors import DeviceError
from studio.core.geometry import Grid

Triple = tuple[int, int, int]
"""(t, h, w)."""

SPARSE_PAYS_FROM = 16_384
"""Key tokens from which `auto` takes block-sparse attention. An estimate: on an H200 dense attention is a quarter of
the time of a forward there, and 45 % at 37,440 tokens (480x832, 93 frames), where sparse made it 1.64x as fast."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionUsed:
    """The attention of one video, with the reason that faces show."""

    kind: str
    """`dense` or `sparse`."""
    reason: str
    sparsity: float | None = None
    """Share of key blocks skipped; None for dense."""
    block: Triple | None = None
    """Tokens of an attention block, (t, h, w); None for dense."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionChoice:
    """The attention of a bundle: what was asked for, and what can run here. `resolve` says what a video gets."""

    setting: Attention
    block: Triple = (4, 4, 4)
    """Tokens of an attention block, (t, h, w)."""
    sparsity: float = 0.9375
    """Share of key blocks skipped."""
    refusal: str | None = None
    """Why the fast kernels do not run here, a sentence without a full stop; None where they do."""
    slowness: str | None = None
    """Why they run, but slower than dense attention; None where they are fast."""

    @property
    def is_ever_sparse(self) -> bool:
        """True when some video gets block-sparse attention."""
        return self.setting == "sparse" or (self.setting == "auto" and self.refusal is None and self.slowness is None)

    def is_sparse(self, grid_q: Grid, grid_k: Grid) -> bool:
        """True when these queries skip key blocks; a single latent frame of queries never does, as published."""
        if not self.is_ever_sparse or grid_q.t <= 1:
            return False
        return self.setting == "sparse" or grid_k.size >= SPARSE_PAYS_FROM

    def kept_blocks(self, grid_k: Grid) -> tuple[int, int]:
        """(kept, all) key blocks of `grid_k`, in tokens, for each query block; one at least is kept."""
        total = BlockGrid(_triple(grid_k), self.block).num_blocks
        return max(1, int((1 - self.sparsity) * total)), total

    def resolve(self, grid_q: Grid, grid_k: Grid) -> AttentionUsed:
        """What queries of `grid_q` to keys of `grid_k`, both in tokens, run, and why."""
        if self.is_sparse(grid_q, grid_k):
            asked = "sparse was asked for" if self.setting == "sparse" else "auto took sparse"
            by = "the kernels of video_bsa" + (f", slowly: {self.slowness}" if self.slowness else "")
            if self.refusal is not None:
                by = f"the plain PyTorch reference, exact but slower than dense: {self.refusal}"
            skipped = f"{100 * self.sparsity:.4g} % of the key blocks, {_by(self.block)} tokens each, are skipped"
            reason = f"{asked}: {skipped}, by {by}"
            return AttentionUsed(kind="sparse", reason=reason, sparsity=self.sparsity, block=self.block)
        if self.setting == "dense":
            reason = "dense was asked for"
        elif self.setting == "auto" and (why := self.refusal or self.slowness):
            reason = f"auto took dense: {why}"
        elif grid_q.t <= 1:
            reason = f"{self.setting} took dense: a single latent frame after the start frame has no time to skip in"
        else:
            reason = f"auto took dense: this video has {grid_k.size:,} tokens, sparse pays from {SPARSE_PAYS_FROM:,} on"
        return AttentionUsed(kind="dense", reason=reason)


DENSE = AttentionChoice(setting="dense")


def choose_attention(
    setting: Attention,
    *,
    block: Triple,
    sparsity: float,
    device: torch.device,
    dtype: torch.dtype,
    head_width: int,
) -> AttentionChoice:
    """The attention that `setting` means for a checkpoint with these `bsa_params`, on this device.

    Raises:
        DeviceError: sparse was asked for where neither the kernels run nor, as on a CPU, the reference.
    """
    refusal = kernel_refusal(device, dtype, head_width, block)
    if setting == "sparse" and refusal is not None and device.type != "cpu":
        raise DeviceError(
            f"Sparse attention was asked for, but it does not run here: {refusal}.", "Use auto or dense attention."
        )
    slowness = "the block-sparse kernels multiply fp32 without tensor cores" if dtype == torch.float32 else None
    return AttentionChoice(
        setting=setting, block=block, sparsity=sparsity, refusal=refusal, slowness=slowness if refusal is None else None
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionRecord:
    """What one block-sparse self-attention skipped, means over batch and heads."""

    layer: int
    grid_q: Triple
    grid_k: Triple
    """Tokens along (t, h, w); where the queries are fewer, they are the last ones in time."""
    block: Triple
    """Tokens of an attention block, (t, h, w)."""
    chosen: torch.Tensor
    """fp32 [query blocks, key blocks], on the CPU: share of the heads that keep this key block for those queries."""
    overlap: float
    """Share of the key blocks that neighbouring query blocks have in common."""
    mass: float
    """Share of the dense softmax that falls on the key blocks kept."""

    @property
    def middle(self) -> int:
        """The query block in the middle of the video."""
        nt, nh, nw = BlockGrid(self.grid_q, self.block).counts
        return (nt // 2 * nh + nh // 2) * nw + nw // 2

    def kept_by(self, query: int) -> torch.Tensor:
        """fp32 [t, h, w] in key blocks: the row of `chosen` of a query block."""
        return self.chosen[query].unflatten(0, BlockGrid(self.grid_k, self.block).counts)

    def place_of(self, query: int) -> Triple:
        """The key block (t, h, w) in which the middle of a query block lies."""
        _, nh, nw = BlockGrid(self.grid_q, self.block).counts
        first, edge = self.grid_k[0] - self.grid_q[0], self.block[0]
        time = min(first + query // (nh * nw) * edge + edge // 2, self.grid_k[0] - 1)
        return time // edge, query // nw % nh, query % nw


@dataclass(frozen=True, slots=True)
class AttentionRecorder:
    """Notes every block-sparse self-attention of one layer; costs a dense attention each time."""

    layer: int
    records: list[AttentionRecord]

    def note(
        self,
        q_BNSD: torch.Tensor,
        k_BNSD: torch.Tensor,
        lists: BlockSelection,
        *,
        grid_q: Triple,
        grid_k: Triple,
        block: Triple,
    ) -> None:
        """Appends a record."""
        overlap = list_overlap(lists, grid_q=grid_q, block=block)
        mass = retained_mass(q_BNSD, k_BNSD, lists, grid_q=grid_q, grid_k=grid_k, block=block)
        self.records.append(AttentionRecord(
            layer=self.layer,
            grid_q=grid_q,
            grid_k=grid_k,
            block=block,
            chosen=_chosen(lists, BlockGrid(grid_k, block).num_blocks).cpu(),
            overlap=overlap.mean().item(),
            mass=mass.mean().item(),
        ))  # fmt: skip


def _chosen(lists: BlockSelection, num_blocks: int) -> torch.Tensor:
    """fp32 [query blocks, key blocks]: in which share of batch and heads a query block has a key block on its list."""
    indices, counts = lists
    is_listed = torch.arange(indices.shape[-1], device=indices.device) < counts.unsqueeze(-1)
    # Entries behind the count go to a column of their own.
    rows = indices.long().where(is_listed, num_blocks).flatten(0, 1).transpose(0, 1).flatten(1)
    hits = torch.zeros(len(rows), num_blocks + 1, device=rows.device)
    hits.scatter_add_(1, rows, torch.ones_like(rows, dtype=hits.dtype))
    return hits[:, :-1] / counts[..., 0].numel()


HOPPER_BACKENDS = [
    SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH
]  # fmt: skip
"""The quickest first on sm_90, where cuDNN takes 0.63 of the time of flash; what one does not take goes to the next."""


def attend_densely(
    q_BNSD: torch.Tensor, k_BNSD: torch.Tensor, v_BNSD: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Softmax attention [B, N, Sq, D] over every key that `mask` does not leave out, scale D^-0.5."""
    if q_BNSD.is_cuda and torch.cuda.get_device_capability(q_BNSD.device) == (9, 0):
        with sdpa_kernel(HOPPER_BACKENDS, set_priority=True):
            return F.scaled_dot_product_attention(q_BNSD, k_BNSD, v_BNSD, attn_mask=mask)
    return F.scaled_dot_product_attention(q_BNSD, k_BNSD, v_BNSD, attn_mask=mask)


def attend(
    q_BNSD: torch.Tensor,
    k_BNSD: torch.Tensor,
    v_BNSD: torch.Tensor,
    *,
    grid_q: Grid,
    grid_k: Grid,
    choice: AttentionChoice,
    recorder: AttentionRecorder | None = None,
) -> torch.Tensor:
    """Softmax attention [B, N, Sq, D], scale D^-0.5, no mask; sparse where `choice` says so for these grids."""
    if not choice.is_sparse(grid_q, grid_k):
        return attend_densely(q_BNSD, k_BNSD, v_BNSD)
    at_q, at_k, block = _triple(grid_q), _triple(grid_k), choice.block
    lists = select_blocks(q_BNSD, k_BNSD, grid_q=at_q, grid_k=at_k, block=block, sparsity=choice.sparsity)
    if recorder is not None:
        recorder.note(q_BNSD, k_BNSD, lists, grid_q=at_q, grid_k=at_k, block=block)
    return block_sparse_attention(q_BNSD, k_BNSD, v_BNSD, grid_q=at_q, grid_k=at_k, block=block, lists=lists)


def checkpointed(module: torch.nn.Module, *inputs: Any, keep_blocks: bool, keep_attention: bool) -> Any:
    """`module(*inputs)`, computed a second time in the backward pass.

    With `keep_blocks` the second time has the key blocks of the first: chosen again they could differ by a rounding,
    and then the gradient would be that of another function. With `keep_attention` it has what self-attention gave.
    """
    if not (keep_blocks or keep_attention):
        return checkpoint(module, *inputs, use_reentrant=False)
    contexts = partial(create_selective_checkpoint_contexts, partial(_what_to_keep, keep_attention))
    return checkpoint(module, *inputs, use_reentrant=False, context_fn=contexts)


_ATTENTION_OPERATORS = (
    torch.ops.video_bsa.attend.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
)
"""Each takes q and k [B, N, S, D] first."""


def _what_to_keep(keep_attention: bool, _: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Cross-attention has few keys, and is cheap to compute again."""
    if operator is torch.ops.video_bsa.select_blocks.default:
        return CheckpointPolicy.MUST_SAVE
    if keep_attention and operator in _ATTENTION_OPERATORS and args[1].shape[2] >= args[0].shape[2]:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def _triple(grid: Grid) -> Triple:
    return grid.t, grid.h, grid.w


def _by(sizes: Triple) -> str:
    return "x".join(str(size) for size in sizes)
