"""What lists of key blocks look like: how much neighbours share, and how much attention the lists keep.

Letters: B batch, N heads, S tokens, D head width, Mq and Mk query and key blocks, R listed blocks, C queries of a
chunk.
"""

from __future__ import annotations

import torch

from .grid import BlockGrid, Triple
from .select import BlockSelection

CHUNK_SCORES = 1 << 24
"""Attention scores held at once (64 MiB in fp32)."""


@torch.no_grad()
def list_overlap(lists: BlockSelection, *, grid_q: Triple, block: Triple = (4, 4, 4)) -> torch.Tensor:
    """Share of listed key blocks that neighbouring query blocks have in common, fp32 [B, N] in [0, 1].

    Neighbours lie next to one another along t, h or w. Of two lists the share is |A and B| / min(|A|, |B|), and
    0 where one is empty; the result is the mean over all pairs of neighbours, NaN where there is none.

    Raises:
        ValueError: the lists have another number of query blocks than the grid.
    """
    blocks_q = BlockGrid(grid_q, block)
    _check_rows(lists, blocks_q)
    num_blocks = int(lists.indices.max()) + 1
    sums = []
    for indices, counts in zip(lists.indices.flatten(0, 1), lists.counts.flatten(0, 1), strict=True):
        listed = _listed(indices, counts, num_blocks).unflatten(0, blocks_q.counts)  # [nt, nh, nw, Mk]
        shares = []
        for axis, size in enumerate(blocks_q.counts):
            a, b = listed.narrow(axis, 0, size - 1), listed.narrow(axis, 1, size - 1)
            smaller = torch.minimum(a.sum(dim=-1), b.sum(dim=-1))
            shares.append(((a & b).sum(dim=-1) / smaller.clamp(min=1)).flatten())
        sums.append(torch.cat(shares).mean())
    return torch.stack(sums).view(lists.counts.shape[:2])


@torch.no_grad()
def retained_mass(
    q_BNSD: torch.Tensor,
    k_BNSD: torch.Tensor,
    lists: BlockSelection,
    *,
    grid_q: Triple,
    grid_k: Triple,
    block: Triple = (4, 4, 4),
) -> torch.Tensor:
    """Share of the dense attention's weight that lies in the listed blocks, mean over queries, fp32 [B, N].

    1 means that nothing is lost. It computes the dense weights, in fp32 and a chunk of the queries of one head
    at a time: slow on long videos, but never more memory than a chunk takes.

    Raises:
        ValueError: the lists have another number of query blocks than the grid, or q or k another of tokens.
    """
    blocks_q, blocks_k = BlockGrid(grid_q, block), BlockGrid(grid_k, block)
    _check_rows(lists, blocks_q)
    if q_BNSD.shape[2] != blocks_q.num_tokens or k_BNSD.shape[2] != blocks_k.num_tokens:
        raise ValueError(
            f"q {tuple(q_BNSD.shape)} and k {tuple(k_BNSD.shape)} must have the {blocks_q.num_tokens} tokens of grid_q "
            f"{tuple(grid_q)} and the {blocks_k.num_tokens} of grid_k {tuple(grid_k)}"
        )
    size = max(1, CHUNK_SCORES // blocks_k.num_tokens)
    query_block, key_block = (blocks.block_of_token(q_BNSD.device) for blocks in (blocks_q, blocks_k))
    means = []
    for q, k, indices, counts in zip(
        *(x.flatten(0, 1) for x in (q_BNSD, k_BNSD, lists.indices, lists.counts)), strict=True
    ):
        listed = _listed(indices, counts, blocks_k.num_blocks)
        total = q.new_zeros((), dtype=torch.float64)
        for q_CD, rows in zip(q.float().split(size), query_block.split(size), strict=True):
            weights = (q_CD @ k.float().T * q.shape[-1] ** -0.5).softmax(dim=-1)  # [C, Sk]
            total += weights.where(listed[rows][:, key_block], 0.0).sum(dim=-1).sum(dtype=torch.float64)
        means.append((total / blocks_q.num_tokens).float())
    return torch.stack(means).view(lists.counts.shape[:2])


def _listed(indices_MR: torch.Tensor, counts_M: torch.Tensor, num_blocks: int) -> torch.Tensor:
    """Bool [Mq, Mk] of one head: which key blocks are on the list of each query block."""
    counted = torch.arange(indices_MR.shape[-1], device=indices_MR.device) < counts_M.unsqueeze(-1)
    # Entries behind the count go to a column of their own.
    listed = torch.zeros(len(counts_M), num_blocks + 1, dtype=torch.bool, device=indices_MR.device)
    return listed.scatter_(1, indices_MR.long().where(counted, num_blocks), True)[:, :-1]


def _check_rows(lists: BlockSelection, blocks_q: BlockGrid) -> None:
    if lists.counts.shape[-1] != blocks_q.num_blocks:
        raise ValueError(
            f"lists of {lists.counts.shape[-1]} query blocks do not fit grid_q {tuple(blocks_q.grid)}, which has "
            f"{blocks_q.num_blocks}"
        )
