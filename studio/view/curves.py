"""Curves of a run: where its steps lie on the x axis, what of them is seen, and how a noisy series is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from studio.core.runlog import RunSnapshot
from studio.view.frame import Axis
from studio.view.series import seen, smoothed, thin, with_breaks, within


@dataclass(frozen=True, kw_only=True, slots=True)
class ChartView:
    """What of a run is shown, and how."""

    axis: Axis = Axis.STEP
    log: bool = False
    """The loss on a log scale."""
    span: tuple[float, float] | None = None
    """Part of the x axis that is shown, steps or seconds since the first step; None: all."""


WHOLE = ChartView()


def shown_range(snapshot: RunSnapshot, view: ChartView) -> tuple[float, float]:
    """Both ends of the x axis, steps or seconds since the first step; the first is below the second."""
    if view.span is not None:
        low, high = sorted(view.span)
        return (low, high) if high > low else (low - 0.5, low + 0.5)
    if view.axis is Axis.CLOCK:
        return 0.0, max(1.0, float(_seconds(snapshot)[-1]) if snapshot.times else 0.0)
    return 0.0, float(max(snapshot.num_steps, snapshot.step, 1))


Place = Callable[[Sequence[int] | np.ndarray], np.ndarray]


def _seconds(snapshot: RunSnapshot) -> np.ndarray:
    """Since the first step, of each step; a clock that was put back stands still."""
    times = np.maximum.accumulate(np.array(snapshot.times))
    return times - times[0]


def places_of(snapshot: RunSnapshot, axis: Axis) -> Place:
    """Where steps lie on the x axis."""
    if axis is Axis.STEP or not snapshot.steps:
        return lambda steps: np.asarray(steps, dtype=np.float64)
    known, seconds = np.array([step.step for step in snapshot.steps]), _seconds(snapshot)
    return lambda steps: np.atleast_1d(np.interp(steps, known, seconds))


def can_show(value: float, log: bool) -> bool:
    """Whether the value has a place on the y axis."""
    return math.isfinite(value) and (value > 0 or not log)


def series_of(place: Place, points: Iterable[tuple[int, float]], *, log: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """x and y of (step, value) points, without those that cannot be shown."""
    steps, values = np.array(list(points), dtype=np.float64).reshape(-1, 2).T
    kept = np.isfinite(values) & (values > 0 if log else True)
    return place(steps[kept]), values[kept]


def draw_noisy(axes: Axes, x: np.ndarray, y: np.ndarray, low: float, high: float, color: str) -> list[float]:
    """Each point faint, the smoothed curve strong; returns the values that are seen."""
    if not len(x):
        return []
    near_x, near_y = thin_within(x, y, low, high)
    axes.plot(*with_breaks(near_x, near_y, high - low), color=color, alpha=0.3, linewidth=1)
    line_x, line_y = smoothed(x, y, low, high)
    axes.plot(*with_breaks(line_x, line_y, high - low), color=color, linewidth=2.2)
    if len(line_x) and low <= x[-1] <= high:
        axes.plot(line_x[-1], line_y[-1], "o", color=color, markersize=5, clip_on=False)
    return seen(near_x, near_y, low, high)


def thin_within(x: np.ndarray, y: np.ndarray, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """The part that is seen, of at most `MAX_POINTS` points."""
    x, y = within(x, y, low, high)
    kept = thin(y)
    return x[kept], y[kept]
