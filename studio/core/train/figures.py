"""What a rendered sample shows, in numbers: the start frame kept, motion, difference from another video.

Frames are uint8 [T, H, W, 3] of one size.
"""

from __future__ import annotations

import math

import numpy as np

FROZEN_BELOW = 1.0
"""Grey levels of 0..255: a video whose frames differ less from its first one than this stands still to the eye."""

_SAME = 100.0
"""Decibels for two pictures that are equal."""


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two pictures, decibels: 10 log10(255^2 / mean squared difference)."""
    error = np.square(a.astype(np.float32) - b.astype(np.float32)).mean()
    return min(_SAME, 10 * math.log10(255**2 / error)) if error > 0 else _SAME


def motion(frames: np.ndarray) -> float:
    """Largest mean difference between the first frame and another one, grey levels of 0..255."""
    return max((_difference(frames[0], frame) for frame in frames[1:]), default=0.0)


def drift(frames: np.ndarray, base: np.ndarray) -> float:
    """Mean difference over the frames that both have, grey levels of 0..255."""
    count = min(len(frames), len(base))
    return sum(_difference(a, b) for a, b in zip(frames[:count], base[:count], strict=True)) / count


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(np.int16) - b.astype(np.int16)).mean())
