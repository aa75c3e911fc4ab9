"""Which key blocks each query block attends to, in plain PyTorch.

Letters: B batch, N heads, S tokens, D head width, Mq and Mk query and key blocks, R listed blocks, G heads of a group.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .grid import BlockGrid, Triple

GROUP_SCORES = 1 << 24
"""Scores ranked at once; bounds the memory of a choice (some 64 MiB times the handful of arrays a sort makes)."""


class BlockSelection(NamedTuple):
    """Key blocks of each query block. Fix it to make two calls attend to the same blocks."""

    indices: torch.Tensor
    """int32 [B, N, Mq, R]: block numbers, ascending without repeats within the count, the rest is ignored."""
    counts: torch.Tensor
    """int32 [B, N, Mq]: how many of the R entries count."""


def check_lists(lists: BlockSelection, *, grid_k: Triple, block: Triple = (4, 4, 4)) -> None:
    """Refuse lists that name a key block twice, or one that `grid_k` does not have. Waits for the device.

    Raises:
        ValueError: indices and counts do not fit each other or are not int32, a count is negative or beyond the
            width of the list, or the block numbers within a count are out of range or not strictly ascending.
    """
    indices, counts = lists
    check_list_shapes(lists, rows=tuple(indices.shape[:-1]), device=indices.device)
    num_blocks = BlockGrid(grid_k, block).num_blocks
    if ((counts < 0) | (counts > indices.shape[-1])).any():
        raise ValueError(f"counts must lie in [0, {indices.shape[-1]}], the width of indices {tuple(indices.shape)}")
    listed = torch.arange(indices.shape[-1], device=indices.device) < counts.unsqueeze(-1)
    if (listed & ((indices < 0) | (indices >= num_blocks))).any():
        raise ValueError(f"indices must lie in [0, {num_blocks}), the key blocks of the grid")
    if (listed[..., 1:] & (indices.diff(dim=-1) <= 0)).any():
        raise ValueError("indices must be strictly ascending within the count")


def check_list_shapes(lists: BlockSelection, *, rows: tuple[int, ...], device: torch.device) -> None:
    """Refuse lists for other inputs, without reading a number of them."""
    indices, counts = lists
    if counts.shape != rows or indices.shape[:-1] != rows or indices.shape[-1] == 0:
        raise ValueError(
            f"lists must have the rows {rows} (batch, heads, query blocks) and at least one column; "
            f"indices are {tuple(indices.shape)}, counts {tuple(counts.shape)}: choose them for these grids and block"
        )
    for name, x in (("indices", indices), ("counts", counts)):
        if x.dtype != torch.int32 or x.device != device:
            raise ValueError(f"{name} must be int32 on {device}, got {x.dtype} on {x.device}")


def num_kept(sparsity: float, num_blocks: int) -> int:
    """How many of `num_blocks` key blocks top-k keeps: never fewer than one.

    Source: LongCat-Video 6b3f4b8, `longcat_video/block_sparse_attention/bsa_interface.py`,
    `get_select_indices_topk_from_score`; there a grid of few blocks keeps none.
    """
    return max(1, int((1 - sparsity) * num_blocks))


def list_width(sparsity: float | None, cdf: float | None, num_blocks: int) -> int:
    """R, known before any score is: what top-k keeps, or every key block once `cdf` decides the count."""
    return num_blocks if sparsity is None or cdf is not None else num_kept(sparsity, num_blocks)


def choose_blocks(
    q_BNSD: torch.Tensor,
    k_BNSD: torch.Tensor,
    blocks_q: BlockGrid,
    blocks_k: BlockGrid,
    *,
    sparsity: float | None,
    cdf: float | None,
    keep_first: bool,
    published: bool,
) -> BlockSelection:
    """The key blocks of each query block, under the rules that `select_blocks` documents.

    The product of the means is taken in fp64 and rounded to fp32 (kept for fp64 inputs), so that no setting of
    the matrix units (TF32, bf16 inside) and hardly any order of sums changes a choice. `published` takes it in
    the inputs' type. Heads go through in groups, so that memory does not grow with their number.
    """
    mean = _published_block_means if published else _block_means
    q_means, k_means = mean(q_BNSD, blocks_q).flatten(0, 1), mean(k_BNSD, blocks_k).flatten(0, 1)  # [B*N, M, D]
    group = max(1, GROUP_SCORES // (blocks_q.num_blocks * blocks_k.num_blocks))
    rule = _published_ranking if published else _ranking
    first = _first_blocks(blocks_q, q_BNSD.device) if keep_first else None
    groups = [
        _ascending(*rule(q, k, sparsity=sparsity, cdf=cdf, first=first))
        for q, k in zip(q_means.split(group), k_means.split(group), strict=True)
    ]
    indices, counts = (torch.cat(parts).unflatten(0, q_BNSD.shape[:2]) for parts in zip(*groups, strict=True))
    return BlockSelection(indices, counts)


def _block_means(x_BNSD: torch.Tensor, blocks: BlockGrid) -> torch.Tensor:
    """Mean of the tokens that each block has, [B, N, M, D]: fp32, or fp64 for fp64 inputs."""
    num_valid = blocks.valid_tokens(x_BNSD.device).sum(dim=-1, keepdim=True)
    dtype = torch.promote_types(x_BNSD.dtype, torch.float32)
    return blocks.to_blocks(x_BNSD.to(dtype)).sum(dim=3) / num_valid


def _published_block_means(x_BNSD: torch.Tensor, blocks: BlockGrid) -> torch.Tensor:
    """Mean of the tokens that each block has, [B, N, M, D] in the input's type.

    Source: LongCat-Video 6b3f4b8, `mean_pooling_compression`; it takes no edge blocks, which here are scaled to
    the tokens that they have.
    """
    valid = blocks.valid_tokens(x_BNSD.device)
    whole = valid.shape[1] / valid.sum(dim=-1, keepdim=True)
    return blocks.to_blocks(x_BNSD).mean(dim=3) * whole.to(x_BNSD.dtype)


def _first_blocks(blocks_q: BlockGrid, device: torch.device) -> torch.Tensor:
    """Int64 [Mq]: for each query block, the key block at its (h, w) in the first block row of time."""
    _, h, w = blocks_q.counts
    return torch.arange(blocks_q.num_blocks, device=device) % (h * w)


def _ranking(
    q_means: torch.Tensor,
    k_means: torch.Tensor,
    *,
    sparsity: float | None,
    cdf: float | None,
    first: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Key blocks [G, Mq, R], best first, and how many count [G, Mq], from means [G, M, D]."""
    scores = (q_means.double() @ k_means.double().transpose(-1, -2)).to(q_means.dtype)  # [G, Mq, Mk]
    ranks = scores
    if first is not None:
        ranks = scores.scatter(-1, first.view(1, -1, 1).expand(len(scores), -1, -1), torch.inf)
    num_blocks = scores.shape[-1]
    ranked = ranks.sort(dim=-1, descending=True, stable=True).indices[..., : list_width(sparsity, cdf, num_blocks)]
    counts = torch.full_like(ranked[..., 0], 1 if sparsity is None else num_kept(sparsity, num_blocks))
    if cdf is not None:
        mass = (scores.double() * q_means.shape[-1] ** -0.5).softmax(dim=-1).gather(-1, ranked)
        # At 1 every block counts: a sum may round to 1 before its last terms, or never reach it.
        reached = num_blocks if cdf == 1 else (mass.cumsum(dim=-1) < cdf).sum(dim=-1) + 1
        counts = counts.clamp(min=reached).clamp(max=num_blocks)
    return ranked, counts


def _published_ranking(
    q_means: torch.Tensor,
    k_means: torch.Tensor,
    *,
    sparsity: float | None,
    cdf: float | None,
    first: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Like `_ranking`, as published, save that no query block is left without a key block.

    Scores are in the inputs' type, and equal ones fall where PyTorch lets them. The block whose mass crosses
    `cdf` is left out. The mass is summed in fp32: the published search compares it with an fp32 threshold and
    takes nothing else.

    Source: LongCat-Video 6b3f4b8, `longcat_video/block_sparse_attention/bsa_interface.py`: `cal_score`,
    `get_select_indices_topk_from_score`, `get_select_indices_cdf_from_score`,
    `get_select_indices_cdf_topk_from_score`.
    """
    scores = q_means @ k_means.transpose(-1, -2)
    num_blocks = scores.shape[-1]
    least = 1 if sparsity is None else num_kept(sparsity, num_blocks)
    if cdf is None:
        ranked = scores.topk(least, dim=-1).indices
        return ranked, torch.full_like(ranked[..., 0], least)
    dtype = torch.promote_types(scores.dtype, torch.float32)
    mass, ranked = (scores * q_means.shape[-1] ** -0.5).softmax(dim=-1, dtype=dtype).sort(dim=-1, descending=True)
    threshold = mass.new_full((*mass.shape[:-1], 1), cdf)
    counts = torch.searchsorted(mass.cumsum(dim=-1), threshold, right=True).squeeze(-1)
    return ranked, counts.clamp(min=least)


def _ascending(ranked: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as int32, the entries that count in ascending order; the last of them is repeated behind the count."""
    listed = torch.arange(ranked.shape[-1], device=ranked.device) < counts.unsqueeze(-1)
    last = ranked.where(listed, -1).amax(dim=-1, keepdim=True)
    return ranked.where(listed, last).sort(dim=-1).values.int(), counts.int()
