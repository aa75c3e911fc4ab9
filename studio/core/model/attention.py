"""Which attention runs, and the one call that runs it.

Letters: B batch, N heads, S tokens, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from video_bsa import block_sparse_attention

from studio.core.config import Attention
from studio.core.geometry import Grid


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionChoice:
    """The attention of a bundle, chosen once, with the reason that faces show."""

    kind: str
    """`dense` or `sparse`."""
    reason: str
    block: tuple[int, int, int] = (4, 4, 4)
    """Tokens of an attention block, (t, h, w)."""
    sparsity: float = 0.9375
    """Share of key blocks skipped."""


DENSE = AttentionChoice(kind="dense", reason="dense attention, as the model was trained")


def choose_attention(setting: Attention, *, block: tuple[int, int, int], sparsity: float) -> AttentionChoice:
    """The attention that `setting` means for a checkpoint with these `bsa_params`."""
    if setting == "sparse":
        return AttentionChoice(
            kind="sparse",
            reason=f"sparse was asked for: {sparsity:.2%} of the key blocks are skipped, by the plain PyTorch "
            "reference, which is exact but slower than dense",
            block=block,
            sparsity=sparsity,
        )
    if setting == "dense":
        return AttentionChoice(kind="dense", reason="dense was asked for", block=block, sparsity=sparsity)
    return AttentionChoice(
        kind="dense",
        reason="auto took dense: the block-sparse attention has no fast kernel here",
        block=block,
        sparsity=sparsity,
    )


def attend(
    q_BNSD: torch.Tensor,
    k_BNSD: torch.Tensor,
    v_BNSD: torch.Tensor,
    *,
    grid_q: Grid,
    grid_k: Grid,
    choice: AttentionChoice,
) -> torch.Tensor:
    """Softmax attention [B, N, Sq, D], scale D^-0.5, no mask; sparse only where the query grid has time."""
    if choice.kind == "sparse" and grid_q.t > 1:
        return block_sparse_attention(
            q_BNSD,
            k_BNSD,
            v_BNSD,
            grid_q=(grid_q.t, grid_q.h, grid_q.w),
            grid_k=(grid_k.t, grid_k.h, grid_k.w),
            block=choice.block,
            sparsity=choice.sparsity,
        )
    return F.scaled_dot_product_attention(q_BNSD, k_BNSD, v_BNSD)
