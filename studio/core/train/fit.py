"""Whether a run fits the device: peak memory and seconds a step, measured on a few blocks and extrapolated.

A step over the first blocks of the transformer costs what all steps share and something for each block. Two such
steps tell the two apart; all else is arithmetic.

Letters: B batch, C channels, T H W latents, S tokens, E model width, N heads, L text length.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import nn

from studio.core.config import BasePrecision, RunConfig
from studio.core.data.dataset import BatchSampler, training_pairs
from studio.core.errors import DatasetError
from studio.core.geometry import GridSpec
from studio.core.model.dit import LongCatVideoTransformer3DModel
from studio.core.model.load import ModelBundle
from studio.core.model.memory import (
    NOTHING_HELPS,
    allocated_bytes,
    block_bytes,
    capacity,
    is_out_of_memory,
    memory_errors,
    num_swapped,
    release,
    tensor_bytes,
)
from studio.core.model.precision import LARGE_LINEARS, eight_bits_for
from studio.core.train.change import change_after_failure, cheapest_change
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
from studio.core.train.learner import attach, detach
from studio.core.train.step import NUM_START_LATENTS, Batch, training_loss
from studio.core.types import Bucket, DatasetReport

MOST_MEASURED = 8
"""Buckets that are measured, the largest, a few seconds each at full size; the others are in proportion."""
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
    measurements: tuple[Measurement, ...] = ()
    """What it was predicted from."""

    @property
    def worst(self) -> BucketFit:
        """The bucket that takes most memory, or most time where memory is not known."""
        return self.buckets[0]

    @property
    def fits(self) -> bool:
        """True unless the worst bucket is too large for the device."""
        return does_fit(self.worst.peak_bytes, self.capacity_bytes)

    def remedy_after_failure(self, bucket: Bucket, batch_size: int) -> str | None:
        """The cheapest change, now that a step of this size has run out of memory."""
        return change_after_failure(*_nearest(self.measurements, bucket, batch_size), self.capacity_bytes)

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
    batch = _random_batch(dit, bucket, batch_size, grid, text_length, device)
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


def _random_batch(
    dit: LongCatVideoTransformer3DModel,
    bucket: Bucket,
    batch_size: int,
    grid: GridSpec,
    text_length: int,
    device: torch.device,
) -> Batch:
    """Latents and text of a batch of the bucket, all text tokens in use."""
    size = grid.latent_grid(bucket.num_frames, bucket.height, bucket.width)
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, dit.config["in_channels"], size.t, size.h, size.w)
    latents = torch.randn(shape, generator=generator).to(device)
    text = torch.randn(batch_size, 1, text_length, dit.config["caption_channels"], generator=generator)
    return Batch(
        latents=latents,
        start_latent=latents[:, :, :NUM_START_LATENTS].clone(),
        text=text.to(device, dit.x_embedder.proj.weight.dtype),
        text_mask=torch.ones(batch_size, text_length, dtype=torch.long, device=device),
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


def measure_fit(
    config: RunConfig,
    bundle: ModelBundle,
    parameters: Sequence[nn.Parameter],
    batches: Mapping[tuple[Bucket, int], int],
) -> Generator[tuple[int, int], None, Fit]:
    """The fit of a run whose adapter is on and has not learnt yet; yields (done, total) of what is measured.

    Where the configuration leaves open whether attention's outputs are kept, the largest bucket decides, measured
    alone. If yes, all are measured as the run will go, the largest again; where one of them does not fit after all,
    attention is recomputed as before and the others are measured so. The transformer is set as decided. Whoever asks
    for the next holds `bundle.lock`.
    """
    limit, dit = capacity(bundle.device), bundle.dit
    largest = largest_first(batches)[:MOST_MEASURED]

    def measure(bucket: Bucket, batch_size: int) -> Measurement:
        return measure_bucket(
            dit, parameters, bucket, batch_size=batch_size, text_length=bundle.prompt_encoder.max_length,
            device=bundle.device, grid=bundle.grid, base_precision=config.model.base_precision,
        )  # fmt: skip

    yield 0, len(largest)
    measurements = [measure(*largest[0])]
    done = 1
    yield done, len(largest)
    if config.model.keep_attention is None and decide_keep_attention(measurements[0], limit):
        dit.keep_attention = True
        kept: list[Measurement] = []
        for of in largest:
            kept.append(measure(*of))
            done += 1
            yield done, done + len(largest) - len(kept)
            if not does_fit(extrapolate(kept[-1]).peak_bytes, limit):
                dit.keep_attention = False
                break
        measurements = kept if dit.keep_attention else measurements
    for of in largest[len(measurements) :]:
        measurements.append(measure(*of))
        done += 1
        yield done, done + len(largest) - len(measurements)
    # What the measuring left in PyTorch's store is cut to its own sizes.
    release()
    return predict(measurements, batches, limit)


def fit_of(
    config: RunConfig,
    bundle: ModelBundle,
    report: DatasetReport,
    *,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Fit:
    """The fit of a run that is not started: its adapter is put on, and taken off again. `on_progress` hears (done,
    total) of what is measured.

    Raises:
        DatasetError: no pair is ready.
        JobAlreadyRunning: an adapter is in training on this transformer.
    """
    pairs = training_pairs(report, config)
    if not pairs:
        raise DatasetError("No clip is ready to train on.", "Check the dataset, and mend what it lists.")
    batches = BatchSampler(pairs, config.data, config.seed).batches
    bucket, batch_size = largest_first(batches)[0]
    said = f"The device ran out of memory before a step of {bucket} with batch size {batch_size} could be measured."
    with bundle.lock, memory_errors(said, lambda: remedy_for_step(config, bundle, None, bucket, batch_size)):
        parameters = attach(config, bundle)
        try:
            return _finished(measure_fit(config, bundle, parameters, batches), on_progress)
        finally:
            detach(bundle)


def _finished(measuring: Generator[tuple[int, int], None, Fit], on_progress: Callable[[int, int], None]) -> Fit:
    """The fit, measured to the end."""
    while True:
        try:
            on_progress(*next(measuring))
        except StopIteration as end:
            return end.value


def largest_first(batches: Mapping[tuple[Bucket, int], int]) -> list[tuple[Bucket, int]]:
    """Buckets and batch sizes, those with most pixels first."""

    def pixels(of: tuple[Bucket, int]) -> int:
        bucket, batch_size = of
        return batch_size * bucket.num_frames * bucket.height * bucket.width

    return sorted(batches, key=pixels, reverse=True)


def remedy_for_step(config: RunConfig, bundle: ModelBundle, fit: Fit | None, bucket: Bucket, batch_size: int) -> str:
    """What to do after a step of this size has run out of memory; by formula where there is no `fit`."""
    if fit is not None:
        return fit.remedy_after_failure(bucket, batch_size) or NOTHING_HELPS
    guess = guess_bucket(
        bundle.dit, (), bucket, batch_size=batch_size, device=bundle.device, grid=bundle.grid,
        base_precision=config.model.base_precision, is_checkpointed=config.model.gradient_checkpointing,
    )  # fmt: skip
    return cheapest_change(guess, guess.setup, capacity(bundle.device)) or NOTHING_HELPS


def decide_keep_attention(measurement: Measurement, capacity_bytes: int | None) -> bool:
    """True where a checkpointed step fits that keeps the attention's output of every block; False where memory is not
    known.
    """
    if capacity_bytes is None or not measurement.setup.is_checkpointed:
        return False
    return does_fit(peak_bytes(measurement, replace(measurement.setup, keeps_attention=True)), capacity_bytes)


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
        measurements=tuple(measurements),
    )


def _nearest(measurements: Sequence[Measurement], bucket: Bucket, batch_size: int) -> tuple[Measurement, Setup]:
    """The measurement to judge a bucket by, and its setup with that bucket."""

    def distance(measurement: Measurement) -> int:
        wanted = replace(measurement.setup, bucket=bucket, batch_size=batch_size)
        return abs(measurement.sizes.tokens(wanted) - measurement.sizes.tokens(measurement.setup))

    nearest = min(measurements, key=distance)
    return nearest, replace(nearest.setup, bucket=bucket, batch_size=batch_size)
