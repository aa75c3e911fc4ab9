"""What makes the weights of a checkpoint fit a device that had too little memory for them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from studio.core.config import BasePrecision, ModelConfig
from studio.core.model.dit import LongCatVideoTransformer3DModel
from studio.core.model.memory import FORWARD_BYTES, NOTHING_HELPS
from studio.core.model.precision import LARGE_LINEARS, eight_bits_for
from studio.core.model.swap import NUM_SLOTS
from studio.core.remedy import CONFIG_NAME, Change, Setting

WORK_TOKENS = 37_440
"""Room is left for a forward over so many tokens: a video of 93 frames of 480x832, the published size."""


def room_for_weights(
    shapes: Mapping[str, tuple[int, ...]], config: ModelConfig, device: torch.device, free: int | None, itemsize: int
) -> str | Change:
    """The cheapest change after loading ran out of memory: swap, then weights of one byte too, by formula.

    `shapes` are those of the transformer's tensors by name, `itemsize` is in bytes, and `free` what the device has
    now that everything is let go; None on a CPU.
    """
    if free is None:
        return "Close other programs, or use a machine with more memory."
    if config.group_offload:
        return NOTHING_HELPS
    depth = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks."))
    width = shapes["blocks.0.attn.proj.weight"][0]
    free -= FORWARD_BYTES * WORK_TOKENS * width * itemsize
    free -= sum(_bytes(name, shape, itemsize) for name, shape in shapes.items() if not name.startswith("blocks."))
    block = {name: shape for name, shape in shapes.items() if name.startswith("blocks.0.")}
    for precision in dict.fromkeys((config.base_precision, eight_bits_for(device))):
        of_block = sum(_bytes(name, shape, itemsize, precision) for name, shape in block.items())
        for count in range(config.blocks_to_swap, depth):
            changes = _changes(config, precision, count)
            if changes and of_block * (depth - count + (NUM_SLOTS if count else 0)) <= free:
                return changes
    return NOTHING_HELPS


def _changes(config: ModelConfig, precision: BasePrecision, count: int) -> Change | None:
    """Another precision or number of swapped blocks; None when both are as they were."""
    settings: list[Setting] = []
    if precision != config.base_precision:
        settings.append((CONFIG_NAME, "base_model_precision", precision))
    if count != config.blocks_to_swap:
        settings.append((CONFIG_NAME, "musubi_blocks_to_swap", count))
    return Change(tuple(settings)) if settings else None


def _bytes(name: str, shape: tuple[int, ...], itemsize: int, precision: BasePrecision = "no_change") -> int:
    """Bytes of a tensor of the transformer on the device."""
    if any(part in name for part in LongCatVideoTransformer3DModel._keep_in_fp32_modules):
        itemsize = torch.float32.itemsize
    elif precision != "no_change" and any(name.endswith(f".{layer}.weight") for layer in LARGE_LINEARS):
        itemsize = 1
    return math.prod(shape) * itemsize
