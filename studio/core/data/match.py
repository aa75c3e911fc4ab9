"""How well a start frame fits the first frame of its clip, and which frame it fits best where it does not."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from PIL import Image

from studio.core.data.content import cells_of, small_picture
from studio.core.data.decode import iterate_frames, read_image, resize_frames
from studio.core.data.probe import Look
from studio.core.types import Clip, StartFrameMatch

SAME_PSNR = 100.0
"""Decibels that stand for no difference at all."""
_SPOTS = 64
_MAX_SPOT = 16
"""Levels of 0..255 by which no spot (of 64x64) differs where the start frame fits, so that the other frames need not
be decoded. JPEG of quality 30 comes to 9 on frames of 272x640 and more, one frame's motion to 100. On small frames,
where a spot is a few pixels, it comes to more: there all frames are cheap."""
_EDGE = 8
"""Pixels of the windows of the structural similarity."""


def match_start_frame(
    clip: Clip,
    start_frame: Path,
    *,
    picture: np.ndarray | None = None,
    look: Look | None = None,
    on_frame: Callable[[], None] | None = None,
) -> StartFrameMatch:
    """The start frame, fitted to the clip's size as training does, beside the frames as the trainer reads them.

    Decodes one frame where the start frame fits it, and all of them where another may fit better. Who has read the
    start frame (`picture`, uint8 [H,W,3]) or looked at the clip already hands that in: it spares decoding. `on_frame`
    is told of every frame.

    Raises:
        MediaError: one of the files cannot be read any more.
    """
    picture = resize_frames(read_image(start_frame) if picture is None else picture, clip.height, clip.width)
    first = next(iterate_frames(clip, range(1))) if look is None else look.first
    spots = _spots(picture)
    errors = [_squared_error(picture, first)]
    fits = np.abs(spots - _spots(first)).max() <= _MAX_SPOT
    if not fits and (look is None or not _is_first_nearest(picture, look.cells)):
        errors = []
        for frame in iterate_frames(clip, range(clip.num_frames)):
            errors.append(_squared_error(picture, frame))
            if on_frame:
                on_frame()
    best = int(np.argmin(errors))
    return StartFrameMatch(
        psnr=_decibels(errors[0]),
        ssim=_similarity(picture, first),
        best_frame=best,
        best_psnr=_decibels(errors[best]),
        contrast=float(np.ptp(spots, axis=(0, 1)).max()),
    )


def _is_first_nearest(picture: np.ndarray, cells: np.ndarray) -> bool:
    """True when every frame but the first shows something further from the picture, as far as 8x8 cells can tell.

    Coding noise moves a cell by less than a level, and a start frame that is a later frame is nearest to that.
    """
    own = cells_of(small_picture(VideoFrame.from_ndarray(picture, format="rgb24"), VideoReformatter()))
    distances = np.square(cells - own.astype(np.float32)).mean(axis=(1, 2, 3))
    return bool((distances[1:] > distances[0]).all())


def _spots(picture: np.ndarray) -> np.ndarray:
    """The picture averaged over 64x64 spots: float32 [64,64,3]."""
    return np.asarray(Image.fromarray(picture).resize((_SPOTS, _SPOTS), Image.Resampling.BOX), np.float32)


def _grey(picture: np.ndarray) -> np.ndarray:
    """Lightness, ITU-R BT.601: [H,W] of [H,W,3]."""
    return picture @ np.array([0.299, 0.587, 0.114], np.float32)


def _squared_error(a: np.ndarray, b: np.ndarray) -> float:
    difference = a.astype(np.int16) - b
    return float(np.square(difference, dtype=np.int32).mean())


def _decibels(squared_error: float) -> float:
    """Peak signal-to-noise ratio."""
    return min(SAME_PSNR, 10 * math.log10(255**2 / squared_error)) if squared_error else SAME_PSNR


def _similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity of the lightness, mean over windows of 8x8 pixels side by side.

    Source: Wang et al., Image quality assessment: from error visibility to structural similarity (2004), eq. 13.
    """
    x, y = _windows(a), _windows(b)
    mean_x, mean_y = x.mean(axis=1), y.mean(axis=1)
    covariance = np.einsum("wp,wp->w", x, y) / x.shape[1] - mean_x * mean_y
    variances = (np.einsum("wp,wp->w", x, x) + np.einsum("wp,wp->w", y, y)) / x.shape[1] - mean_x**2 - mean_y**2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((likeness / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))).mean())


def _windows(picture: np.ndarray) -> np.ndarray:
    """Float32 [windows, pixels]; what is left over at the right and below is not looked at."""
    grey = _grey(picture)
    height, width = (side - side % _EDGE or side for side in grey.shape)
    tall, wide = min(_EDGE, height), min(_EDGE, width)
    tiles = grey[:height, :width].reshape(height // tall, tall, width // wide, wide)
    return tiles.transpose(0, 2, 1, 3).reshape(-1, tall * wide)
