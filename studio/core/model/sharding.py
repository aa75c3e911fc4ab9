"""The frozen transformer in parts, one on each process, through torch's FSDP2: for a base that one GPU cannot hold.

Each block is gathered for its own call and let go of after it, in the backward pass too. A LoRA that is put on later is
no part of it: it lies whole on every process, as do its gradients, its optimiser and its checkpoints.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from studio.core.config import ModelConfig
from studio.core.errors import ConfigError
from studio.core.model.dit import LongCatVideoTransformer3DModel


def shard(
    dit: LongCatVideoTransformer3DModel, config: ModelConfig, device: torch.device, num_processes: int
) -> tuple[str, ...]:
    """Brings a transformer from main memory to the devices of all processes, a block at a time, each to 1 part of
    `num_processes`; returns a sentence that says so.

    Raises:
        ConfigError: the blocks are to be swapped, offloaded or quantised too.
    """
    others = {
        "musubi_blocks_to_swap": bool(config.blocks_to_swap),
        "enable_group_offload": config.group_offload,
        "base_model_precision": config.base_precision != "no_change",
    }
    for key, is_asked in others.items():
        if is_asked:
            raise ConfigError(f"{key} does not go with FSDP.", f"Delete {key}, or train without FSDP.")
    mesh = init_device_mesh(device.type, (num_processes,))
    for block in dit.blocks:
        fully_shard(block, mesh=mesh)
    rest = {parameter for part in dit.children() if part is not dit.blocks for parameter in part.parameters()}
    for part in dit.children():
        if part is not dit.blocks:
            nn.Module.to(part, device)
    fully_shard(dit, mesh=mesh, ignored_params=rest)
    return (f"The transformer lies in {num_processes} parts, one on each process (FSDP2).",)


def is_sharded(dit: nn.Module) -> bool:
    """True for a transformer that `shard` took apart: its forward is a call of all processes."""
    return isinstance(dit, FSDPModule)
