"""What several processes share of a training step, so that it is the step that one would take.

A step's clips, their order, captions and noise follow from the seed and the step alone. They are dealt out among the
processes that are there; gradients are averaged by torch's DDP.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from studio.core.config import RunConfig
from studio.core.config_json import run_config_to_json
from studio.core.data.dataset import TrainingItem
from studio.core.errors import ConfigError
from studio.core.model.processes import Processes
from studio.core.types import Pair


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """Clips of one bucket that a process puts through the model at once."""

    items: tuple[TrainingItem, ...]
    positions: tuple[int, ...]
    """Where they stand among all clips of the step: their noise follows from it."""
    counts: bool = True
    """False for clips of another process, computed again to keep in step with it, and weighed with zero."""


def shares_of(batches: Sequence[Sequence[TrainingItem]], processes: Processes, batch_size: int) -> tuple[Share, ...]:
    """What this process computes of a step's batches, at most `batch_size` clips at a time.

    All processes get as many shares, of the same buckets in the same order.
    """
    shares, before = [], 0
    for batch in batches:
        places = list(range(len(batch)))
        each = -(-len(batch) // processes.count)
        own = places[processes.rank * each : (processes.rank + 1) * each]
        for start in range(0, each, batch_size):
            part = own[start : start + batch_size]
            shares.append(Share(
                items=tuple(batch[place] for place in part or places[:1]),
                positions=tuple(before + place for place in part or places[:1]),
                counts=bool(part),
            ))  # fmt: skip
        before += len(batch)
    return tuple(shares)


def leaves_idle(num_clips: int, batch_size: int, num_processes: int) -> bool:
    """True where no batch of a bucket with so many clips has one for each process, as `shares_of` deals them out."""
    in_batch = min(num_clips, batch_size * num_processes)
    return (num_processes - 1) * -(-in_batch // num_processes) >= in_batch


def averaging(dit: nn.Module, processes: Processes) -> Any:
    """`dit` so that a backward pass leaves the mean of all processes' gradients of its LoRA; itself for one alone.

    The frozen weights are none of DDP's business: they may be quantised, swapped or sharded.
    """
    if processes.count == 1:
        return dit
    frozen = [name for name, parameter in dit.named_parameters() if not parameter.requires_grad]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(dit, frozen)
    return DistributedDataParallel(dit)


def sums_up(model: Any, *, is_last: bool) -> AbstractContextManager[None]:
    """Around each share of a step: gradients go to the other processes with the last one."""
    if is_last or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()


def require_one_run(config: RunConfig, pairs: Sequence[Pair], step: int, processes: Processes) -> None:
    """Raises ConfigError when the processes do not train the same, or are too many for it."""
    clips = [(pair.dataset_id, pair.name, str(pair.bucket), pair.captions) for pair in pairs]
    processes.require_same("configuration", json.dumps(run_config_to_json(config), sort_keys=True))
    processes.require_same("dataset", json.dumps(clips))
    processes.require_same("checkpoint", str(step))
    clips_of_step = config.data.train_batch_size * config.num_processes
    if processes.count > clips_of_step:
        clip = "1 clip" if clips_of_step == 1 else f"{clips_of_step} clips"
        raise ConfigError(
            f"A step of this run learns from {clip}, too few for {processes.count} processes.",
            f"Go on with {clips_of_step}, or start a new run.",
        )


def notices_of(config: RunConfig, processes: Processes) -> Iterator[str]:
    """How the processes share the run, in sentences."""
    size, begun = config.data.train_batch_size, config.num_processes
    if begun > 1:
        yield (
            f"A step learns from up to {size * begun} clips of one bucket, {size} for each of {begun} processes; which "
            f"ones, in which order and with which noise, follows from the seed ({config.seed}) and the step alone."
        )
    if processes.count != begun:
        dropped = ", and LoRA dropout draws other elements" if config.lora.dropout else ""
        yield (
            f"This run was begun with {begun} and goes on with {processes.count} "
            f"{'process' if processes.count == 1 else 'processes'}: clips, order, captions and noise of each step stay "
            f"the same; sums are taken in another order, so losses agree up to rounding{dropped}."
        )
