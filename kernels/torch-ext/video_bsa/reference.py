"""Block-sparse attention in plain PyTorch: the oracle of every kernel, and the path that runs on a CPU.

Letters: B batch, N heads, S tokens, D head width, Mq and Mk query and key blocks, R listed blocks, P tokens
of a block, C query blocks of a chunk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .grid import Triple
from .select import BlockSelection, check_inputs, select_blocks

CHUNK_ELEMENTS = 1 << 24
"""Elements of K gathered at once; bounds the memory of a forward pass (64 MiB in fp32, and as much for V)."""


def block_sparse_attention(
    q_BNSD: torch.Tensor,
    k_BNSD: torch.Tensor,
    v_BNSD: torch.Tensor,
    *,
    grid_q: Triple,
    grid_k: Triple,
    block: Triple = (4, 4, 4),
    sparsity: float = 0.9375,
    lists: BlockSelection | None = None,
) -> torch.Tensor:
    """Attention [B, N, Sq, D] of each query block to its own key blocks, in q's type; softmax scale D^-0.5.

    Grids and block are (t, h, w) in tokens; tokens lie in row-major (t, h, w) order. No grid needs to be a
    multiple of the block, and the two grids may differ. `lists` fixes the key blocks, and then `sparsity` is
    not read; otherwise `select_blocks` picks them. A query block without a list gets zeros. Sums are fp32,
    or fp64 for fp64 inputs. Differentiable in q, k and v; the choice of blocks is not.

    Raises:
        ValueError: shapes do not fit the grids or one another, or a list is not ascending or out of range.
    """
    blocks_q, blocks_k = check_inputs(q_BNSD, k_BNSD, grid_q=grid_q, grid_k=grid_k, block=block)
    if v_BNSD.shape != k_BNSD.shape:
        raise ValueError(f"v {tuple(v_BNSD.shape)} must have the shape of k {tuple(k_BNSD.shape)}")
    batch, heads = q_BNSD.shape[:2]
    if lists is None:
        lists = select_blocks(q_BNSD, k_BNSD, grid_q=grid_q, grid_k=grid_k, block=block, sparsity=sparsity)
    else:
        _check_lists(lists, rows=(batch, heads, blocks_q.num_blocks), num_blocks=blocks_k.num_blocks)

    # One key block more, without a token: entries behind the count point to it and gather nothing but zeros.
    empty = blocks_k.num_blocks
    valid = F.pad(blocks_k.valid_tokens(q_BNSD.device), (0, 0, 0, 1)).repeat(batch * heads, 1)  # [B*N*(Mk+1), P]
    positions = torch.arange(lists.indices.shape[-1], device=q_BNSD.device)
    indices = lists.indices.long().where(positions < lists.counts.unsqueeze(-1), empty)
    first_block = torch.arange(batch * heads, device=q_BNSD.device).view(batch, heads, 1, 1) * (empty + 1)
    indices = (indices + first_block).flatten(0, 2)  # [B*N*Mq, R]

    dtype = torch.promote_types(q_BNSD.dtype, torch.float32)
    q = blocks_q.to_blocks(q_BNSD.to(dtype) * q_BNSD.shape[-1] ** -0.5).flatten(0, 2)  # [B*N*Mq, P, D]
    k, v = (
        F.pad(blocks_k.to_blocks(x.to(dtype)), (0, 0, 0, 0, 0, 1)).flatten(0, 2) for x in (k_BNSD, v_BNSD)
    )  # [B*N*(Mk+1), P, D]
    chunk = max(1, CHUNK_ELEMENTS // max(1, indices.shape[-1] * k[0].numel()))
    out = torch.cat(
        [_attend(q_c, k, v, valid, idx) for q_c, idx in zip(q.split(chunk), indices.split(chunk), strict=True)]
    )
    return blocks_q.from_blocks(out.unflatten(0, (batch, heads, -1))).to(q_BNSD.dtype)


def _attend(
    q_CPD: torch.Tensor, k: torch.Tensor, v: torch.Tensor, valid: torch.Tensor, indices_CR: torch.Tensor
) -> torch.Tensor:
    """[C, P, D]: each query block with the key blocks listed for it, out of k, v [*, P, D], valid [*, P]."""
    hidden = ~valid[indices_CR].flatten(1).unsqueeze(1)  # [C, 1, R*P]
    scores = q_CPD @ k[indices_CR].flatten(1, 2).transpose(1, 2)
    # The lowest number, not -inf: a row with nothing to see would get NaN, and its gradient too.
    probs = scores.masked_fill(hidden, torch.finfo(scores.dtype).min).softmax(dim=-1).masked_fill(hidden, 0.0)
    return probs @ v[indices_CR].flatten(1, 2)


def _check_lists(lists: BlockSelection, *, rows: tuple[int, int, int], num_blocks: int) -> None:
    """Refuse lists that name a block twice, or one that does not exist."""
    indices, counts = lists
    if counts.shape != rows or indices.shape[:-1] != rows:
        raise ValueError(
            f"lists must have the rows {rows} (batch, heads, query blocks); "
            f"indices are {tuple(indices.shape)}, counts {tuple(counts.shape)}"
        )
    if ((counts < 0) | (counts > indices.shape[-1])).any():
        raise ValueError(f"counts must lie in [0, {indices.shape[-1]}], the width of indices {tuple(indices.shape)}")
    listed = torch.arange(indices.shape[-1], device=indices.device) < counts.unsqueeze(-1)
    if (listed & ((indices < 0) | (indices >= num_blocks))).any():
        raise ValueError(f"indices must lie in [0, {num_blocks}), the key blocks of the grid")
    if (listed[..., 1:] & (indices.diff(dim=-1) <= 0)).any():
        raise ValueError("indices must be strictly ascending within the count")
