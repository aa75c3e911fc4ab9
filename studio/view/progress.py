"""How far a run is, in one line."""

from __future__ import annotations

from studio.core.runlog import RunSnapshot, RunState
from studio.view.words import Words


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
    parts = []
    if snapshot.num_steps:
        parts.append(w("progress.step", step=snapshot.step, total=snapshot.num_steps))
    if snapshot.state.is_live and snapshot.seconds_per_step is not None:
        digits = 2 if snapshot.seconds_per_step < 1 else 1
        parts.append(w("progress.speed", seconds=w.number(snapshot.seconds_per_step, digits)))
    if snapshot.seconds_left is not None:
        parts.append(w("progress.left", time=w.duration(snapshot.seconds_left)))
    return " · ".join(parts)
