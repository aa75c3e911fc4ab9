"""The nouns of mending: what can be mended, what is chosen, and what becomes of every clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from studio.core.data.bucket import MODEL_FPS
from studio.core.simpletuner import Project
from studio.core.types import Pair


class MendKind(StrEnum):
    """What can be mended."""

    START_FRAMES = "start_frames"
    """Clips without a usable start frame get their first frame."""
    REPLACE_START_FRAMES = "replace_start_frames"
    """Start frames that are blank, of another aspect or not the clip's first frame are replaced by it."""
    SPLIT_SCENES = "split_scenes"
    """Every scene becomes a clip of its own."""
    FRAME_RATE = "frame_rate"
    """Frames are chosen by their times, so that the rate is the one asked for, and constant."""
    TRIM = "trim"
    """What lies after the last frame that is trained is left out."""
    CROP = "crop"
    """Frames get the size of their bucket; what hangs over is cropped evenly."""
    PAD = "pad"
    """Frames get the size of their bucket; black bars keep all of them."""
    CAPTIONS = "captions"
    """Clips without a caption get one from a template."""
    CONFIG = "config"
    """A plain folder gets config.json and multidatabackend.json."""


RECODING = frozenset({MendKind.SPLIT_SCENES, MendKind.FRAME_RATE, MendKind.TRIM, MendKind.CROP, MendKind.PAD})
"""Mends after which a clip is encoded anew; others copy it byte for byte."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MendChoice:
    """Which mends, and how."""

    kinds: frozenset[MendKind]
    caption_template: str = "{name}"
    """May hold `{name}`, the clip's name with blanks for underscores, and `{folder}`, that of its folder."""
    frame_rate: float = MODEL_FPS
    """Frames per second; where config.json sets `framerate`, that is taken."""


def frame_rate(project: Project, choice: MendChoice) -> float:
    """Frames per second to which clips are converted: those of config.json, else those that are chosen."""
    return project.run.data.framerate or choice.frame_rate


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedClip:
    """One clip of the mended dataset."""

    pair: Pair
    """What it is made from."""
    name: str
    """Below its dataset's new folder, POSIX separators, without extension."""
    frames: Sequence[int]
    """Indices of the source's frames, in order; some may be skipped, or come again."""
    fps: float
    """Frames per second of the source."""
    new_fps: float
    size: tuple[int, int]
    """(height, width) of the source, pixels."""
    new_size: tuple[int, int]
    start_frame: Path | int | None
    """The user's own image, or the index of the source frame that becomes the image, or nothing."""
    captions: tuple[str, ...]
    changes: tuple[MendKind, ...]
    """In the order of `MendKind`; empty for a clip that is copied with all that belongs to it."""

    @property
    def first_frame(self) -> int:
        """Index in the source of the first frame."""
        return self.frames[0]

    @property
    def num_frames(self) -> int:
        """Frames of the source from the first to the last that is taken."""
        return self.frames[-1] - self.frames[0] + 1

    @property
    def new_num_frames(self) -> int:
        """Frames of the mended clip."""
        return len(self.frames)

    @property
    def is_copied(self) -> bool:
        """True when the clip's file is copied byte for byte."""
        return RECODING.isdisjoint(self.changes)


@dataclass(frozen=True, kw_only=True, slots=True)
class MendPlan:
    """A mended dataset, before it is written."""

    project: Project
    choice: MendChoice
    clips: tuple[PlannedClip, ...]
    """Empty when `MendKind.CONFIG` alone is chosen: then the clips stay where they are."""
    left_out: tuple[tuple[Pair, str], ...]
    """What the new folder will not hold, with the reason; a clip may be named for one scene of it."""
    num_bytes: int
    """About what the new folder takes."""
