"""Opens a clip with PyAV: signature first, demuxer pinned, so that FFmpeg never guesses what a file is.

A playlist renamed to .mp4 would otherwise make a decoder open other files of the machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from studio.core.errors import MediaError

MAX_PIXELS = 64_000_000
"""Per frame or image; beyond it a tiny file could ask for gigabytes."""

DECODER_ERRORS = (FFmpegError, OSError, ValueError, IndexError, RuntimeError, MemoryError)
"""What PyAV raises on broken files (seen: FFmpegError, IndexError, UnicodeDecodeError, MemoryError)."""

_EBML = b"\x1aE\xdf\xa3"


def pinned_format(path: Path) -> str:
    """FFmpeg's name of the demuxer that the file's own first bytes call for.

    Raises:
        MediaError: not readable, empty, or neither MP4/MOV nor Matroska/WebM by its signature.
    """
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError as error:
        raise MediaError(f"{path.name} cannot be read: {error.strerror}.", "Check its permissions.") from error
    if head[4:8] == b"ftyp":
        return "mov"
    if head[:4] == _EBML:
        return "matroska"
    if not head:
        raise MediaError(f"{path.name} is empty (0 bytes).", "Copy it again, or delete it.")
    raise MediaError(
        f"{path.name} is not a video: it has neither the signature of MP4 nor that of Matroska/WebM.",
        "Export the clip as MP4, or delete the file.",
    )


@contextmanager
def open_clip(path: Path, options: dict[str, str] | None = None) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its picture stream (cover art is not one); `options` go to FFmpeg's demuxer.

    Raises:
        MediaError: not a video, cut off before its index, or without pictures.
    """
    pinned = pinned_format(path)
    try:
        container = av.open(str(path), format=pinned, options=options or {})
    except DECODER_ERRORS as error:
        raise MediaError(
            f"{path.name} cannot be opened: its index is missing or damaged; it was probably cut off.",
            "Copy it again from where it came from.",
        ) from error
    with container:
        streams = picture_streams(container)
        if not streams:
            raise MediaError(f"{path.name} holds no video frames.", "Export it again, or delete it.")
        codec = streams[0].codec_context
        if codec is None:
            raise MediaError(f"{path.name} is coded in a way that cannot be read.", "Export it as H.264 MP4.")
        width, height = codec.width, codec.height
        if width * height > MAX_PIXELS:
            raise MediaError(
                f"{path.name} is {height}x{width}, more than {MAX_PIXELS // 10**6} million pixels a frame.",
                "Export it smaller.",
            )
        yield container, streams[0]


def picture_streams(container: InputContainer) -> list[VideoStream]:
    """Video streams, cover art left out."""
    return [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]


def upright(frame: VideoFrame) -> np.ndarray:
    """The frame as shown: uint8 [H,W,3], turned by the container's rotation (which PyAV leaves to us)."""
    return np.rot90(frame.to_ndarray(format="rgb24"), quarter_turns(frame))


def quarter_turns(frame: VideoFrame) -> int:
    """Anticlockwise quarter turns that make the frame upright, 0 to 3."""
    return round(frame.rotation / 90) % 4
