"""How much memory a device has, and what becomes of an error when that is too little."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from studio.core.errors import OutOfMemory
from studio.core.model.dit import LongCatVideoTransformer3DModel
from studio.core.model.swap import NUM_SLOTS, plain_tensors
from studio.core.remedy import CONFIG_NAME, Change

FORWARD_BYTES = 14
"""Working memory of a forward without gradients, for each token, channel of the model's width and byte of its dtype
(28 bytes in bf16), the widest layers of one block included. Measured at 37,440 tokens."""
STEP_BYTES = 29
"""The same of a training step with gradient checkpointing: one block recomputed with its gradients. Measured there."""
VAE_BYTES = 4000
"""Working memory of the autoencoder without tiles, for each pixel of a frame and byte of its dtype. An estimate."""
NOTHING_HELPS = "No setting makes it fit: use a device with more memory."

_SAYINGS = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
"""What PyTorch and the libraries below it say when memory is out, and it is no OutOfMemoryError."""


def capacity(device: torch.device) -> int | None:
    """Bytes that PyTorch may take of a CUDA device, those that it has included: all that other processes leave, or the
    share that was set for this one. None on a CPU.
    """
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    share = int(total * torch.cuda.get_per_process_memory_fraction(device))
    return min(share, free + torch.cuda.memory_reserved(device))


def free_bytes(device: torch.device) -> int | None:
    """Bytes that new tensors can have on a CUDA device, those that PyTorch keeps for reuse included. None on a CPU."""
    limit = capacity(device)
    return None if limit is None else max(0, limit - torch.cuda.memory_allocated(device))


def allocated_bytes(device: torch.device) -> int | None:
    """Bytes of all tensors on a CUDA device. None on a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else None


def tensor_bytes(tensor: torch.Tensor) -> int:
    """Bytes that a tensor takes; of a quantised one those of its parts."""
    return sum(plain.nbytes for plain in plain_tensors(tensor))


def gib(size: float) -> str:
    """Bytes as GiB with one decimal, without the unit."""
    return f"{size / 2**30:.1f}"


def forward_bytes(dit: LongCatVideoTransformer3DModel, num_tokens: int) -> int:
    """Working memory of a forward over this many tokens, weights and cache aside."""
    return FORWARD_BYTES * num_tokens * dit.config["hidden_size"] * _itemsize(dit)


def cache_bytes(dit: LongCatVideoTransformer3DModel, num_tokens: int) -> int:
    """Bytes of the keys and values that all blocks keep of this many clean tokens."""
    return 2 * num_tokens * dit.config["hidden_size"] * _itemsize(dit) * len(dit.blocks)


def _itemsize(dit: LongCatVideoTransformer3DModel) -> int:
    return dit.x_embedder.proj.weight.dtype.itemsize


def freed_by_swap(dit: LongCatVideoTransformer3DModel, count: int) -> int:
    """Bytes that are free on the device once `count` blocks are swapped, beyond what is free now."""
    block, now = block_bytes(dit), num_swapped(dit)
    if now == len(dit.blocks):
        return 0
    resident = len(dit.blocks) - now + (NUM_SLOTS if now else 0)
    return (resident - (len(dit.blocks) - count + NUM_SLOTS)) * block


def swap_for(dit: LongCatVideoTransformer3DModel, missing_bytes: int) -> Change | None:
    """The fewest blocks whose swap frees so much; None when no number does."""
    for count in range(num_swapped(dit) + 1, len(dit.blocks)):
        if freed_by_swap(dit, count) >= missing_bytes:
            return Change(((CONFIG_NAME, "musubi_blocks_to_swap", count),))
    return None


def num_swapped(dit: LongCatVideoTransformer3DModel) -> int:
    """Blocks that visit the device for their own call only: all of them under group offload, fewer under swap."""
    return sum(bool(block.is_swapped) for block in dit.blocks)


def block_bytes(dit: LongCatVideoTransformer3DModel) -> int:
    """Bytes of a block, adapters left out."""
    block = dit.blocks[0]
    tensors = (*block.named_parameters(), *block.named_buffers())
    return sum(tensor_bytes(tensor) for name, tensor in tensors if ".lora_" not in name)


def memory_errors(message: str, remedy: Callable[[], str | Change]) -> AbstractContextManager[None]:
    """Inside, memory that runs out becomes OutOfMemory(message, remedy()) and everything that the work held is freed.

    `remedy` is asked after that. An OutOfMemory from further inside passes: it knows more.
    """
    return _MemoryErrors(message, remedy)


class _MemoryErrors(AbstractContextManager[None]):
    """A class, because the frames of a generator's context manager would go on to hold the first traceback."""

    def __init__(self, message: str, remedy: Callable[[], str | Change]) -> None:
        self._message = message
        self._remedy = remedy

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        del trace
        if error is None or not is_out_of_memory(error):
            return
        _let_go(error)
        release()
        raise OutOfMemory(self._message, self._remedy()) from None


def is_out_of_memory(error: BaseException) -> bool:
    """True for what PyTorch, CUDA or Python raise when memory is out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(saying in str(error) for saying in _SAYINGS)


def release() -> None:
    """Frees what nothing refers to any more, for this process and for others."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _let_go(error: BaseException | None) -> None:
    """Clears the frames that an error came through: their variables hold tensors."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
