"""The cheapest change that makes a training step fit: first what leaves the result as it is, then what does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from studio.core.data.bucket import smaller_buckets
from studio.core.geometry import GridSpec, round_to_grid
from studio.core.model.memory import gib
from studio.core.remedy import CONFIG_NAME, DATASETS_NAME, Change, Setting
from studio.core.train.estimate import Measurement, Setup, Sizes, does_fit, peak_bytes
from studio.core.types import Bucket


def cheapest_change(measurement: Measurement, setup: Setup, capacity_bytes: int | None) -> Change | None:
    """The keys, their values and their files; None when nothing would help."""
    if capacity_bytes is None:
        return first_change(setup, measurement.sizes.grid)
    for changed in _candidates(setup, measurement.sizes):
        peak = peak_bytes(measurement, changed)
        if peak is not None and does_fit(peak, capacity_bytes):
            return Change(_difference(setup, changed), f"predicted {gib(peak)} of {gib(capacity_bytes)} GiB")
    return None


def first_change(setup: Setup, grid: GridSpec) -> Change | None:
    """The cheapest change that takes less memory, where nobody knows how much there is."""
    smaller = next(_smaller_somehow(setup, grid), None)
    return None if smaller is None else Change(_difference(setup, smaller))


def change_after_failure(measurement: Measurement, setup: Setup, capacity_bytes: int | None) -> Change | None:
    """The cheapest change once `setup` has run out of memory, whatever was predicted for it."""
    peak, memory = peak_bytes(measurement, setup), measurement.memory
    if peak is not None and memory is not None and capacity_bytes is not None:
        missing = max(0, capacity_bytes - peak)
        measurement = replace(measurement, memory=replace(memory, working=memory.working + missing))
    return cheapest_change(measurement, setup, capacity_bytes)


def _candidates(now: Setup, sizes: Sizes) -> Iterator[Setup]:
    """Every change, the cheapest first: exact ones, then a smaller batch, weights of one byte, fewer frames, a smaller
    size.
    """
    frugal = _frugal(now)
    if frugal != now:
        yield frugal
    if now.is_checkpointed:
        yield from _swapped(now, sizes)
    yield from _swapped(frugal, sizes)
    for batch_size in range(now.batch_size - 1, 0, -1):
        yield from _swapped(replace(frugal, batch_size=batch_size), sizes)
    if now.base_precision == "no_change" and not now.is_offloaded:
        yield from _swapped(replace(frugal, base_precision=sizes.smaller_precision), sizes)
    for bucket in smaller_buckets(now.bucket, sizes.grid):
        yield from _swapped(replace(frugal, batch_size=1, bucket=bucket), sizes)


def _frugal(now: Setup) -> Setup:
    """All that gradient checkpointing can do."""
    return replace(now, is_checkpointed=True, keeps_attention=False)


def _swapped(setup: Setup, sizes: Sizes) -> Iterator[Setup]:
    """The setup as it is, then with one more block swapped each time."""
    most = setup.num_swapped if setup.is_offloaded else sizes.depth - 1
    for number in range(setup.num_swapped, most + 1):
        yield replace(setup, num_swapped=number)


def _smaller_somehow(now: Setup, grid: GridSpec) -> Iterator[Setup]:
    """What takes less memory on any device, the cheapest first."""
    if _frugal(now) != now:
        yield _frugal(now)
    if now.batch_size > 1:
        yield replace(now, batch_size=now.batch_size // 2)
    fewer = grid.floor_frame_count(now.bucket.num_frames // 2)
    if fewer > 1:
        yield replace(now, bucket=replace(now.bucket, num_frames=fewer))
    half = [round_to_grid(side / 2, grid.pixel_multiple) for side in (now.bucket.height, now.bucket.width)]
    if half != [now.bucket.height, now.bucket.width]:
        yield replace(now, bucket=replace(now.bucket, height=half[0], width=half[1]))


def _difference(now: Setup, changed: Setup) -> tuple[Setting, ...]:
    """The settings in which two setups differ, with the values of the second."""
    settings = [
        (CONFIG_NAME, "gradient_checkpointing", now.is_checkpointed, changed.is_checkpointed),
        (CONFIG_NAME, "gradient_checkpointing_keep_attention", now.keeps_attention, changed.keeps_attention),
        (CONFIG_NAME, "musubi_blocks_to_swap", now.num_swapped, changed.num_swapped),
        (CONFIG_NAME, "train_batch_size", now.batch_size, changed.batch_size),
        (CONFIG_NAME, "base_model_precision", now.base_precision, changed.base_precision),
        (DATASETS_NAME, "video.num_frames", now.bucket.num_frames, changed.bucket.num_frames),
        (DATASETS_NAME, "resolution", _size(now.bucket), _size(changed.bucket)),
    ]
    return tuple((file, key, new) for file, key, old, new in settings if old != new)


def _size(bucket: Bucket) -> str:
    return f"{bucket.height}x{bucket.width}"
