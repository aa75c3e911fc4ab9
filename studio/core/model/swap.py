"""Transformer blocks that wait elsewhere and visit the model's device in turn, so that most of them need no room there.

A block's weights never change, so they are copied to the device and never back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import nn

from studio.core.model.dit_block import DitBlock

NUM_SLOTS = 2
"""Blocks on the device at a time: the one that runs, and the next."""

_ALIGNMENT = 256
"""Bytes; what PyTorch's own allocator gives, and more than any kernel asks for."""


class BlockSwap:
    """Runs `blocks` on `device` while their weights live on `master_device`.

    Each block's tensors are views into one flat buffer, its master; `NUM_SLOTS` flat buffers on the device hold copies
    of the block that runs and of the one that is expected next. While a block runs, on a CUDA device, a side stream
    copies the next: upwards in a forward, downwards in a backward, where checkpointing calls the forward again. A wrong
    guess costs time and nothing else. All blocks have the same layout, and every tensor that they have when this is
    made is swapped: adapters come later and stay where they are.
    """

    def __init__(self, blocks: Sequence[DitBlock], device: torch.device, master_device: torch.device) -> None:
        self.blocks = tuple(blocks)
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        layout = _Layout(_tensors(self.blocks[0]))
        self._slots = [torch.empty(layout.num_bytes, dtype=torch.uint8, device=device) for _ in range(NUM_SLOTS)]
        self._masters: list[torch.Tensor] = []
        self._at_master: list[list[torch.Tensor]] = []
        self._tensors: list[list[torch.Tensor]] = []
        masters = _buffers(len(self.blocks), layout.num_bytes, master_device, is_pinned=self._stream is not None)
        for block, master in zip(self.blocks, masters, strict=True):
            # A quantised weight says for good where it was when it was made: that is to be the device.
            nn.Module.to(block, device)
            tensors, views = _tensors(block), layout.views(master)
            for tensor, view in zip(tensors, views, strict=True):
                view.copy_(tensor)
            _point(tensors, views)
            self._tensors.append(tensors)
            self._masters.append(master)
            self._at_master.append(views)
            block.is_swapped = True
        self._at_slot = [layout.views(slot) for slot in self._slots]
        self._held: list[int | None] = [None] * NUM_SLOTS
        self._arrived: list[torch.cuda.Event | None] = [None] * NUM_SLOTS
        self._last = 0
        self._hooks = [
            block.register_forward_pre_hook(partial(self._before_forward, index))
            for index, block in enumerate(self.blocks)
        ]

    def remove(self) -> None:
        """Brings every block to the device for good."""
        if self._stream is not None:
            torch.cuda.synchronize(self._device)
        for hook in self._hooks:
            hook.remove()
        for block, tensors, views in zip(self.blocks, self._tensors, self._at_master, strict=True):
            _point(tensors, [view.to(self._device, copy=True) for view in views])
            block.is_swapped = False

    def _before_forward(self, index: int, *_: object) -> None:
        """Makes the block resident, and begins to fetch the one that should be next."""
        if index not in self._held:
            self._fetch(index, self._slot_beside(self._last))
        slot = self._held.index(index)
        arrived = self._arrived[slot]
        if arrived is not None:
            torch.cuda.current_stream(self._device).wait_event(arrived)
        _point(self._tensors[index], self._at_slot[slot])
        following = self._guess(index)
        self._last = index
        if following not in self._held:
            self._fetch(following, self._slot_beside(index))

    def _guess(self, index: int) -> int:
        """The block that should run after `index`: the one above in a forward, below in a backward; turns at the ends.

        After the last one comes the backward, which begins with it, or, without gradients, the next forward.
        """
        last = len(self.blocks) - 1
        if index == 0:
            return min(1, last)
        if index == last:
            return last - 1 if torch.is_grad_enabled() else 0
        return index + 1 if index > self._last else index - 1

    def _slot_beside(self, index: int) -> int:
        """A slot that does not hold the block `index`."""
        return 1 if self._held[0] == index else 0

    def _fetch(self, index: int, slot: int) -> None:
        """Copies a block into a slot, after what was queued on the device until now; whoever held it goes home."""
        held = self._held[slot]
        if held is not None:
            _point(self._tensors[held], self._at_master[held])
        self._held[slot] = None
        if self._stream is None:
            self._slots[slot].copy_(self._masters[index])
            self._held[slot] = index
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            self._slots[slot].copy_(self._masters[index], non_blocking=True)
        arrived = self._arrived[slot] = torch.cuda.Event()
        arrived.record(self._stream)
        self._held[slot] = index


class _Layout:
    """Where each tensor of a block lies in a flat buffer."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._forms = [(tensor.dtype, tensor.shape) for tensor in tensors]
        self._offsets, self.num_bytes = [], 0
        for tensor in tensors:
            self._offsets.append(self.num_bytes)
            self.num_bytes += math.ceil(tensor.nbytes / _ALIGNMENT) * _ALIGNMENT

    def views(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        """The tensors of a block, as views into `buffer`."""
        views = []
        for (dtype, shape), offset in zip(self._forms, self._offsets, strict=True):
            num_bytes = shape.numel() * dtype.itemsize
            views.append(buffer[offset : offset + num_bytes].view(dtype).view(shape))
        return views


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    """The plain tensors behind every parameter and buffer, in order."""
    return [plain for tensor in (*module.parameters(), *module.buffers()) for plain in plain_tensors(tensor)]


def plain_tensors(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensor itself, or those that a quantised one is made of."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        return [tensor]
    names, _ = flatten()
    return [plain for name in names for plain in plain_tensors(getattr(tensor, name))]


def _point(tensors: Sequence[torch.Tensor], at: Sequence[torch.Tensor]) -> None:
    for tensor, view in zip(tensors, at, strict=True):
        tensor.data = view


def _buffers(count: int, num_bytes: int, device: torch.device, *, is_pinned: bool) -> Iterator[torch.Tensor]:
    """`count` flat buffers of `num_bytes` on `device`, each group of them allocated when its first is asked for.

    PyTorch rounds what it pins up to a power of two, so as many buffers share an allocation as waste the least.
    """
    is_pinned = is_pinned and device.type == "cpu"

    def pinned_bytes(share: int) -> int:
        return sum(2 ** math.ceil(math.log2(size * num_bytes)) for size in _groups(count, share))

    share = min(range(1, count + 1), key=pinned_bytes) if is_pinned else 1
    for size in _groups(count, share):
        yield from torch.empty(size, num_bytes, dtype=torch.uint8, device=device, pin_memory=is_pinned)


def _groups(count: int, share: int) -> list[int]:
    """`count` in groups of `share`, the rest in the last."""
    return [min(share, count - start) for start in range(0, count, share)]
