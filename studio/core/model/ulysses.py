"""One video on several GPUs: each has some tokens of every latent frame, and for attention all tokens of some heads.

Ulysses (DeepSpeed, arXiv 2309.14509): an all-to-all before self-attention and one after it. Attention itself sees what
it sees on one GPU: the whole grid in its own order, dense or block-sparse, so that the video does not depend on how
many GPUs there are, and no size is asked of it.

diffusers' context parallelism does not fit here: it cuts the sequence in consecutive pieces, where modulation needs
whole frames; it works inside its own attention dispatch, which knows neither block-sparse attention nor cached keys.

Letters: B batch, N heads, S tokens, D head width, E model width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F

from studio.core.geometry import Grid


@dataclass(frozen=True, slots=True)
class Ulysses:
    """The part of one process. Every method is called by all of them at once; without gradients.

    A frame whose tokens do not divide is padded with zeros, which attention never sees.
    """

    rank: int
    count: int

    def of_first(self, tensor: torch.Tensor) -> torch.Tensor:
        """The first process's tensor, on all: a rounding must not set them apart."""
        tensor = tensor.clone(memory_format=torch.contiguous_format)
        dist.broadcast(tensor, src=0)
        return tensor

    def share(self, tokens: int) -> int:
        """How many of a frame's tokens a process has, padding included."""
        return -(-tokens // self.count)

    def split(self, x_BSE: torch.Tensor, num_frames: int) -> torch.Tensor:
        """The own tokens of each frame, [B, num_frames * share, E]."""
        frames = x_BSE.unflatten(1, (num_frames, -1))
        share = self.share(frames.shape[2])
        padded = F.pad(frames, (0, 0, 0, self.count * share - frames.shape[2]))
        return padded[:, :, self.rank * share : (self.rank + 1) * share].flatten(1, 2)

    def joined(self, x_BSE: torch.Tensor, grid: Grid) -> torch.Tensor:
        """All tokens of `grid` [B, S, E], on every process, from the own ones."""
        x = x_BSE.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.count)]
        dist.all_gather(parts, x)
        return self._in_order(torch.stack(parts, dim=1), grid)

    def to_heads(self, x_BNSD: torch.Tensor, grid: Grid) -> torch.Tensor:
        """All tokens of `grid` for the own heads, [B, N / count, S, D], from the own tokens of all heads."""
        mine = x_BNSD.unflatten(1, (self.count, -1)).movedim(1, 0).contiguous()
        parts = torch.empty_like(mine)
        dist.all_to_all_single(parts, mine)
        return self._in_order(parts.movedim(0, 2), grid)

    def to_tokens(self, x_BNSD: torch.Tensor, grid: Grid) -> torch.Tensor:
        """The way back: the own tokens of all heads, [B, N, num_frames * share, D]; padding is zero."""
        frames = x_BNSD.unflatten(2, (grid.t, -1))
        share = self.share(frames.shape[3])
        padded = F.pad(frames, (0, 0, 0, self.count * share - frames.shape[3]))
        mine = padded.unflatten(3, (self.count, share)).movedim(3, 0).contiguous()
        parts = torch.empty_like(mine)
        dist.all_to_all_single(parts, mine)
        return parts.movedim(0, 1).flatten(1, 2).flatten(2, 3)

    def _in_order(self, parts: torch.Tensor, grid: Grid) -> torch.Tensor:
        """[..., count, num_frames * share, X] to [..., S, X], padding left out."""
        frames = parts.unflatten(-2, (grid.t, -1)).movedim(-4, -3)
        return frames.flatten(-3, -2)[..., : grid.h * grid.w, :].flatten(-3, -2)
