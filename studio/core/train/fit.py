"""Whether a run fits the device: peak memory and seconds a step of every bucket, and what would make it fit."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from torch import nn

from studio.core.config import RunConfig
from studio.core.data.dataset import BatchSampler, training_pairs
from studio.core.errors import ConfigError, DatasetError
from studio.core.model.load import ModelBundle
from studio.core.model.memory import (
    NOTHING_HELPS,
    capacity,
    memory_errors,
    release,
)
from studio.core.remedy import Change
from studio.core.train.change import change_after_failure, cheapest_change
from studio.core.train.estimate import (
    BucketFit,
    Measurement,
    Setup,
    does_fit,
    extrapolate,
    peak_bytes,
)
from studio.core.train.learner import attach, detach
from studio.core.train.measure import guess_bucket, measure_bucket
from studio.core.types import Bucket, DatasetReport

MOST_MEASURED = 8
"""Buckets that are measured, the largest, a few seconds each at full size; the others are in proportion."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """What a run will take, and whether the device has that."""

    buckets: tuple[BucketFit, ...]
    """The dearest first."""
    capacity_bytes: int | None
    """None on a CPU."""
    keeps_attention: bool
    change: Change | None
    """The cheapest change that makes it fit; None when it fits, or when nothing would help."""
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

    def remedy_after_failure(self, bucket: Bucket, batch_size: int, capacity_bytes: int | None) -> Change | None:
        """The cheapest change, now that a step of this size has run out of memory on a device of which so much is left
        by others.
        """
        return change_after_failure(*_nearest(self.measurements, bucket, batch_size), capacity_bytes)

    @property
    def seconds_per_step(self) -> float | None:
        """Median over the batches of an epoch."""
        seconds = [fit.seconds for fit in self.buckets for _ in range(fit.num_batches) if fit.seconds is not None]
        return median(seconds) if seconds else None


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

    The bundle's processes do this together, and all measure the same: attention is kept where each has the memory.
    """
    limit, dit, processes = capacity(bundle.device), bundle.dit, bundle.processes
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
    if config.model.keep_attention is None and processes.all_agree(decide_keep_attention(measurements[0], limit)):
        dit.keep_attention = True
        kept: list[Measurement] = []
        for of in largest:
            kept.append(measure(*of))
            done += 1
            yield done, done + len(largest) - len(kept)
            if not processes.all_agree(does_fit(extrapolate(kept[-1]).peak_bytes, limit)):
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
        ConfigError: no process would hold the whole transformer.
        DatasetError: no pair is ready.
        JobAlreadyRunning: an adapter is in training on this transformer.
    """
    if config.is_sharded:
        raise ConfigError(
            "What a step takes is measured on one GPU that holds the whole base.", "Measure it without splitting."
        )
    pairs = training_pairs(report, config)
    if not pairs:
        raise DatasetError("No clip is ready to train on.", "Check the dataset, and mend what it lists.")
    batches = BatchSampler(pairs, config.data, config.seed, config.num_processes).batches
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


def remedy_for_step(
    config: RunConfig, bundle: ModelBundle, fit: Fit | None, bucket: Bucket, batch_size: int
) -> str | Change:
    """What to do after a step of this size has run out of memory; by formula where there is no `fit`."""
    if fit is not None:
        return fit.remedy_after_failure(bucket, batch_size, capacity(bundle.device)) or NOTHING_HELPS
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
