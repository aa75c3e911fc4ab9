"""Videos out: uint8 frames to mp4 through imageio, with the settings inside."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import imageio.v3 as iio
import numpy as np

from studio.core.data.decode import iterate_frames
from studio.core.data.probe import probe_clip
from studio.core.errors import MediaError

KEY_FRAMES = 12
"""A player that jumps to a frame decodes at most so many."""
CLIP_SECONDS = 6.0
"""Of a clip that is gone on from; the published model is given the last one."""


def write_video(path: Path, frames: np.ndarray, fps: float, settings: Mapping[str, Any]) -> None:
    """Writes uint8 [T, H, W, 3] as H.264 with `settings` as JSON in the comment tag.

    Written under another name first, then moved into place: a cut-off file never carries the final name.
    Raises MediaError.
    """
    make_folder(path.parent)
    unfinished = unfinished_video(path)
    comment = f"comment={json.dumps(dict(settings), sort_keys=True)}"
    try:
        iio.imwrite(
            unfinished, frames, fps=fps, codec="libx264", pixelformat="yuv420p", macro_block_size=2, quality=None,
            output_params=["-crf", "14", "-g", str(KEY_FRAMES), "-movflags", "+faststart", "-metadata", comment],
        )  # fmt: skip
        unfinished.replace(path)
    except (OSError, RuntimeError, ImportError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise MediaError(
            f"The video {path.name} could not be written: {first}.",
            "Check that the disk is not full, and that imageio-ffmpeg is installed.",
        ) from error
    finally:
        # After a Ctrl-C too.
        unfinished.unlink(missing_ok=True)


def unfinished_video(path: Path) -> Path:
    """Where a video is written before it gets its name."""
    return path.with_name(f".{path.stem}.part.mp4")


def make_folder(folder: Path) -> None:
    """Makes the folder that a video goes to. Raises MediaError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MediaError(f"The folder {folder} cannot be made: {error.strerror}.", "Choose another place.") from error


def read_settings(path: Path) -> dict[str, Any]:
    """The settings that `write_video` put into the file; empty for other videos."""
    with av.open(str(path), format="mov") as container:
        comment = container.metadata.get("comment", "{}")
    try:
        settings = json.loads(comment)
    except json.JSONDecodeError:
        return {}
    return settings if isinstance(settings, dict) else {}


def read_clip(path: Path, seconds: float = CLIP_SECONDS) -> tuple[np.ndarray, float]:
    """(frames uint8 [T, H, W, 3], frames per second) of the end of any clip, to go on from. Raises MediaError."""
    clip = probe_clip(path)
    first = max(0, clip.num_frames - round(seconds * clip.fps))
    return np.stack(list(iterate_frames(clip, range(first, clip.num_frames)))), clip.fps


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoShape:
    """How long and how large a video is."""

    num_frames: int
    fps: float
    height: int
    width: int
    """Pixels."""


def video_shape(path: Path) -> VideoShape:
    """What the head of an mp4 that `write_video` wrote says. Raises MediaError."""
    try:
        with av.open(str(path), format="mov") as container:
            stream = container.streams.video[0]
            shape = VideoShape(
                num_frames=stream.frames, fps=float(stream.average_rate or 0), height=stream.height, width=stream.width
            )
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        raise _unreadable(path, error) from error
    if not (shape.num_frames and shape.fps):
        raise _empty(path)
    return shape


def iterate_video(path: Path) -> Iterator[np.ndarray]:
    """The frames of an mp4 as a player shows them, uint8 [H, W, 3] each. Raises MediaError."""
    try:
        with av.open(str(path), format="mov") as container:
            for frame in container.decode(container.streams.video[0]):
                yield frame.to_ndarray(format="rgb24")
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        raise _unreadable(path, error) from error


def read_video(path: Path) -> tuple[np.ndarray, float]:
    """(frames uint8 [T, H, W, 3] as a player shows them, frames per second) of an mp4. Raises MediaError."""
    fps, frames = video_shape(path).fps, list(iterate_video(path))
    if not frames:
        raise _empty(path)
    return np.stack(frames), fps


def _unreadable(path: Path, error: Exception) -> MediaError:
    return MediaError(f"The video {path.name} cannot be read: {error}.", "Render it again.")


def _empty(path: Path) -> MediaError:
    return MediaError(f"The video {path.name} has no frames.", "Render it again.")
