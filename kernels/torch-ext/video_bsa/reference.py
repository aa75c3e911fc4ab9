"""Block-sparse attention in plain PyTorch: the oracle of every kernel, and the path that runs on a CPU.

Letters: B batch, N heads, S tokens, D head width, Mq and Mk query and key blocks, R listed blocks, P tokens
of a block, C query blocks of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .grid import BlockGrid

CHUNK_ELEMENTS = 1 << 18
"""Scores, or elements of K, held at once: 1 MiB in fp32, which the caches of a CPU hold; a pass takes a few of them."""


def reference_attention(
    q_BNSD: torch.Tensor,
    k_BNSD: torch.Tensor,
    v_BNSD: torch.Tensor,
    indices_BNMR: torch.Tensor,
    counts_BNM: torch.Tensor,
    blocks_q: BlockGrid,
    blocks_k: BlockGrid,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention [B, N, Sq, D] in q's type, and the log of its softmax sums [B, N, Sq]; softmax scale D^-0.5.

    Sums are fp32, or fp64 for fp64 inputs, and the logs (natural) come in that type. A query whose list is
    empty gets zeros and -inf. Both results are differentiable by autograd, which keeps all that was gathered;
    `reference_backward` does not.
    """
    gathered = _Gathered.of(q_BNSD, k_BNSD, v_BNSD, indices_BNMR, counts_BNM, blocks_q, blocks_k)
    out, lse = zip(*(_attend(*chunk) for chunk in gathered.chunks(gathered.q)), strict=True)
    rows = (*q_BNSD.shape[:2], blocks_q.num_blocks)
    out = blocks_q.from_blocks(torch.cat(out).unflatten(0, rows)).to(q_BNSD.dtype)
    return out, blocks_q.from_blocks(torch.cat(lse).unflatten(0, rows)).squeeze(-1)


def reference_backward(
    grad_out_BNSD: torch.Tensor,
    q_BNSD: torch.Tensor,
    k_BNSD: torch.Tensor,
    v_BNSD: torch.Tensor,
    out_BNSD: torch.Tensor,
    lse_BNS: torch.Tensor,
    indices_BNMR: torch.Tensor,
    counts_BNM: torch.Tensor,
    blocks_q: BlockGrid,
    blocks_k: BlockGrid,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v, each in its shape and type, from what `reference_attention` returned.

    Probabilities are computed again, chunk by chunk, and k and v gather their sums in the order of the query
    blocks, so that on a CPU two runs agree bit by bit.

    Source: FlashAttention-2 (arXiv 2307.08691), section 3.1.2, equations of the backward pass.
    """
    gathered = _Gathered.of(q_BNSD, k_BNSD, v_BNSD, indices_BNMR, counts_BNM, blocks_q, blocks_k)
    grad_out = grad_out_BNSD.to(gathered.q.dtype)
    delta = (grad_out * out_BNSD).sum(dim=-1, keepdim=True)
    per_query = (blocks_q.to_blocks(x).flatten(0, 2) for x in (grad_out, lse_BNS.unsqueeze(-1), delta))
    dq, dk, dv = [], torch.zeros_like(gathered.k), torch.zeros_like(gathered.v)
    for q, grad, lse, delta_, k, v, hidden, listed in gathered.chunks(gathered.q, *per_query):
        probs = torch.exp(q @ k.transpose(1, 2) - lse).masked_fill(hidden, 0.0)  # [C, P, R*P]
        grad_scores = probs * (grad @ v.transpose(1, 2) - delta_)
        dq.append(grad_scores @ k)
        for total, part in ((dk, grad_scores.transpose(1, 2) @ q), (dv, probs.transpose(1, 2) @ grad)):
            total.index_add_(0, listed, part.view(-1, *total.shape[1:]))
    batch_heads = q_BNSD.shape[:2]
    dq = torch.cat(dq).unflatten(0, (*batch_heads, blocks_q.num_blocks)) * q_BNSD.shape[-1] ** -0.5
    dk, dv = (x.unflatten(0, (*batch_heads, blocks_k.num_blocks + 1))[:, :, :-1] for x in (dk, dv))
    return (
        blocks_q.from_blocks(dq).to(q_BNSD.dtype),
        blocks_k.from_blocks(dk).to(k_BNSD.dtype),
        blocks_k.from_blocks(dv).to(v_BNSD.dtype),
    )


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, hidden: torch.Tensor, _: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention [C, P, D] and log of the sums [C, P, 1] of a chunk, as `_Gathered.chunks` yields it."""
    # The lowest number, not -inf: a row with nothing to see would get NaN, and its gradient too.
    scores = (q @ k.transpose(1, 2)).masked_fill(hidden, torch.finfo(q.dtype).min)
    top = scores.detach().amax(dim=-1, keepdim=True)
    weights = torch.exp(scores - top).masked_fill(hidden, 0.0)
    total = weights.sum(dim=-1, keepdim=True)
    seen = total > 0
    total = total.where(seen, 1.0)
    return weights @ v / total, (top + total.log()).where(seen, -torch.inf)


@dataclass(frozen=True)
class _Gathered:
    """Queries, keys and values in block order, ready to be put together by list."""

    q: torch.Tensor
    """[B*N*Mq, P, D], times the softmax scale."""
    k: torch.Tensor
    """[B*N*(Mk+1), P, D]: a key block more than there is, without a token, follows those of each head."""
    v: torch.Tensor
    """Like k."""
    hidden: torch.Tensor
    """Bool [B*N*(Mk+1), P]: where a key block has no token."""
    indices: torch.Tensor
    """Int64 [B*N*Mq, R]: rows of k, in which entries behind the count are those of the block without a token."""

    @classmethod
    def of(
        cls,
        q_BNSD: torch.Tensor,
        k_BNSD: torch.Tensor,
        v_BNSD: torch.Tensor,
        indices_BNMR: torch.Tensor,
        counts_BNM: torch.Tensor,
        blocks_q: BlockGrid,
        blocks_k: BlockGrid,
    ) -> _Gathered:
        device, num_heads, empty = q_BNSD.device, q_BNSD.shape[0] * q_BNSD.shape[1], blocks_k.num_blocks
        listed = torch.arange(indices_BNMR.shape[-1], device=device) < counts_BNM.unsqueeze(-1)
        first_row = torch.arange(num_heads, device=device).view(*q_BNSD.shape[:2], 1, 1) * (empty + 1)
        dtype = torch.promote_types(q_BNSD.dtype, torch.float32)
        k, v = (F.pad(blocks_k.to_blocks(x.to(dtype)), (0, 0, 0, 0, 0, 1)).flatten(0, 2) for x in (k_BNSD, v_BNSD))
        return cls(
            q=blocks_q.to_blocks(q_BNSD.to(dtype) * q_BNSD.shape[-1] ** -0.5).flatten(0, 2),
            k=k,
            v=v,
            hidden=~F.pad(blocks_k.valid_tokens(device), (0, 0, 0, 1)).repeat(num_heads, 1),
            indices=(indices_BNMR.long().where(listed, empty) + first_row).flatten(0, 2),
        )

    def chunks(self, *per_query: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
        """Some query blocks at a time: rows of `per_query`, k and v [C, R*P, D], hidden [C, 1, R*P], rows of k."""
        tokens, width = self.k.shape[1:]
        size = max(1, CHUNK_ELEMENTS // (self.indices.shape[1] * tokens * max(tokens, width)))
        for *rows, indices in zip(*(x.split(size) for x in (*per_query, self.indices)), strict=True):
            k, v = (x[indices].flatten(1, 2) for x in (self.k, self.v))
            yield *rows, k, v, self.hidden[indices].flatten(1).unsqueeze(1), indices.flatten()
