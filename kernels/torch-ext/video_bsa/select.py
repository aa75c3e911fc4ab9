"""Which key blocks each query block attends to.

Letters: B batch, N heads, S tokens, D head width, Mq and Mk query and key blocks, R listed blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .grid import BlockGrid, Triple


class BlockSelection(NamedTuple):
    """Key blocks of each query block. Fix it to make two calls attend to the same blocks."""

    indices: torch.Tensor
    """int32 [B, N, Mq, R]: block numbers, ascending without repeats within the count, the rest is ignored."""
    counts: torch.Tensor
    """int32 [B, N, Mq]: how many of the R entries count."""


@torch.no_grad()
def select_blocks(
    q_BNSD: torch.Tensor,
    k_BNSD: torch.Tensor,
    *,
    grid_q: Triple,
    grid_k: Triple,
    block: Triple = (4, 4, 4),
    sparsity: float = 0.9375,
) -> BlockSelection:
    """The key blocks whose mean key has the largest product with the mean query, by batch and head.

    Keeps `int((1 - sparsity) * Mk)` blocks and never fewer than one. Means divide by the tokens that an edge
    block has; scores are fp32 whatever the input; equal scores go to the lower block number. Not
    differentiable.

    Raises:
        ValueError: shapes do not fit the grids, or sparsity is outside [0, 1).

    Source: LongCat-Video, `longcat_video/block_sparse_attention`, top-k mode; there means and scores are in
    the input's type, ties fall anywhere, and a grid of few blocks keeps none.
    """
    blocks_q, blocks_k = check_inputs(q_BNSD, k_BNSD, grid_q=grid_q, grid_k=grid_k, block=block)
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity is the share of key blocks skipped, in [0, 1); got {sparsity}")
    num_kept = max(1, int((1 - sparsity) * blocks_k.num_blocks))
    scores = _block_means(q_BNSD, blocks_q) @ _block_means(k_BNSD, blocks_k).transpose(-1, -2)  # [B, N, Mq, Mk]
    ranked = scores.sort(dim=-1, descending=True, stable=True).indices
    indices = ranked[..., :num_kept].sort(dim=-1).values.int()
    return BlockSelection(indices, torch.full_like(indices[..., 0], num_kept))


def _block_means(x_BNSD: torch.Tensor, blocks: BlockGrid) -> torch.Tensor:
    """Mean of each block's valid tokens, fp32 [B, N, M, D]."""
    num_valid = blocks.valid_tokens(x_BNSD.device).sum(dim=-1, keepdim=True)
    return blocks.to_blocks(x_BNSD.float()).sum(dim=3) / num_valid


def check_inputs(
    q_BNSD: torch.Tensor, k_BNSD: torch.Tensor, *, grid_q: Triple, grid_k: Triple, block: Triple
) -> tuple[BlockGrid, BlockGrid]:
    """Block grids of queries and keys, once the shapes are known to fit them."""
    blocks_q, blocks_k = BlockGrid(grid_q, block), BlockGrid(grid_k, block)
    for name, x, blocks in (("q", q_BNSD, blocks_q), ("k", k_BNSD, blocks_k)):
        if x.ndim != 4:
            raise ValueError(f"{name} must be [B, N, S, D], got {tuple(x.shape)}")
        if x.shape[2] != blocks.num_tokens:
            raise ValueError(
                f"grid_{name} {tuple(blocks.grid)} has {blocks.num_tokens} tokens, but {name} is {tuple(x.shape)}"
            )
    if q_BNSD.shape[:2] != k_BNSD.shape[:2] or q_BNSD.shape[3] != k_BNSD.shape[3]:
        raise ValueError(
            f"q {tuple(q_BNSD.shape)} and k {tuple(k_BNSD.shape)} must agree in batch, heads and head width"
        )
    return blocks_q, blocks_k
