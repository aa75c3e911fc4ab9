"""Where the transformer's weights live: quantised, swapped or offloaded before the rest goes to the device."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import nn

from studio.core.config import ModelConfig
from studio.core.errors import DeviceError
from studio.core.model.dit import LongCatVideoTransformer3DModel
from studio.core.model.dit_block import DitBlock
from studio.core.model.precision import quantise_blocks
from studio.core.model.swap import NUM_SLOTS, BlockSwap

logger = logging.getLogger(__name__)


def place(
    dit: LongCatVideoTransformer3DModel, config: ModelConfig, device: torch.device
) -> tuple[BlockSwap | None, tuple[str, ...]]:
    """Brings a transformer from main memory to where `config` wants it, never more than a block at a time beyond that.

    Returns the swap, if blocks are swapped, and sentences about what differs from what was asked for.

    Raises:
        DeviceError: fp8 or the swap device cannot be had here.
    """
    notices = quantise_blocks(dit, config.base_precision, device)
    if device.type == "cpu" and (config.blocks_to_swap or config.group_offload):
        key = "enable_group_offload" if config.group_offload else "musubi_blocks_to_swap"
        notices += (f"{key} does nothing here: the model runs in main memory, where its weights are anyway.",)
    elif config.group_offload:
        offload_layers(dit, device)
        return None, notices
    elif config.blocks_to_swap:
        swap, said = _swap(dit, config, device)
        return swap, notices + said
    nn.Module.to(dit, device)
    return None, notices


def _swap(
    dit: LongCatVideoTransformer3DModel, config: ModelConfig, device: torch.device
) -> tuple[BlockSwap | None, tuple[str, ...]]:
    """Swaps the last blocks, at most all but one, and brings everything else to the device."""
    blocks = cast(list[DitBlock], dit.blocks)
    count, notices = min(config.blocks_to_swap, len(blocks) - 1), ()
    if count < config.blocks_to_swap:
        notices = (
            f"musubi_blocks_to_swap is {config.blocks_to_swap}, but the transformer has {len(blocks)} blocks: "
            f"{count} are swapped.",
        )
    if count < 1:
        nn.Module.to(dit, device)
        return None, notices
    if count <= NUM_SLOTS:
        notices += (f"musubi_blocks_to_swap {count} saves no memory: {NUM_SLOTS} blocks are on the device anyway.",)
    swap = BlockSwap(blocks[-count:], device, _swap_device(config, device))
    for part in (*dit.children(), *blocks[:-count]):
        if part is not dit.blocks:
            nn.Module.to(part, device)
    logger.info("swapped_blocks=%d of=%d device=%s master=%s", count, len(blocks), device, config.block_swap_device)
    return swap, notices


def _swap_device(config: ModelConfig, device: torch.device) -> torch.device:
    """Where swapped blocks wait. Raises DeviceError."""
    wanted = torch.device(config.block_swap_device)
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"The device {wanted}, musubi_block_swap_device, is not here.", "Use the device cpu.")
    if wanted.type == device.type and (wanted.index or 0) == (device.index or 0):
        raise DeviceError(
            f"musubi_block_swap_device is {wanted}, where the model itself runs: nothing would be saved.",
            "Use the device cpu.",
        )
    return wanted


def offload_layers(dit: LongCatVideoTransformer3DModel, device: torch.device) -> None:
    """Every linear waits in main memory and is on `device` for its own call (diffusers).

    At leaf level, because LoRA layers that come later are then no part of it and stay on the device. Without streams:
    diffusers fetches ahead in the order of a forward only, and checkpointing runs blocks in the other. Norms, which
    are small and read without a call of their own, are there all the time. As weights are gone after their call, all
    blocks are marked as swapped, so that they are checkpointed in training.
    """
    norms = [m for m in dit.modules() if m._parameters and not isinstance(m, nn.Linear | nn.Conv3d)]
    with _set_aside(norms):
        dit.enable_group_offload(device, offload_type="leaf_level")
    for norm in norms:
        nn.Module.to(norm, device)
    for block in cast(list[DitBlock], dit.blocks):
        block.is_swapped = True


@contextmanager
def _set_aside(modules: list[nn.Module]) -> Iterator[None]:
    """Inside, these modules seem to have no parameters."""
    kept = [dict(module._parameters) for module in modules]
    for module in modules:
        module._parameters.clear()
    try:
        yield
    finally:
        for module, parameters in zip(modules, kept, strict=True):
            module._parameters.update(parameters)
