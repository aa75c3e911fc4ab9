"""A module that runs out of memory, for tests of what becomes of that."""

import weakref
from contextlib import contextmanager

import torch


@contextmanager
def failing(module, *, at_call=1):
    """Inside, the given call of `module` runs out of memory; yields weak references to what it was given."""
    calls, held = [], []

    def fail(_, inputs):
        calls.append(None)
        if len(calls) == at_call:
            held.extend(weakref.ref(tensor) for tensor in inputs if isinstance(tensor, torch.Tensor))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    handle = module.register_forward_pre_hook(fail)
    try:
        yield held
    finally:
        handle.remove()
