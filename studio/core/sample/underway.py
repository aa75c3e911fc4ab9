"""How far the sample is that is being rendered, in files that every page reads, whichever process renders it."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from studio.core.events import DenoiseStep, SampleEvent, SamplePhase, SampleStarted
from studio.core.sample.preview import preview_webp
from studio.core.sample.request_file import write_json

logger = logging.getLogger(__name__)

UNDERWAY, PREVIEW = ".underway.json", ".preview.webp"
WRITE_SECONDS = 0.25
"""How often a page is told of a new step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Underway:
    """How far the sample is that is being rendered."""

    id: str
    phase: str
    """`start` while its processes start, `load` and `wait` for the model, then as in `SamplePhase`."""
    step: int = 0
    num_steps: int = 0
    """Of the whole sample; 0 before that is known."""
    segment: int = 1
    num_segments: int = 1
    seconds_left: float | None = None
    """For the steps that are left; None before one is done."""
    picture: int = 0
    """The step whose preview can be had; 0: none yet."""


class Report:
    """Writes into the folder of a queue how far its sample is. A page that hears nothing is no reason to stop."""

    def __init__(self, folder: Path) -> None:
        self.now = Underway(id="", phase="load")
        self._folder = folder
        self._told = 0.0

    def begin(self, id_: str, phase: str = "load") -> None:
        """Another sample, of which there is no preview yet."""
        (self._folder / PREVIEW).unlink(missing_ok=True)
        self.now = Underway(id=id_, phase=phase)
        self._tell()

    def enter(self, phase: str) -> None:
        """The same sample in another phase."""
        self.now = replace(self.now, phase=phase)
        self._tell()

    def note(self, event: SampleEvent) -> None:
        """What has happened to the sample."""
        now = self.now
        if isinstance(event, SampleStarted):
            now = replace(now, num_steps=event.num_steps, num_segments=event.num_segments)
        elif isinstance(event, SamplePhase):
            now = replace(now, phase=event.name, segment=event.segment, num_segments=event.num_segments)
        elif isinstance(event, DenoiseStep):
            left = event.seconds * (event.num_steps - event.step)
            if now.seconds_left is not None and event.step < event.num_steps:
                left = 0.5 * (left + now.seconds_left)
            now = replace(now, step=event.step, num_steps=event.num_steps, segment=event.segment, seconds_left=left)
            if event.preview is not None and self._write_preview(event.preview):
                now = replace(now, picture=event.step)
        is_news = (now.phase, now.picture) != (self.now.phase, self.now.picture)
        self.now = now
        if is_news or time.monotonic() - self._told > WRITE_SECONDS:
            self._tell()

    def end(self) -> None:
        """Nothing is rendered any more."""
        for name in (UNDERWAY, PREVIEW):
            (self._folder / name).unlink(missing_ok=True)

    def _tell(self) -> None:
        self._told = time.monotonic()
        try:
            write_json(self._folder / UNDERWAY, asdict(self.now))
        except OSError as error:
            logger.warning("how far the sample %s is cannot be told: %s", self.now.id, error)

    def _write_preview(self, frames: np.ndarray) -> bool:
        """uint8 [T, H, W, 3] as an animated WebP; False where it cannot be written."""
        data = preview_webp(frames)
        unfinished = self._folder / f"{PREVIEW}.part"
        try:
            unfinished.write_bytes(data)
            unfinished.replace(self._folder / PREVIEW)
        except OSError as error:
            logger.warning("the preview of %s cannot be written: %s", self.now.id, error)
            return False
        return True


def read_underway(folder: Path) -> Underway | None:
    """What a `Report` wrote last; None where it cannot be read."""
    try:
        return Underway(**json.loads((folder / UNDERWAY).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def read_preview(folder: Path) -> bytes | None:
    """WebP, animated: the sample so far."""
    try:
        return (folder / PREVIEW).read_bytes()
    except OSError:
        return None
