"""One video on several GPUs: each has some tokens of every latent frame, and for attention all tokens of some heads.

Ulysses (DeepSpeed, arXiv 2309.14509): an all-to-all before self-attention and one after it, of one prompt while the
other is attended. Attention itself sees what it sees on one GPU: the whole grid in its own order, dense or
block-sparse, so that the video does not depend on how many GPUs there are, and no size is asked of it.

diffusers' context parallelism does not fit here: it cuts the sequence in consecutive pieces, where modulation needs
whole frames; it works inside its own attention dispatch, which knows neither block-sparse attention nor cached keys.

Letters: B batch, N heads, S tokens, D head width, E model width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

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
        return torch.stack([self._in_order(torch.stack(each), grid) for each in zip(*parts, strict=True)])

    def around(
        self,
        attention: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
        q_BNSD: torch.Tensor,
        k_BNSD: torch.Tensor,
        v_BNSD: torch.Tensor,
        grid_q: Grid,
        grid_k: Grid,
    ) -> torch.Tensor:
        """[B, N, S, D] as `q_BNSD`, the own tokens of all heads: what `attention` gives when it is called, for one of
        the B after another, with all tokens of the grids for the own heads.

        While one is attended the next one is on its way, and the one before on its way back.
        """
        batch, heads, own, width = q_BNSD.shape
        there = [[self._exchange(self._by_heads(x[i])) for x in (q_BNSD, k_BNSD, v_BNSD)] for i in range(batch)]
        back = []
        for exchanges in there:
            q, k, v = (
                self._in_order(exchange.arrived(), grid).transpose(0, 1).unsqueeze(0)
                for exchange, grid in zip(exchanges, (grid_q, grid_k, grid_k), strict=True)
            )
            back.append(self._exchange(self._by_tokens(attention(q, k, v)[0], grid_q)))
        # Laid out as the next linear reads it.
        out = q_BNSD.new_empty(batch, own, self.count, heads // self.count, width)
        for i, exchange in enumerate(back):
            _copy(exchange.arrived().movedim(0, 1), out[i])
        return out.flatten(2, 3).transpose(1, 2)

    def _by_heads(self, x_NSD: torch.Tensor) -> torch.Tensor:
        """[count, S, N / count, D]: the own tokens, for each process its heads."""
        return _arranged(x_NSD.transpose(0, 1).unflatten(1, (self.count, -1)).movedim(1, 0))

    def _by_tokens(self, x_NSD: torch.Tensor, grid: Grid) -> torch.Tensor:
        """[count, num_frames * share, N, D]: the own heads, for each process its tokens of `grid`."""
        frames = x_NSD.transpose(0, 1).unflatten(0, (grid.t, -1))
        if padding := self.count * self.share(frames.shape[1]) - frames.shape[1]:
            frames = F.pad(frames, (0, 0, 0, 0, 0, padding))
        return _arranged(frames.unflatten(1, (self.count, -1)).movedim(1, 0)).flatten(1, 2)

    def _exchange(self, parts: torch.Tensor) -> _Exchange:
        """Begins to give each process its part, for the one that it has for us."""
        received = torch.empty_like(parts)
        work = cast(dist.Work, dist.all_to_all_single(received, parts, async_op=True))
        return _Exchange(work, received)

    def _in_order(self, parts: torch.Tensor, grid: Grid) -> torch.Tensor:
        """[count, num_frames * share, ...] to [S, ...], padding left out."""
        frames = _arranged(parts.unflatten(1, (grid.t, -1)).movedim(0, 1)).flatten(1, 2)
        return frames[:, : grid.h * grid.w].flatten(0, 1)


@dataclass(frozen=True, slots=True)
class _Exchange:
    """An all-to-all that is going on."""

    work: dist.Work
    received: torch.Tensor

    def arrived(self) -> torch.Tensor:
        """What came, on the stream of the caller."""
        self.work.wait()
        return self.received


def _arranged(x: torch.Tensor) -> torch.Tensor:
    """A contiguous copy; the last dimension is contiguous already."""
    copy = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _copy(x, copy)
    return copy


def _copy(x: torch.Tensor, to: torch.Tensor) -> None:
    """In words of 8 bytes, of which a row of the last dimension has a whole number: bf16 numbers that are not in a row
    take two thirds of the time so (H200).
    """
    to.view(torch.int64).copy_(x.view(torch.int64))
