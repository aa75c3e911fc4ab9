"""Readers of single values: each takes what the JSON holds and returns what a RunConfig field holds.

A reader raises ValueError with what was expected ("a whole number of at least 1"); whoever called it knows
the key and the line. A reader that takes the value differently from how it was written returns `Normalised`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from studio.core.config import Tracker
from studio.core.geometry import GridSpec, round_to_grid
from studio.core.jsonc import JsonValue
from studio.core.types import IssueCode, Severity

Reader = Callable[[JsonValue], Any]

_SPEC = GridSpec()
_MAX_EDGE = 4096
"""Pixels; far above what the model was trained on, far below what fills a memory by a slip of the pen."""
_MAX_FRAMES = 3601
"""Four minutes at 15 frames a second; the model was published with clips of 93 frames."""
_MAX_PATH, _MAX_NAME = 4000, 255
"""Bytes; what Linux takes in a path and in one name of it."""
_HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")
_SIZE = re.compile(r"(\d{1,5})\s*[xX]\s*(\d{1,5})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """Something to say about a value that was taken."""

    message: str
    code: IssueCode = IssueCode.KEY_NORMALISED
    severity: Severity = Severity.NOTICE
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Normalised:
    """A value together with what has to be said about it."""

    value: Any
    notes: tuple[Note, ...]


def integer(at_least: int = 0) -> Reader:
    """Reader of whole numbers; 8.0 counts as 8."""

    def read(value: JsonValue) -> int:
        if isinstance(value, bool) or not isinstance(value, int | float) or int(value) != value:
            raise ValueError(f"a whole number of at least {at_least}")
        if value < at_least:
            raise ValueError(f"a whole number of at least {at_least}")
        return int(value)

    return read


def number(*, above: float | None = None, at_least: float | None = None, below: float | None = None) -> Reader:
    """Reader of numbers within bounds."""
    bounds = [("above", above), ("at least", at_least), ("below", below)]
    expected = "a number " + " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)

    def read(value: JsonValue) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(expected + (", without quotes" if isinstance(value, str) else ""))
        if (
            (above is not None and value <= above)
            or (at_least is not None and value < at_least)
            or (below is not None and value >= below)
        ):
            raise ValueError(expected)
        return float(value)

    return read


def boolean(value: JsonValue) -> bool:
    """True or false, never a string: in SimpleTuner the string "False" counts as true."""
    if not isinstance(value, bool):
        raise ValueError("true or false, without quotes")
    return value


def crop(value: JsonValue) -> Normalised:
    """Whether clips may be cropped, which they are either way; says how that differs from SimpleTuner."""
    if boolean(value):
        message = "crop is true: buckets keep the aspect of their clips, as with crop_aspect preserve; not squares."
        return Normalised(True, (Note(message=message),))
    message = (
        "crop is false, but nothing is stretched: a clip is scaled until it covers its bucket, and what hangs over, "
        "less than one step of the grid, is cropped evenly."
    )
    return Normalised(False, (Note(message=message),))


def text(value: JsonValue) -> str:
    """Any text."""
    if not isinstance(value, str):
        raise ValueError("text in double quotes")
    return value


def name(value: JsonValue) -> str:
    """Text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("text in double quotes that is not empty")
    return value


def names(value: JsonValue) -> tuple[str, ...]:
    """One name, or a list of names."""
    if isinstance(value, list):
        return tuple(name(item) for item in value)
    return (name(value),) if value != "" else ()


def location(value: JsonValue) -> str:
    """A path as written; addresses (`s3://`, `file://`) are refused."""
    path = name(value)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path):
        raise ValueError("a path on this machine, not an address")
    if len(path.encode()) > _MAX_PATH or any(len(part.encode()) > _MAX_NAME for part in path.split("/")):
        raise ValueError("a path that is short enough for a file system")
    return path


def hub_name(value: JsonValue) -> str:
    """A repository of the hub, with its owner or without."""
    if not isinstance(value, str) or not _HUB_NAME.fullmatch(value):
        raise ValueError('a name on the hub, such as "my-lora" or "owner/my-lora"')
    return value


def trackers(value: JsonValue) -> tuple[str, ...] | Normalised:
    """Trackers, as one name, names with commas between or a list; those that are not written to are named.

    Source: SimpleTuner's `report_to`.
    """
    written = [word.strip() for words in names(value) for word in words.split(",")]
    taken = tuple(name for name in get_args(Tracker) if name in written)
    others = [word for word in written if word not in (*taken, "none", "")]
    if not others:
        return taken
    message = f"report_to names {', '.join(others)}, which nothing is sent to; {' and '.join(get_args(Tracker))} are."
    return Normalised(taken, (Note(message=message, code=IssueCode.KEY_NOT_USED),))


def device(value: JsonValue) -> str:
    """A device in PyTorch's words: cpu, cuda or cuda:N."""
    if not isinstance(value, str) or not re.fullmatch(r"cpu|cuda(:\d{1,2})?", value):
        raise ValueError('"cpu", "cuda" or "cuda:1"')
    return value


def choice(options: Mapping[str, Any], *, says: str = "") -> Reader:
    """Reader of one of the words in `options`; `says` becomes a notice when a word is taken as another."""

    def read(value: JsonValue) -> object:
        if not isinstance(value, str) or value not in options:
            raise ValueError("one of " + ", ".join(f'"{option}"' for option in options))
        taken = options[value]
        if not says or taken == value:
            return taken
        return Normalised(taken, (Note(message=says.format(written=value, taken=taken)),))

    return read


def flow_shift(value: JsonValue) -> float | Normalised:
    """The shift of the noise levels; 0 turns it off, which is a shift of 1.

    Source: SimpleTuner's `flow_schedule_shift`.
    """
    shift = number(at_least=0)(value)
    return shift or Normalised(1.0, (Note(message="flow_schedule_shift 0 is taken as 1: no shift."),))


def frame_count(value: JsonValue) -> int | Normalised:
    """A legal number of frames, 5 to 3601; others are floored to 4k+1."""
    expected = f"a whole number of frames from 5 to {_MAX_FRAMES} (93 is usual)"
    if isinstance(value, bool) or not isinstance(value, int | float) or not 5 <= value <= _MAX_FRAMES:
        raise ValueError(expected)
    written = int(value)
    if written != value:
        raise ValueError(expected)
    if _SPEC.is_legal_frame_count(written):
        return written
    return Normalised(_SPEC.floor_frame_count(written), (off_stride_note(written),))


def off_stride_note(num_frames: int) -> Note:
    """What to say about a frame count that is not 4k+1: which are the legal ones beside it."""
    floor = _SPEC.floor_frame_count(num_frames)
    above = floor + _SPEC.temporal_stride
    return Note(
        code=IssueCode.FRAMES_OFF_STRIDE,
        severity=Severity.WARNING,
        message=f"{num_frames} frames break the rule (frames - 1) % {_SPEC.temporal_stride} == 0; {floor} are taken.",
        remedy=f"Write {floor} or {above}.",
    )


def validation_size(value: JsonValue) -> tuple[int, int] | Normalised:
    """(height, width) in pixels, height <= width: the sampler turns it when the start frame is portrait.

    Takes "480x832" in either order, an edge in pixels (480), megapixels (0.5), or a list, whose first counts.
    """
    expected = 'a size such as "480x832", or an edge in pixels such as 480'
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(expected)
    first, *others = (part.strip() for part in str(value).split(","))
    notes = [Note(message=f"Of several sizes the first, {first}, is taken.")] if others else []
    pair = _SIZE.fullmatch(first)
    if pair:
        height, width = sorted((int(pair[1]), int(pair[2])))
        notes.append(
            Note(
                message=f"{first} is taken as {height} high and {width} wide; turned when the start frame is portrait."
            )
        )
    else:
        height = width = _edge(first, expected)
        notes.append(Note(message=f"{first} is taken as {height} high and {width} wide."))
    if not _SPEC.is_legal_size(height, width) or width > _MAX_EDGE:
        unit = _SPEC.pixel_multiple
        nearest = "x".join(str(min(_MAX_EDGE, round_to_grid(edge, unit))) for edge in (height, width))
        raise ValueError(f"height and width as multiples of {unit} up to {_MAX_EDGE} (nearest: {nearest})")
    notes.extend(grid_notes(height, width))
    return Normalised((height, width), tuple(notes)) if notes else (height, width)


def _edge(written: str, expected: str) -> int:
    """Edge in pixels of a square given as an edge, or in megapixels when there is a decimal point.

    Source: SimpleTuner reads `validation_resolution` this way.
    """
    if not re.fullmatch(r"\d{1,5}(\.\d+)?", written):
        raise ValueError(expected)
    if "." in written and float(written) < 20:
        return round_to_grid(math.sqrt(float(written) * 1e6), _SPEC.pixel_multiple)
    return int(float(written))


def grid_notes(height: int, width: int) -> tuple[Note, ...]:
    """The second fact about a legal size: whether it is on the grid that fills whole attention blocks."""
    grid = _SPEC.bucket_alignment
    off = [str(edge) for edge in dict.fromkeys((height, width)) if edge % grid]
    if not off:
        return ()
    nearest = f"{round_to_grid(height, grid)}x{round_to_grid(width, grid)}"
    return (
        Note(
            code=IssueCode.SIZE_OFF_GRID,
            message=f"{height}x{width} is legal for the model (multiples of {_SPEC.pixel_multiple}), but "
            f"{' and '.join(off)} {'is' if len(off) == 1 else 'are'} not on the {grid} px grid; the nearest "
            f"size on it is {nearest}.",
        ),
    )


def bucket_alignment(value: JsonValue) -> int | Normalised:
    """Pixels that buckets are multiples of: 16, 32, 48, 64, ..."""
    alignment = integer(at_least=1)(value)
    unit, grid = _SPEC.pixel_multiple, _SPEC.bucket_alignment
    if alignment % unit or alignment > _MAX_EDGE:
        raise ValueError(f"a multiple of {unit}, which is what the model can take (published: {grid})")
    if alignment % grid == 0:
        return alignment
    message = f"Buckets on a grid of {alignment} px are legal, but do not fill whole attention blocks ({grid} px)."
    return Normalised(alignment, (Note(code=IssueCode.SIZE_OFF_GRID, message=message),))
