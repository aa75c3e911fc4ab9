"""Whether a run fits the device: peak memory and seconds a step, measured on a few blocks and extrapolated.

A step over the first blocks of the transformer costs what all steps share and something for each block. Two such
steps tell the two apart; all else is arithmetic.

Letters: B batch, C channels, T H W latents, S tokens, E model width, N heads, L text length.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import nn

from studio.core.config import BasePrecision
from studio.core.geometry import GridSpec
from studio.core.model.dit import LongCatVideoTransformer3DModel
from studio.core.model.memory import allocated_bytes, capacity, is_out_of_memory, release, tensor_bytes
from studio.core.train.change import cheapest_change
from studio.core.train.estimate import (
    BucketFit,
    Measurement,
    Setup,
    Sizes,
    StepBytes,
    does_fit,
    extrapolate,
    kept_by_formula,
    peak_bytes,
    working_by_formula,
)
from studio.core.train.step import NUM_START_LATENTS, Batch, training_loss
from studio.core.types import Bucket

FEW_BLOCKS = (2, 4)
"""How many of the first blocks are measured."""
SLOW_SECONDS = 2.0
"""A step that takes longer is timed once, not twice."""
TRIAL_BYTES = 2**26
"""How much is copied to see how fast copies are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """What a run will take, and whether the device has that."""

    buckets: tuple[BucketFit, ...]
    """The dearest first."""
    capacity_bytes: int | None
    """None on a CPU."""
    keeps_attention: bool
    change: str | None
    """The cheapest change that makes it fit, a sentence; None when it fits, or when nothing would help."""

    @property
    def worst(self) -> BucketFit:
        """The bucket that takes most memory, or most time where memory is not known."""
        return self.buckets[0]

    @property
    def fits(self) -> bool:
        """True unless the worst bucket is too large for the device."""
        return does_fit(self.worst.peak_bytes, self.capacity_bytes)

    @property
    def seconds_per_step(self) -> float | None:
        """Median over the batches of an epoch."""
        seconds = [fit.seconds for fit in self.buckets for _ in range(fit.num_batches) if fit.seconds is not None]
        return median(seconds) if seconds else None


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
    own = [t for name, t in (*block.named_parameters(), *block.named_buffers()) if ".lora_" not in name]
    large = [m.weight for name, m in block.named_modules() if isinstance(m, nn.Linear) and _is_large(name)]
    is_fp8_fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)
    block_bytes = sum(tensor_bytes(tensor) for tensor in own)
    return Sizes(
        depth=len(dit.blocks),
        width=dit.config["hidden_size"],
        num_heads=dit.config["num_heads"],
        itemsize=dit.x_embedder.proj.weight.dtype.itemsize,
        block_bytes=block_bytes,
        small_block_bytes=block_bytes - sum(tensor_bytes(weight) - weight.numel() for weight in large),
        state_bytes=2 * sum(tensor_bytes(parameter) for parameter in parameters),
        smaller_precision="fp8-torchao" if is_fp8_fast else "int8-quanto",
        grid=grid,
    )


def _is_large(name: str) -> bool:
    """True for the linears of a block that a smaller base precision concerns."""
    return ".lora_" not in name and not name.startswith("adaLN_modulation")


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
    is_offloaded: bool = False,
) -> Measurement:
    """Runs training steps of this size over the first blocks of `dit` as it stands, on random latents and text.

    `parameters` are those of its adapter, whose optimiser has not taken a step yet. Nothing is changed: neither
    weights nor random states, and gradients are gone afterwards. Where even few blocks are too much, memory is what
    the formula says.
    """
    sizes = sizes_of(dit, parameters, device, grid)
    num_swapped = sum(bool(block.is_swapped) for block in dit.blocks)
    setup = Setup(
        bucket=bucket,
        batch_size=batch_size,
        is_checkpointed=dit.gradient_checkpointing,
        keeps_attention=dit.gradient_checkpointing and dit.keep_attention,
        num_swapped=num_swapped,
        base_precision=base_precision,
        is_offloaded=is_offloaded,
    )
    few = FEW_BLOCKS if sizes.depth > FEW_BLOCKS[1] else (1, min(2, sizes.depth))
    batch = _random_batch(dit, setup, grid, text_length, device)
    allocated = allocated_bytes(device)
    seconds: list[float] = []
    peaks: list[int] = []
    for count in few:
        measured = _measure_blocks(dit, parameters, batch, count, device)
        if measured is None:
            break
        seconds.append(measured[0])
        peaks.append(measured[1])
    return Measurement(
        setup=setup,
        sizes=sizes,
        seconds_beyond=_beyond(few, seconds),
        seconds_per_block=_per_block(few, seconds),
        memory=None if allocated is None else _step_bytes(setup, sizes, allocated, few, peaks, device),
        copy_seconds=_copy_seconds(sizes.block_bytes, device),
        has_waited=num_swapped > sizes.depth - few[1],
    )


def _measure_blocks(
    dit: LongCatVideoTransformer3DModel,
    parameters: Sequence[nn.Parameter],
    batch: Batch,
    count: int,
    device: torch.device,
) -> tuple[float, int] | None:
    """(seconds, bytes above what was allocated before) of a step over `count` blocks; None when memory runs out."""
    was_training = dit.training
    dit.train()
    before = allocated_bytes(device) or 0
    try:
        with shortened(dit, count), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            _step(dit, parameters, batch, device)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            seconds = [_step(dit, parameters, batch, device)]
            if seconds[0] <= SLOW_SECONDS:
                seconds.append(_step(dit, parameters, batch, device))
            peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
        return median(seconds), peak - before
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


def _random_batch(
    dit: LongCatVideoTransformer3DModel, setup: Setup, grid: GridSpec, text_length: int, device: torch.device
) -> Batch:
    """Latents and text of the setup's shape, all text tokens in use."""
    size = grid.latent_grid(setup.bucket.num_frames, setup.bucket.height, setup.bucket.width)
    generator = torch.Generator().manual_seed(0)
    shape = (setup.batch_size, dit.config["in_channels"], size.t, size.h, size.w)
    latents = torch.randn(shape, generator=generator).to(device)
    text = torch.randn(setup.batch_size, 1, text_length, dit.config["caption_channels"], generator=generator)
    return Batch(
        latents=latents,
        start_latent=latents[:, :, :NUM_START_LATENTS].clone(),
        text=text.to(device, dit.x_embedder.proj.weight.dtype),
        text_mask=torch.ones(setup.batch_size, text_length, dtype=torch.long, device=device),
    )


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


def _step_bytes(
    setup: Setup, sizes: Sizes, allocated: int, few: tuple[int, int], peaks: Sequence[int], device: torch.device
) -> StepBytes:
    """Working and kept bytes of two peaks; what could not be measured by formula."""
    kept, working = kept_by_formula(sizes, setup), working_by_formula(sizes, setup)
    if len(peaks) == 2:
        kept = round(_per_block(few, peaks) or 0)
        working = round(_beyond(few, peaks) or 0)
    elif peaks:
        working = peaks[0] - few[0] * kept
    else:
        # It is known that this much was too much.
        working = max(working, (capacity(device) or 0) - allocated - few[0] * kept)
    return StepBytes(allocated=allocated, working=working, kept=kept)


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


def decide_keep_attention(measurements: Sequence[Measurement], capacity_bytes: int | None) -> bool:
    """True where steps fit that keep the attention's output of every block; False where memory is not known."""
    if capacity_bytes is None:
        return False
    kept = [peak_bytes(m, replace(m.setup, keeps_attention=True)) for m in measurements if m.setup.is_checkpointed]
    return bool(kept) and all(does_fit(peak, capacity_bytes) for peak in kept)


def predict(
    measurements: Sequence[Measurement], batches: Mapping[tuple[Bucket, int], int], capacity_bytes: int | None
) -> Fit:
    """The fit of a run with these `batches`: how many an epoch has of each bucket and batch size.

    What was not measured is in proportion to the measured one that is nearest in tokens.
    """
    fits = [
        replace(extrapolate(*_nearest(measurements, bucket, batch_size)), num_batches=number)
        for (bucket, batch_size), number in batches.items()
    ]
    fits.sort(key=lambda fit: (fit.peak_bytes or 0, fit.seconds or 0), reverse=True)
    change = None
    if not does_fit(fits[0].peak_bytes, capacity_bytes):
        change = cheapest_change(*_nearest(measurements, fits[0].bucket, fits[0].batch_size), capacity_bytes)
    return Fit(
        buckets=tuple(fits),
        capacity_bytes=capacity_bytes,
        keeps_attention=measurements[0].setup.keeps_attention,
        change=change,
    )


def _nearest(measurements: Sequence[Measurement], bucket: Bucket, batch_size: int) -> tuple[Measurement, Setup]:
    """The measurement to judge a bucket by, and its setup with that bucket."""

    def distance(measurement: Measurement) -> int:
        wanted = replace(measurement.setup, bucket=bucket, batch_size=batch_size)
        return abs(measurement.sizes.tokens(wanted) - measurement.sizes.tokens(measurement.setup))

    nearest = min(measurements, key=distance)
    return nearest, replace(nearest.setup, bucket=bucket, batch_size=batch_size)
