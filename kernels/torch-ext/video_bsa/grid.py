"""Token order (t, h, w) to attention blocks and back, on any grid.

Letters: B batch, N heads, S tokens, D head width, M blocks, P tokens of a whole block.
A grid that the block does not divide is padded at its far edges; edge blocks then hold fewer valid tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

Triple = tuple[int, int, int]


def check_sizes(name: str, sizes: Triple) -> None:
    """Refuse anything but three counts (t, h, w) of at least 1; `name` is what the caller knows them by."""
    if len(sizes) != 3 or any(size < 1 for size in sizes):
        raise ValueError(f"{name} must be three counts (t, h, w) of at least 1, got {tuple(sizes)}")


@dataclass(frozen=True)
class BlockGrid:
    """A token grid cut into attention blocks, both (t, h, w)."""

    grid: Triple
    block: Triple

    def __post_init__(self) -> None:
        check_sizes("grid", self.grid)
        check_sizes("block", self.block)

    @property
    def counts(self) -> Triple:
        """Blocks along t, h and w, edge blocks included."""
        t, h, w = (math.ceil(size / edge) for size, edge in zip(self.grid, self.block, strict=True))
        return t, h, w

    @property
    def num_tokens(self) -> int:
        """Tokens of the grid, padding left out."""
        return math.prod(self.grid)

    @property
    def num_blocks(self) -> int:
        """Blocks of the grid, edge blocks included."""
        return math.prod(self.counts)

    def to_blocks(self, x_BNSD: torch.Tensor) -> torch.Tensor:
        """[B, N, M, P, D] in block order, zero where an edge block has no token."""
        (nt, nh, nw), (bt, bh, bw) = self.counts, self.block
        pad_t, pad_h, pad_w = (-size % edge for size, edge in zip(self.grid, self.block, strict=True))
        x = F.pad(x_BNSD.unflatten(2, self.grid), (0, 0, 0, pad_w, 0, pad_h, 0, pad_t))
        x = x.unflatten(4, (nw, bw)).unflatten(3, (nh, bh)).unflatten(2, (nt, bt))
        x = x.permute(0, 1, 2, 4, 6, 3, 5, 7, 8)  # [B, N, nt, nh, nw, bt, bh, bw, D]
        return x.flatten(5, 7).flatten(2, 4)

    def from_blocks(self, x_BNMPD: torch.Tensor) -> torch.Tensor:
        """[B, N, S, D] in token order: the inverse of `to_blocks`, padding dropped."""
        t, h, w = self.grid
        x = x_BNMPD.unflatten(3, self.block).unflatten(2, self.counts)
        x = x.permute(0, 1, 2, 5, 3, 6, 4, 7, 8)  # [B, N, nt, bt, nh, bh, nw, bw, D]
        x = x.flatten(6, 7).flatten(4, 5).flatten(2, 3)
        return x[:, :, :t, :h, :w].flatten(2, 4)

    def valid_tokens(self, device: torch.device) -> torch.Tensor:
        """Bool [M, P]: True where a block holds a token of the grid."""
        ones = torch.ones(1, 1, self.num_tokens, 1, dtype=torch.bool, device=device)
        return self.to_blocks(ones)[0, 0, :, :, 0]

    def block_of_token(self, device: torch.device) -> torch.Tensor:
        """Int64 [S]: the number of the block that each token lies in."""
        numbers = torch.arange(self.num_blocks, device=device).view(1, 1, -1, 1, 1)
        return self.from_blocks(numbers.expand(1, 1, -1, math.prod(self.block), 1)).flatten()


def tokens_first_empty(x_BNSD: torch.Tensor) -> torch.Tensor:
    """Uninitialised, in the shape of `x` and the memory order [B, S, N, D] that the output projection reads."""
    batch, heads, tokens, width = x_BNSD.shape
    return x_BNSD.new_empty(batch, tokens, heads, width).transpose(1, 2)
