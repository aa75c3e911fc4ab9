"""Is a fragmented MP4 whole? FFmpeg takes one that ends between two fragments, or in the head of one, for a short clip.

Boxes and their fields: ISO/IEC 14496-12, sections 4.2 (boxes), 8.8.2 (mehd), 8.8.4 (moof) and 8.16.3 (sidx).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from studio.core.data.container import pinned_format
from studio.core.errors import MediaError

_MAX_INDEX = 1 << 20
"""Bytes of a moov or sidx that are read; a fragmented file has no tables in them, so that they are far smaller."""
_NOTES = (b"mfra", b"free", b"skip", b"uuid", b"udta", b"meta")
"""Boxes that hold no frames: what is missing of them is not missed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fragments:
    """What a fragmented file says about itself."""

    is_cut: bool
    """A box, or what an index promises, goes on beyond the end of the file."""
    stated_seconds: float
    """How long it is meant to be, its longest stream; 0 where it does not say."""


@dataclass(frozen=True, slots=True)
class _Box:
    kind: bytes
    body: int
    """Where its content begins."""
    end: int


def read_fragments(path: Path) -> Fragments | None:
    """What a fragmented MP4 says about itself; None for any other clip.

    A file that ends exactly between two fragments, without an index of them or a duration, cannot be told from a
    shorter one.

    Raises:
        MediaError: it cannot be read, or is no clip.
    """
    if pinned_format(path) != "mov":
        return None
    try:
        with path.open("rb") as file:
            return _read_fragments(file, path.stat().st_size)
    except OSError as error:
        raise MediaError(f"{path.name} cannot be read: {error.strerror}.", "Check its permissions.") from error


def _read_fragments(file: BinaryIO, size: int) -> Fragments | None:
    is_fragmented, is_cut, seconds, last = False, False, 0.0, b""
    for box in _boxes(file, 0, size):
        if box.kind == b"moov":
            extends = _find(file, box, b"mvex")
            is_fragmented |= extends is not None
            seconds = _stated_seconds(file, box, extends) if extends else 0.0
        is_fragmented |= box.kind == b"moof"
        end = _promised_end(file, box) if box.kind == b"sidx" else box.end
        if box.kind not in _NOTES:
            is_cut |= end > size
            last = box.kind
    is_cut |= last == b"moof"  # whose frames would follow
    return Fragments(is_cut=is_cut, stated_seconds=seconds) if is_fragmented else None


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[_Box]:
    """The boxes side by side between two places; the last may go on beyond `end`, one cut in its head has no kind."""
    while start < end:
        file.seek(start)
        head = file.read(min(16, end - start))
        if len(head) < 8:
            yield _Box(b"", end, end + 1)
            return
        length, kind, body = int.from_bytes(head[:4], "big"), head[4:8], start + 8
        if length == 1:
            length, body = int.from_bytes(head[8:16], "big"), start + 16
        after = start + length if length else end
        if after < body:
            return  # no box: something else follows the last one
        yield _Box(kind, body, after)
        start = after


def _find(file: BinaryIO, parent: _Box, kind: bytes) -> _Box | None:
    return next((box for box in _boxes(file, parent.body, parent.end) if box.kind == kind), None)


def _content(file: BinaryIO, box: _Box) -> bytes:
    file.seek(box.body)
    return file.read(min(box.end - box.body, _MAX_INDEX))


def _stated_seconds(file: BinaryIO, movie: _Box, extends: _Box) -> float:
    """Of the longest stream; 0 without an mehd box."""
    stated, header = _find(file, extends, b"mehd"), _find(file, movie, b"mvhd")
    if stated is None or header is None:
        return 0.0
    duration, head = _content(file, stated), _content(file, header)
    try:
        (ticks,) = struct.unpack_from(">Q" if duration[0] else ">I", duration, 4)
        (ticks_per_second,) = struct.unpack_from(">I", head, 20 if head[0] else 12)
    except (struct.error, IndexError):
        return 0.0
    return ticks / ticks_per_second if ticks_per_second else 0.0


def _promised_end(file: BinaryIO, index: _Box) -> int:
    """Where the segments end that an sidx box lists."""
    content = _content(file, index)
    try:
        (first_offset,) = struct.unpack_from(">Q" if content[0] else ">I", content, 20 if content[0] else 16)
        table = 28 if content[0] else 20
        (count,) = struct.unpack_from(">H", content, table + 2)
        sizes = [struct.unpack_from(">I", content, table + 4 + 12 * i)[0] & 0x7FFFFFFF for i in range(count)]
    except (struct.error, IndexError):
        return index.end
    return index.end + first_offset + sum(sizes)
