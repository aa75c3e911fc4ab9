"""What a video shows, in numbers: the start frame kept, motion, flicker, colours that drift, difference from another.

Frames are uint8 [T, H, W, 3] of one size; levels are 0 to 255.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

FROZEN_BELOW = 1.0
"""Grey levels of 0..255: a video whose frames differ less from its first one than this stands still to the eye."""

SAME = 100.0
"""Decibels for two pictures that are equal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoFigures:
    """The figures of one video."""

    start_psnr: float | None
    """Decibels of the first frame against the start frame; None without one."""
    motion: float
    flicker: float
    color_drift: float

    @property
    def is_frozen(self) -> bool:
        """Hardly anything moves."""
        return self.motion < FROZEN_BELOW


def video_figures(frames: np.ndarray, start_frame: np.ndarray | None = None) -> VideoFigures:
    """All figures; `start_frame` is uint8 [H, W, 3], of the size of the frames."""
    return VideoFigures(
        start_psnr=None if start_frame is None else psnr(frames[0], start_frame),
        motion=motion(frames),
        flicker=flicker(frames),
        color_drift=color_drift(frames),
    )


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two pictures, decibels: 10 log10(255^2 / mean squared difference)."""
    return decibels(float(np.square(a.astype(np.float32) - b.astype(np.float32)).mean()))


def decibels(error: float) -> float:
    """Peak signal-to-noise ratio of a mean squared difference of levels."""
    return min(SAME, 10 * math.log10(255**2 / error)) if error > 0 else SAME


def motion(frames: np.ndarray) -> float:
    """Largest mean difference between the first frame and another one, levels."""
    return max((_difference(frames[0], frame) for frame in frames[1:]), default=0.0)


def drift(frames: np.ndarray, base: np.ndarray) -> float:
    """Mean difference over the frames that both have, levels."""
    count = min(len(frames), len(base))
    return sum(_difference(a, b) for a, b in zip(frames[:count], base[:count], strict=True)) / count


def flicker(frames: np.ndarray) -> float:
    """How much the brightness of the whole frame jumps, levels: mean difference between a frame's mean brightness and
    that half-way between its neighbours. What becomes brighter steadily does not flicker.
    """
    brightness = frames.mean(axis=(1, 2, 3))
    return float(np.abs(np.diff(brightness, n=2)).mean() / 2) if len(frames) > 2 else 0.0


def color_drift(frames: np.ndarray) -> float:
    """How far the mean colour of the last quarter is from that of the first, levels: mean over red, green, blue."""
    quarter = max(1, len(frames) // 4)
    first, last = frames[:quarter].mean(axis=(0, 1, 2)), frames[-quarter:].mean(axis=(0, 1, 2))
    return float(np.abs(last - first).mean())


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(np.int16) - b.astype(np.int16)).mean())
