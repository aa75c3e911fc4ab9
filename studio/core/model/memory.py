"""How much memory a device has, and what becomes of an error when that is too little."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from studio.core.errors import OutOfMemory

FORWARD_BYTES = 12
"""Working memory of a forward without gradients, for each token, channel of the model's width and byte of its dtype
(24 bytes in bf16), the widest layers of one block included. An estimate."""
STEP_BYTES = 40
"""The same of a training step with gradient checkpointing: one block recomputed with its gradients. An estimate."""

_SAYINGS = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
"""What PyTorch and the libraries below it say when memory is out, and it is no OutOfMemoryError."""


def capacity(device: torch.device) -> int | None:
    """Bytes that this process may take of a CUDA device: all, or the share that was set for it. None on a CPU."""
    if device.type != "cuda":
        return None
    total = torch.cuda.get_device_properties(device).total_memory
    return int(total * torch.cuda.get_per_process_memory_fraction(device))


def free_bytes(device: torch.device) -> int | None:
    """Bytes that new tensors can have on a CUDA device, those that PyTorch keeps for reuse included. None on a CPU."""
    limit = capacity(device)
    if limit is None:
        return None
    reserved = torch.cuda.memory_reserved(device)
    unclaimed = min(limit - reserved, torch.cuda.mem_get_info(device)[0])
    return max(0, unclaimed) + reserved - torch.cuda.memory_allocated(device)


def allocated_bytes(device: torch.device) -> int | None:
    """Bytes of all tensors on a CUDA device. None on a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else None


def tensor_bytes(tensor: torch.Tensor) -> int:
    """Bytes that a tensor takes; of a quantised one those of its parts."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        return tensor.numel() * tensor.element_size()
    names, _ = flatten()
    return sum(tensor_bytes(getattr(tensor, name)) for name in names)


def module_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers."""
    return sum(tensor_bytes(tensor) for tensor in (*module.parameters(), *module.buffers()))


def gib(size: float) -> str:
    """Bytes as GiB with one decimal, without the unit."""
    return f"{size / 2**30:.1f}"


@contextmanager
def memory_errors(message: str, remedy: Callable[[], str]) -> Iterator[None]:
    """Inside, memory that runs out becomes OutOfMemory(message, remedy()) and everything that the work held is freed.

    `remedy` is asked after that. An OutOfMemory from further inside passes: it knows more.
    """
    try:
        yield
        return
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        _let_go(error)
    release()
    raise OutOfMemory(message, remedy()) from None


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
