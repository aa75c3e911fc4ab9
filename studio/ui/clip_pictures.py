"""Pictures and the player's video of one clip, for its detail."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from studio.core.data.bucket import MODEL_FPS
from studio.core.data.decode import frames_as_trained, iterate_frames, start_frame_as_trained
from studio.core.data.findings import fits_another_frame
from studio.core.errors import MediaError
from studio.core.sample.video import write_video
from studio.core.types import Pair
from studio.view.sheets import first_frames, picture_uri

HEIGHT = 240
"""Pixels of the pictures beside the player."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipPictures:
    """Data addresses; None for what cannot be read, or is not there."""

    start_frame: str | None
    """As it is trained."""
    first: str | None
    """First frame of the clip, as it is in its file."""
    best: str | None
    """The frame that the start frame fits better than the first one."""


def pictures_of(pair: Pair) -> ClipPictures:
    """What is shown of a clip beside its player."""
    first = first_frames(pair)
    return ClipPictures(
        start_frame=_start_frame(pair),
        first=None if first is None else picture_uri(first[0], HEIGHT),
        best=_best(pair),
    )


def _start_frame(pair: Pair) -> str | None:
    if pair.start_frame is None or pair.clip is None or pair.bucket is None:
        return None
    try:
        return picture_uri(start_frame_as_trained(pair), HEIGHT)
    except (MediaError, OSError):
        return None


def _best(pair: Pair) -> str | None:
    if pair.clip is None or pair.match is None or not fits_another_frame(pair.match):
        return None
    try:
        return picture_uri(next(iterate_frames(pair.clip, [pair.match.best_frame])), HEIGHT)
    except (MediaError, OSError):
        return None


def preview(folder: Path, pair: Pair) -> str | None:
    """The clip as it will be trained, as an mp4 in `folder` for the player; None where it cannot be."""
    if pair.clip is None or pair.bucket is None:
        return None
    try:
        changed = pair.clip.path.stat().st_mtime_ns
        target = folder / f"clip-{abs(hash((pair.clip, pair.bucket, pair.fps, changed)))}.mp4"
        if not target.exists():
            # Under a name of its own first: two visitors may choose the same clip at once.
            own = target.with_stem(f"{target.stem}-{uuid4().hex}")
            write_video(own, frames_as_trained(pair), MODEL_FPS, {})
            own.replace(target)
    except (MediaError, OSError):
        return None
    return str(target)
