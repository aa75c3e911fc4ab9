"""From a measurement of a few blocks to the peak memory and the seconds of a whole step: arithmetic alone.

Letters: B batch, S tokens, E model width, N heads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from studio.core.config import BasePrecision
from studio.core.geometry import GridSpec
from studio.core.model.memory import STEP_BYTES
from studio.core.model.swap import NUM_SLOTS
from studio.core.types import Bucket

MARGIN = 0.04
"""Share of the capacity that a prediction leaves free: the CUDA context (about half a GiB), what the allocator cannot
use between tensors, and the error of the prediction itself."""

FORWARD_SHARE = 0.26
"""Part that the forward has in a block's seconds; the rest is recomputation and backward. Source: 4.4 s of 17.1 s,
the published code on an H200."""
RECOMPUTED = 4 / 3
"""How much longer a step takes when its forward is computed twice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """What a user can change about the memory of a step."""

    bucket: Bucket
    batch_size: int = 1
    is_checkpointed: bool = True
    keeps_attention: bool = False
    """Checkpointed blocks keep what attention gave."""
    num_swapped: int = 0
    """Blocks that wait elsewhere."""
    base_precision: BasePrecision = "no_change"
    is_offloaded: bool = False
    """Every layer waits in main memory: neither swap nor precision matters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """What a transformer and its adapter weigh."""

    depth: int
    width: int
    num_heads: int
    itemsize: int
    """Bytes of an activation."""
    block_bytes: int
    small_block_bytes: int
    """The same with the large linears in one byte a weight."""
    state_bytes: int
    """Of AdamW for the adapter: allocated by the first step."""
    smaller_precision: BasePrecision
    """The base precision of one byte a weight that the device is good at."""
    grid: GridSpec

    def tokens(self, setup: Setup) -> int:
        """Tokens of a batch."""
        bucket = setup.bucket
        return setup.batch_size * self.grid.token_grid(bucket.num_frames, bucket.height, bucket.width).size


@dataclass(frozen=True, kw_only=True, slots=True)
class StepBytes:
    """Memory of a step on the device."""

    allocated: int
    """Before it: weights, adapter, and whatever else is there."""
    working: int
    """Once."""
    kept: int
    """For each block, until its backward pass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """What a few blocks told about a step."""

    setup: Setup
    sizes: Sizes
    seconds_beyond: float | None
    """Of a step without any block; None when not even the fewest blocks ran."""
    seconds_per_block: float | None
    memory: StepBytes | None
    """None on a CPU, where there is no allocator to ask."""
    copy_seconds: float = 0.0
    """For bringing a block to the device."""
    has_waited: bool = False
    """The blocks measured were swapped ones: their seconds hold the copies already."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BucketFit:
    """What a step of one bucket and batch size will take."""

    bucket: Bucket
    batch_size: int
    num_batches: int = 1
    """In an epoch."""
    seconds: float | None
    peak_bytes: int | None


def does_fit(peak_bytes: float | None, capacity_bytes: int | None) -> bool:
    """True when a predicted peak leaves the margin free, and where memory is not known."""
    return peak_bytes is None or capacity_bytes is None or peak_bytes <= capacity_bytes * (1 - MARGIN)


def extrapolate(measurement: Measurement, setup: Setup | None = None) -> BucketFit:
    """What a step over all blocks takes, as measured or under another `setup`."""
    setup = setup or measurement.setup
    return BucketFit(
        bucket=setup.bucket,
        batch_size=setup.batch_size,
        seconds=step_seconds(measurement, setup),
        peak_bytes=peak_bytes(measurement, setup),
    )


def peak_bytes(measurement: Measurement, setup: Setup) -> int | None:
    """Peak bytes under `setup`: what was measured, moved by formula where `setup` differs. None where memory is not
    known.
    """
    memory, sizes, measured = measurement.memory, measurement.sizes, measurement.setup
    if memory is None:
        return None
    scale = sizes.tokens(setup) / sizes.tokens(measured)
    kept = (memory.kept - _kept_attention(sizes, measured)) * scale + _kept_attention(sizes, setup)
    working, kept_by_all = memory.working * scale, sizes.depth * kept
    if not measured.is_checkpointed:
        # Swapped blocks are checkpointed always. What one kept before is there during its own backward pass only.
        recomputed = sizes.depth if setup.is_checkpointed else setup.num_swapped
        by_one = kept_by_formula(sizes, replace(setup, is_checkpointed=True))
        kept_by_all = (sizes.depth - recomputed) * kept + recomputed * by_one
        working += kept if recomputed else 0
    weights = _weights(sizes, setup) - _weights(sizes, measured)
    return round(memory.allocated + sizes.state_bytes + weights + working + kept_by_all)


def _weights(sizes: Sizes, setup: Setup) -> int:
    """Bytes of the blocks that are on the device, slots included."""
    if setup.is_offloaded:
        return 0
    small = setup.base_precision != "no_change"
    block = sizes.small_block_bytes if small else sizes.block_bytes
    slots = NUM_SLOTS if setup.num_swapped else 0
    return block * (sizes.depth - setup.num_swapped + slots)


def step_seconds(measurement: Measurement, setup: Setup) -> float | None:
    """Seconds under `setup`; in proportion to the tokens where those differ.

    A swapped block is copied twice, beside the forward and beside the backward pass of the block before it; what
    takes longer than that is waited for.
    """
    block, beyond, measured = measurement.seconds_per_block, measurement.seconds_beyond, measurement.setup
    if block is None or beyond is None:
        return None
    depth = measurement.sizes.depth
    scale = measurement.sizes.tokens(setup) / measurement.sizes.tokens(measured)
    block *= scale
    recomputed = 0 if measured.is_checkpointed else depth if setup.is_checkpointed else setup.num_swapped
    copy = measurement.copy_seconds
    waits = max(0.0, copy - FORWARD_SHARE * block) + max(0.0, copy - (1 - FORWARD_SHARE) * block)
    num_waits = 0 if measurement.has_waited else setup.num_swapped
    return beyond * scale + (depth + recomputed * (RECOMPUTED - 1)) * block + num_waits * waits


def kept_by_formula(sizes: Sizes, setup: Setup) -> int:
    """Bytes that a block keeps. A checkpointed one: its input, and its attention's output and log-sum-exp where asked
    for. Any other: about half of what it works with.
    """
    if not setup.is_checkpointed:
        return working_by_formula(sizes, setup) // 2
    return sizes.tokens(setup) * sizes.width * sizes.itemsize + _kept_attention(sizes, setup)


def _kept_attention(sizes: Sizes, setup: Setup) -> int:
    """The part of it that attention has."""
    if not setup.keeps_attention:
        return 0
    return sizes.tokens(setup) * (sizes.width * sizes.itemsize + 4 * sizes.num_heads)


def working_by_formula(sizes: Sizes, setup: Setup) -> int:
    """Bytes that one block works with, gradients included."""
    return STEP_BYTES * sizes.tokens(setup) * sizes.width * sizes.itemsize
