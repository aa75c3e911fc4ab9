"""How far a run is, in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from studio.core.events import FitPredicted
from studio.core.runlog import RunSnapshot, RunState
from studio.view.words import Words

if TYPE_CHECKING:
    # Loads torch, and a command answers at once.
    from studio.core.train.fit import Fit


def attention_line(snapshot: RunSnapshot, w: Words) -> str:
    """Which attention the run got, and why; empty before it knows."""
    if snapshot.started is None:
        return ""
    reason = snapshot.started.attention_reason.rstrip(".")
    line = w("train.attention", attention=w(f"chip.{snapshot.started.attention}"), reason=reason)
    return line[:1].upper() + line[1:]


def progress_line(snapshot: RunSnapshot, w: Words) -> str:
    """`step 34 of 200 · 0.9 s a step · 2 min 30 s left`, as much of it as is known."""
    if snapshot.state is RunState.CACHING and snapshot.cache_total:
        return w("progress.cache", done=snapshot.cache_done, total=snapshot.cache_total)
    if snapshot.state is RunState.MEASURING:
        return w("progress.fit", done=snapshot.fit_done, total=snapshot.fit_total)
    parts = []
    if snapshot.num_steps:
        parts.append(w("progress.step", step=snapshot.step, total=snapshot.num_steps))
    if snapshot.state.is_live and snapshot.seconds_per_step is not None:
        parts.append(w("progress.speed", seconds=pace(snapshot.seconds_per_step, w)))
    if snapshot.seconds_left is not None:
        parts.append(w("progress.left", time=w.duration(snapshot.seconds_left)))
    return " · ".join(parts)


def share(snapshot: RunSnapshot) -> float:
    """How much is done, 0 to 1: of the clips while they are encoded, of the sizes while they are measured, then of the
    steps.
    """
    if snapshot.state is RunState.CACHING:
        return snapshot.cache_done / max(1, snapshot.cache_total)
    if snapshot.state is RunState.MEASURING:
        return snapshot.fit_done / max(1, snapshot.fit_total)
    return snapshot.step / max(1, snapshot.num_steps)


def fit_line(snapshot: RunSnapshot, w: Words) -> str:
    """What was predicted of the run, and beside it, once it has ended, what it took; empty where neither is known."""
    if snapshot.fit is None:
        return ""
    return f"{prediction(snapshot.fit, w)} {reality(snapshot.peak_bytes, snapshot.seconds_per_step, w)}".rstrip()


def prediction(fit: FitPredicted, w: Words) -> str:
    """`Predicted 41.2 of 80.0 GiB for 93f 480x832, 12.1 s a step, attention is kept for the backward pass.`"""
    size = _size(fit.worst, fit.batch_size, w)
    parts = [w("fit.predicted", peak=gib(fit.peak_bytes, w), capacity=gib(fit.capacity_bytes, w), size=size)]
    if fit.seconds_per_step is not None:
        parts.append(w("fit.pace", seconds=pace(fit.seconds_per_step, w)))
    parts.append(w("fit.keeps") if fit.keeps_attention else w("fit.recomputes"))
    return f"{', '.join(parts)}."


def reality(peak_bytes: int | None, seconds_per_step: float | None, w: Words) -> str:
    """`In fact, a step took 12.3 s and up to 40.8 GiB.`; empty where memory is not known."""
    if peak_bytes is None:
        return ""
    if seconds_per_step is None:
        return w("fit.actual", peak=gib(peak_bytes, w))
    return w("fit.actual_pace", peak=gib(peak_bytes, w), seconds=pace(seconds_per_step, w))


def _size(bucket: str, batch_size: int, w: Words) -> str:
    """`93f 480x832`, and the batch size where it is not 1."""
    return bucket if batch_size == 1 else w("fit.batch_of", bucket=bucket, number=batch_size)


def fit_verdict(fit: Fit, w: Words) -> str:
    """Whether a measured run fits, with the numbers of its worst bucket."""
    worst = fit.worst
    if worst.peak_bytes is None or fit.capacity_bytes is None:
        return w("fit.gpu_only")
    size = _size(str(worst.bucket), worst.batch_size, w)
    numbers = {"peak": gib(worst.peak_bytes, w), "capacity": gib(fit.capacity_bytes, w), "size": size}
    return w("fit.fits", **numbers) if fit.fits else w("fit.too_large", **numbers)


def fit_rows(fit: Fit, w: Words) -> list[tuple[str, ...]]:
    """The table of a fit, heading first: size, clips of an epoch, batch size, seconds a step, GiB."""
    rows = [(w("fit.size"), w("fit.clips"), w("fit.batch"), w("fit.seconds"), w("fit.memory"))]
    for bucket in fit.buckets:
        seconds = "-" if bucket.seconds is None else pace(bucket.seconds, w)
        memory = "-" if bucket.peak_bytes is None else gib(bucket.peak_bytes, w)
        clips = bucket.num_batches * bucket.batch_size
        rows.append((str(bucket.bucket), str(clips), str(bucket.batch_size), seconds, memory))
    return rows


def gib(size: float, w: Words) -> str:
    """Bytes as GiB, without the unit."""
    return w.number(size / 2**30, 1)


def pace(seconds: float, w: Words) -> str:
    """Seconds of a step, without the unit."""
    return w.number(seconds, 2 if seconds < 1 else 1)
