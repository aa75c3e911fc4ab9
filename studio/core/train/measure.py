"""What a training step takes, measured over the first few blocks of the transformer.

A step over the first blocks costs what all steps share and something for each block. Two such steps tell the two
apart.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import median

import torch
from torch import nn

from studio.core.config import BasePrecision
from studio.core.geometry import GridSpec
from studio.core.model.dit import LongCatVideoTransformer3DModel
from studio.core.model.memory import (
    allocated_bytes,
    block_bytes,
    capacity,
    is_out_of_memory,
    num_swapped,
    release,
    tensor_bytes,
)
from studio.core.model.precision import LARGE_LINEARS, eight_bits_for
from studio.core.train.estimate import (
    Measurement,
    Setup,
    Sizes,
    StepBytes,
    kept_by_formula,
    working_by_formula,
)
from studio.core.train.step import Batch, random_batch, training_loss
from studio.core.types import Bucket

FEW_BLOCKS = (2, 4)
"""How many of the first blocks are measured."""
SLOW_SECONDS = 2.0
"""A step that takes longer is timed once, not twice."""
TRIAL_BYTES = 2**26
"""How much is copied to see how fast copies are."""


@contextmanager
def shortened(dit: LongCatVideoTransformer3DModel, count: int) -> Iterator[None]:
    """Inside, the transformer has its first `count` blocks only."""
    blocks = dit.blocks
    dit.blocks = nn.ModuleList(list(blocks)[:count])
    try:
        yield
    finally:
        dit.blocks = blocks


def sizes_of(
    dit: LongCatVideoTransformer3DModel, parameters: Sequence[nn.Parameter], device: torch.device, grid: GridSpec
) -> Sizes:
    """The sizes of a transformer whose adapter has these `parameters`."""
    block = dit.blocks[0]
    large = [
        parameter
        for name, parameter in block.named_parameters()
        if name.replace(".base_layer", "").removesuffix(".weight") in LARGE_LINEARS
    ]
    return Sizes(
        depth=len(dit.blocks),
        width=dit.config["hidden_size"],
        num_heads=dit.config["num_heads"],
        itemsize=dit.x_embedder.proj.weight.dtype.itemsize,
        block_bytes=block_bytes(dit),
        small_block_bytes=block_bytes(dit) - sum(tensor_bytes(weight) - weight.numel() for weight in large),
        state_bytes=2 * sum(tensor_bytes(parameter) for parameter in parameters),
        smaller_precision=eight_bits_for(device),
        grid=grid,
    )


def measure_bucket(
    dit: LongCatVideoTransformer3DModel,
    parameters: Sequence[nn.Parameter],
    bucket: Bucket,
    *,
    batch_size: int = 1,
    text_length: int,
    device: torch.device,
    grid: GridSpec,
    base_precision: BasePrecision = "no_change",
) -> Measurement:
    """Runs training steps of this size over the first blocks of `dit` as it stands, on random latents and text.

    `parameters` are those of its adapter, whose optimiser has not taken a step yet. Nothing is changed: neither
    weights nor random states, and gradients are gone afterwards. Where even few blocks are too much, memory is what
    the formula says.
    """
    latents = grid.latent_grid(bucket.num_frames, bucket.height, bucket.width)
    batch = random_batch(dit, latents, text_length=text_length, batch_size=batch_size, device=device)
    guess = guess_bucket(
        dit, parameters, bucket, batch_size=batch_size, device=device, grid=grid, base_precision=base_precision,
        is_checkpointed=dit.gradient_checkpointing,
    )  # fmt: skip
    few = _few(guess.sizes)
    measured: list[tuple[float, int]] = []
    for count in few:
        figures = _measure_blocks(dit, parameters, batch, count, device)
        if figures is None:
            break
        measured.append(figures)
    seconds, peaks = [of for of, _ in measured], [of for _, of in measured]
    return replace(
        guess,
        seconds_beyond=_beyond(few, seconds),
        seconds_per_block=_per_block(few, seconds),
        memory=guess.memory and _measured_bytes(guess.memory, few, peaks),
        copy_seconds=_copy_seconds(guess.sizes.block_bytes, device),
        has_waited=guess.setup.num_swapped > guess.sizes.depth - few[1],
    )


def guess_bucket(
    dit: LongCatVideoTransformer3DModel,
    parameters: Sequence[nn.Parameter],
    bucket: Bucket,
    *,
    batch_size: int,
    device: torch.device,
    grid: GridSpec,
    base_precision: BasePrecision,
    is_checkpointed: bool,
) -> Measurement:
    """What is known without a measurement, of a step that is too much for the device even with few blocks."""
    sizes = sizes_of(dit, parameters, device, grid)
    swapped = num_swapped(dit)
    # Swap leaves one block where it is, group offload none; both recompute what they move.
    is_offloaded = swapped == sizes.depth
    is_checkpointed = is_checkpointed or is_offloaded
    setup = Setup(
        bucket=bucket,
        batch_size=batch_size,
        is_checkpointed=is_checkpointed,
        keeps_attention=is_checkpointed and dit.keep_attention,
        num_swapped=0 if is_offloaded else swapped,
        base_precision=base_precision,
        is_offloaded=is_offloaded,
    )
    allocated, limit = allocated_bytes(device), capacity(device)
    memory = None
    if allocated is not None and limit is not None:
        kept, working = kept_by_formula(sizes, setup), working_by_formula(sizes, setup)
        too_much = limit - allocated - _few(sizes)[0] * kept
        memory = StepBytes(allocated=allocated, working=max(working, too_much), kept=kept)
    return Measurement(setup=setup, sizes=sizes, seconds_beyond=None, seconds_per_block=None, memory=memory)


def _few(sizes: Sizes) -> tuple[int, int]:
    """How many blocks are measured of a transformer; fewer of one that has few."""
    return FEW_BLOCKS if sizes.depth > FEW_BLOCKS[1] else (1, min(2, sizes.depth))


def _measure_blocks(
    dit: LongCatVideoTransformer3DModel,
    parameters: Sequence[nn.Parameter],
    batch: Batch,
    count: int,
    device: torch.device,
) -> tuple[float, int] | None:
    """(seconds, peak bytes) of a step over `count` blocks; None when memory runs out."""
    was_training = dit.training
    dit.train()
    try:
        with shortened(dit, count), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            _step(dit, parameters, batch, device)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            seconds = [_step(dit, parameters, batch, device)]
            if seconds[0] <= SLOW_SECONDS:
                seconds.append(_step(dit, parameters, batch, device))
            peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
        return median(seconds), peak
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    finally:
        dit.train(was_training)
        for parameter in parameters:
            parameter.grad = None
    release()
    return None


def _step(
    dit: LongCatVideoTransformer3DModel, parameters: Sequence[nn.Parameter], batch: Batch, device: torch.device
) -> float:
    """Seconds of one training step, its gradients measured and dropped as an optimiser would."""
    _synchronize(device)
    started = time.perf_counter()
    generators = [torch.Generator().manual_seed(index) for index in range(len(batch.latents))]
    training_loss(dit, batch, shift=1.0, generators=generators).backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0).item()
    for parameter in parameters:
        parameter.grad = None
    _synchronize(device)
    return time.perf_counter() - started


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _per_block(few: tuple[int, int], values: Sequence[float]) -> float | None:
    """The slope of two values over the numbers of blocks; of one value its mean."""
    if not values:
        return None
    if len(values) == 1 or few[0] == few[1]:
        return values[0] / few[0]
    return max(0.0, (values[1] - values[0]) / (few[1] - few[0]))


def _beyond(few: tuple[int, int], values: Sequence[float]) -> float | None:
    """What is left of the first value without its blocks."""
    slope = _per_block(few, values)
    return None if slope is None else max(0.0, values[0] - few[0] * slope)


def _measured_bytes(guess: StepBytes, few: tuple[int, int], peaks: Sequence[int]) -> StepBytes:
    """Working and kept bytes of two peaks; of one peak, with what a block keeps by formula.

    What libraries took for themselves in the first step is in both peaks, and so in the working bytes.
    """
    if not peaks:
        return guess
    above = [peak - guess.allocated for peak in peaks]
    if len(above) == 1:
        return replace(guess, working=max(0, above[0] - few[0] * guess.kept))
    return replace(guess, working=round(_beyond(few, above) or 0), kept=round(_per_block(few, above) or 0))


def _copy_seconds(num_bytes: int, device: torch.device) -> float:
    """Seconds that this many bytes take from pinned memory to a CUDA device, from a trial with fewer."""
    if device.type != "cuda":
        return 0.0
    source = torch.empty(min(num_bytes, TRIAL_BYTES), dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(source, device=device)
    target.copy_(source, non_blocking=True)
    _synchronize(device)
    started = time.perf_counter()
    for _ in range(4):
        target.copy_(source, non_blocking=True)
    _synchronize(device)
    return (time.perf_counter() - started) / 4 * num_bytes / len(source)
