"""Which frames of a clip are trained on when it is read at another frame rate than its own."""

from __future__ import annotations

import numpy as np

from studio.core.data.container import DECODER_ERRORS, open_clip
from studio.core.errors import DamagedClipError
from studio.core.types import Clip

_TOLERANCE = 0.01
"""Relative; 14.985 (NTSC) counts as 15."""
_SLACK = 0.25
"""Of a frame's mean duration: a frame that begins this much late is on time. Containers round times to milliseconds,
and 29.97 frames a second are meant as 30."""


def is_steady(clip: Clip) -> bool:
    """True when the frames of a clip are evenly apart."""
    return clip.fastest_fps <= clip.slowest_fps


def is_same_rate(fps: float, other: float) -> bool:
    """True up to the difference between NTSC rates and round ones."""
    return abs(fps / other - 1) <= _TOLERANCE


def converted_frames(clip: Clip, fps: float) -> np.ndarray:
    """The frame shown at 0, 1/fps, 2/fps, ... seconds, to the end of the clip: indices, int64 [T], never falling.

    Frames of clips of one rate are evenly apart; for those of a variable rate the file's own timestamps decide.

    Raises:
        MediaError: the rate varies, and the timestamps cannot be read.
    """
    times = np.arange(clip.num_frames) / clip.fps if is_steady(clip) else frame_times(clip)
    slack = _SLACK / clip.fps
    duration = float(times[-1]) + 1 / clip.fps
    moments = np.arange(max(1, int(np.ceil((duration - slack) * fps)))) / fps
    return np.searchsorted(times, moments + slack, side="right") - 1


def frame_times(clip: Clip) -> np.ndarray:
    """When each frame is shown, seconds after the first one: fp64 [T], rising; read from the file, nothing is decoded.

    Raises:
        MediaError: the file cannot be read, or does not give a time to every frame.
    """
    with open_clip(clip.path) as (container, stream):
        try:
            packets = [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
        except DECODER_ERRORS as error:
            raise DamagedClipError(f"{clip.path.name} is damaged or cut off.", "Check the dataset again.") from error
        times = sorted(float(p.pts * p.time_base) for p in packets if p.pts is not None and p.time_base is not None)
    if len(times) != clip.num_frames:
        raise DamagedClipError(
            f"{clip.path.name} has {clip.num_frames} frames, but times for {len(times)}.",
            "Export it at a constant frame rate.",
        )
    return np.asarray(times) - times[0]
