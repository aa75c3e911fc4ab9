"""Series of numbers, made ready to be drawn: thinned, smoothed, cut to what is seen."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

MAX_POINTS = 1000
"""Drawn in a curve; longer ones keep the lowest and the highest of each stretch."""


def thin(values: np.ndarray, limit: int = MAX_POINTS) -> np.ndarray:
    """Indices int64 of at most `limit` values, in order: both ends, and the lowest and the highest of each stretch."""
    if len(values) <= limit:
        return np.arange(len(values))
    inner = np.asarray(values[1:-1], dtype=np.float64)
    length = math.ceil(len(inner) / ((limit - 2) // 2))
    num_missing = -len(inner) % length
    starts = np.arange(0, len(inner), length) + 1
    stretches = [np.append(inner, np.full(num_missing, fill)).reshape(-1, length) for fill in (np.inf, -np.inf)]
    kept = (starts + stretches[0].argmin(axis=1), starts + stretches[1].argmax(axis=1), [0, len(values) - 1])
    return np.unique(np.concatenate(kept))


def smooth(values: Sequence[float] | np.ndarray, span: float | None = None) -> np.ndarray:
    """A smoothed curve that does not lag behind a trend, at its ends neither: fp64 [N].

    At each point a line is fitted under weights that fall off exponentially on both sides; the sums come from one
    exponential mean that runs forwards and one that runs backwards. `span` is the reach in points; without one it
    grows with the curve.
    """
    curve = np.asarray(values, dtype=np.float64)
    keep = math.exp(-1 / (span if span is not None else max(2.0, len(curve) / 16)))
    place = np.arange(len(curve), dtype=np.float64)
    terms = np.stack((np.ones_like(curve), place, place * place, curve, place * curve), axis=1)
    weight, x, xx, y, xy = (_decaying_sum(terms, keep) + _decaying_sum(terms[::-1], keep)[::-1] - terms).T
    spread = weight * xx - x * x
    slope = np.divide(weight * xy - x * y, spread, out=np.zeros_like(curve), where=spread > 1e-9 * weight * weight)
    return (y - slope * x) / weight + slope * place


def _decaying_sum(terms: np.ndarray, keep: float) -> np.ndarray:
    """Running sums [N, K] in which what lies one point back counts `keep` times as much."""
    sums, total = np.empty_like(terms), np.zeros(terms.shape[1])
    for index, row in enumerate(terms):
        total = keep * total + row
        sums[index] = total
    return sums


def within(x: np.ndarray, y: np.ndarray, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """The part that is seen, and a point more at both ends, so that lines run out of the picture."""
    first, last = np.searchsorted(x, low), np.searchsorted(x, high, side="right")
    part = slice(max(0, int(first) - 1), int(last) + 1)
    return x[part], y[part]


def smoothed(x: np.ndarray, y: np.ndarray, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """The smoothed curve of the part that is seen: the less is seen, the more of it shows.

    What lies beside it counts too, so that its ends do not waver; of a long curve the means of stretches are smoothed.
    """
    first, last = (int(place) for place in np.searchsorted(x, (low, high)))
    num_seen = max(1, last - first)
    part = slice(max(0, first - num_seen), last + num_seen)
    x, y = x[part], y[part]
    span = max(2.0, num_seen / 16)
    if len(y) <= MAX_POINTS:
        return within(x, smooth(y, span), low, high)
    starts = np.linspace(0, len(y), MAX_POINTS, endpoint=False).astype(int)
    ends = np.append(starts[1:], len(y))
    means = np.add.reduceat(y, starts) / (ends - starts)
    return within(x[(starts + ends - 1) // 2], smooth(means, span * MAX_POINTS / len(y)), low, high)


def with_breaks(x: np.ndarray, y: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
    """The line with a NaN wherever nothing was done for a while, seen on an axis of that width."""
    if len(x) < 3:
        return x, y
    apart = np.diff(x)
    places = np.flatnonzero((apart > 10 * np.median(apart)) & (apart > width / 50)) + 1
    return np.insert(x, places, np.nan), np.insert(y, places, np.nan)


def seen(x: np.ndarray, y: np.ndarray, low: float, high: float) -> list[float]:
    """The values between both ends."""
    return y[(x >= low) & (x <= high)].tolist()
