"""What lists of key blocks look like: how much neighbours share, and how much attention the lists keep.

Letters: B batch, N heads, S tokens, D head width, Mq and Mk query and key blocks, R listed blocks, C queries of a
chunk.
"""

from __future__ import annotations

import torch

from .attention import check_inputs
from .grid import BlockGrid, Triple
from .select import BlockSelection, check_list_shapes

CHUNK_SCORES = 1 << 24
"""Attention scores held at once (64 MiB in fp32)."""


@torch.no_grad()
def list_overlap(lists: BlockSelection, *, grid_q: Triple, block: Triple = (4, 4, 4)) -> torch.Tensor:
    """Share of listed key blocks that neighbouring query blocks have in common, fp32 [B, N] in [0, 1].

    Neighbours lie next to one another along t, h or w. Of two lists the share is |A and B| / min(|A|, |B|), and
    0 where one is empty; the result is the mean over all pairs of neighbours, NaN where there is none.

    Raises:
        ValueError: the lists have other query blocks than the grid, or indices and counts do not fit each other.
    """
    blocks_q = BlockGrid(grid_q, block)
    indices, counts = lists
    check_list_shapes(lists, rows=(*counts.shape[:-1], blocks_q.num_blocks), device=counts.device)
    if counts.numel() == 0:
        return counts.new_empty(counts.shape[:2], dtype=torch.float32)
    num_blocks = int(indices.where(_counted(indices, counts), -1).max()) + 1
    sums = []
    for indices_MR, counts_M in zip(indices.flatten(0, 1), counts.flatten(0, 1), strict=True):
        listed = _listed(indices_MR, counts_M, num_blocks).unflatten(0, blocks_q.counts)  # [nt, nh, nw, Mk]
        shares = []
        for axis, size in enumerate(blocks_q.counts):
            a, b = listed.narrow(axis, 0, size - 1), listed.narrow(axis, 1, size - 1)
            smaller = torch.minimum(a.sum(dim=-1), b.sum(dim=-1))
            shares.append(((a & b).sum(dim=-1) / smaller.clamp(min=1)).flatten())
        sums.append(torch.cat(shares).mean())
    return torch.stack(sums).view(counts.shape[:2])


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
        ValueError: q, k or the lists do not fit the grids or one another.
    """
    blocks_q, blocks_k = check_inputs(q_BNSD, k_BNSD, grid_q=grid_q, grid_k=grid_k, block=block)
    check_list_shapes(lists, rows=(*q_BNSD.shape[:2], blocks_q.num_blocks), device=q_BNSD.device)
    if q_BNSD.numel() == 0:
        return q_BNSD.new_empty(q_BNSD.shape[:2], dtype=torch.float32)
    size = max(1, CHUNK_SCORES // blocks_k.num_tokens)
    query_block, key_block = (blocks.block_of_token(q_BNSD.device) for blocks in (blocks_q, blocks_k))
    means = []
    for q, k, indices, counts in zip(
        *(x.flatten(0, 1) for x in (q_BNSD, k_BNSD, lists.indices, lists.counts)), strict=True
    ):
        listed = _listed(indices, counts, blocks_k.num_blocks)
        total = q.new_zeros((), dtype=torch.float64)
        for q_CD, rows in zip(q.float().split(size), query_block.split(size), strict=True):
            with torch.autocast(q.device.type, enabled=False):
                weights = (q_CD @ k.float().T * q.shape[-1] ** -0.5).softmax(dim=-1)  # [C, Sk]
            total += weights.where(listed[rows][:, key_block], 0.0).sum(dim=-1).sum(dtype=torch.float64)
        means.append((total / blocks_q.num_tokens).float())
    return torch.stack(means).view(lists.counts.shape[:2])


def _counted(indices: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Bool in the shape of `indices`: which entries are within the count."""
    return torch.arange(indices.shape[-1], device=indices.device) < counts.unsqueeze(-1)


def _listed(indices_MR: torch.Tensor, counts_M: torch.Tensor, num_blocks: int) -> torch.Tensor:
    """Bool [Mq, Mk] of one head: which key blocks are on the list of each query block."""
    counted = _counted(indices_MR, counts_M)
    # Entries behind the count go to a column of their own.
    listed = torch.zeros(len(counts_M), num_blocks + 1, dtype=torch.bool, device=indices_MR.device)
    return listed.scatter_(1, indices_MR.long().where(counted, num_blocks), True)[:, :-1]
