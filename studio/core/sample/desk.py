"""One thread that renders what waits in the queue of a gallery, and how far it is, in files that every page reads.

<gallery>/queue/<id>.*          the samples asked for (`SampleQueue`)
               /.lock           locked while someone renders them
               /.underway.json  how far the one that is rendered is
               /.preview.webp   what it looks like so far
"""

from __future__ import annotations

import json
import logging
import math
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from studio.core.config import ModelConfig
from studio.core.data.digest import file_hash
from studio.core.errors import ConfigError, StudioError
from studio.core.events import DenoiseStep, SampleEvent, SamplePhase, SampleStarted
from studio.core.filelock import FileLock
from studio.core.model.load import ModelBundle
from studio.core.sample.preview import preview_webp
from studio.core.sample.queue import EntryState, QueueEntry, SampleQueue
from studio.core.sample.request import SampleRequest
from studio.core.sample.request_file import write_json

logger = logging.getLogger(__name__)

LOCK, UNDERWAY, PREVIEW = ".lock", ".underway.json", ".preview.webp"
DONE_KEPT = 20
"""Done samples that stay in the queue; their videos are in the gallery."""
WRITE_SECONDS = 0.25
"""How often a page is told of a new step."""
AGAIN_SECONDS, TROUBLE_SECONDS = 1.0, 5.0
"""After this long another process may have ended, or a disk may have room again."""
PREVIEWS = 12
"""Pictures of a sample while it emerges, at most one a step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Underway:
    """How far the sample is that is being rendered."""

    id: str
    phase: str
    """`load` and `wait` for the model, then as in `SamplePhase`."""
    step: int = 0
    num_steps: int = 0
    """Of the whole sample; 0 before that is known."""
    segment: int = 1
    num_segments: int = 1
    seconds_left: float | None = None
    """For the steps that are left; None before one is done."""
    picture: int = 0
    """The step whose preview can be had; 0: none yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeskSnapshot:
    """What a page shows of a desk."""

    entries: tuple[QueueEntry, ...] = ()
    """In the order of their turns; what has ended stands where it was."""
    underway: Underway | None = None
    is_elsewhere: bool = False
    """Another process renders what is in the queue."""
    trouble: tuple[str, str] | None = None
    """What keeps the queue from going on, and what to do."""

    @property
    def running(self) -> QueueEntry | None:
        """The one that is being rendered."""
        return next((entry for entry in self.entries if entry.state is EntryState.RUNNING), None)

    @property
    def waiting(self) -> tuple[QueueEntry, ...]:
        """Those that wait, the next one first."""
        return tuple(entry for entry in self.entries if entry.state is EntryState.WAITING)

    @property
    def ended(self) -> tuple[QueueEntry, ...]:
        """The others, the last one first."""
        ended = (entry for entry in self.entries if not entry.state.is_open)
        return tuple(sorted(ended, key=lambda entry: entry.ended, reverse=True))

    @property
    def is_busy(self) -> bool:
        """True while something waits or is rendered."""
        return any(entry.state.is_open for entry in self.entries)


class SampleDesk:
    """Renders into `gallery` what waits in its queue, in a thread of its own, the next one as soon as one has ended.

    `load(model)` gives a loaded model; None stands for the one in use. Of several processes on one folder one renders
    at a time. What one was rendering when it was killed waits again.
    """

    def __init__(self, gallery: Path, load: Callable[[ModelConfig | None], ModelBundle]) -> None:
        self.gallery = gallery
        self.queue = SampleQueue(gallery / "queue")
        self._load = load
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._is_refused = False
        self._trouble: tuple[str, str] | None = None
        self._now = Underway(id="", phase="load")
        self._told = 0.0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins with what waits, and takes up what comes later."""
        if self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._run, name=f"samples {self.gallery.name}", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the step that it is in; what was being rendered waits again."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def add(self, requests: Sequence[SampleRequest], model: ModelConfig | None = None) -> tuple[QueueEntry, ...]:
        """Puts requests at the end of the queue. Raises ConfigError: they cannot be kept."""
        added = tuple(self.queue.add(request, model) for request in requests)
        self._wake.set()
        return added

    def keep_lora(self, file: Path) -> Path:
        """A copy of a LoRA file beside the gallery, where it outlives the app. Raises ConfigError."""
        folder = self.gallery / "loras"
        kept = folder / f"{file.stem[:80]}-{file_hash(file)[:8]}.safetensors"
        try:
            if not kept.exists():
                folder.mkdir(parents=True, exist_ok=True)
                unfinished = kept.with_suffix(".part")
                shutil.copyfile(file, unfinished)
                unfinished.replace(kept)
        except OSError as error:
            raise ConfigError(f"The LoRA {file.name} cannot be kept: {error.strerror}.", "Check the disk.") from error
        return kept

    def kept_loras(self) -> tuple[Path, ...]:
        """What `keep_lora` has kept, by name."""
        return tuple(sorted((self.gallery / "loras").glob("*.safetensors")))

    def snapshot(self) -> DeskSnapshot:
        """What there is to show; whatever waits is looked after from now on, should its process have died."""
        snapshot = DeskSnapshot(
            entries=self.queue.entries(), is_elsewhere=self._is_refused, trouble=self._trouble, underway=None
        )
        if not snapshot.is_busy:
            return replace(snapshot, is_elsewhere=False)
        self._wake.set()
        return replace(snapshot, underway=self._underway(snapshot.running))

    def preview(self) -> bytes | None:
        """WebP, animated: the sample so far."""
        try:
            return (self.queue.folder / PREVIEW).read_bytes()
        except OSError:
            return None

    def _underway(self, running: QueueEntry | None) -> Underway | None:
        try:
            underway = Underway(**json.loads((self.queue.folder / UNDERWAY).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return underway if running is not None and underway.id == running.id else None

    def _run(self) -> None:
        while not self._stop.is_set():
            wait: float | None = None
            try:
                wait = None if self._work() else AGAIN_SECONDS
                self._trouble = None
            except (StudioError, OSError) as error:
                logger.warning("the queue %s stands still: %s", self.queue.folder, error)
                said = error if isinstance(error, StudioError) else ConfigError(str(error), "Check the disk.")
                self._trouble, wait = (said.message, said.remedy), TROUBLE_SECONDS
            except Exception as error:  # noqa: BLE001 the boundary of the thread: without it nothing would be rendered
                logger.exception("the queue %s stands still", self.queue.folder)
                said = f"The queue stands still, for a reason that was not foreseen: {type(error).__name__}."
                self._trouble, wait = (said, "Look into the log of the app."), TROUBLE_SECONDS
            if wait is not None:
                self._stop.wait(wait)
            else:
                self._wake.wait()
            self._wake.clear()

    def _work(self) -> bool:
        """Renders all that waits; False when another process does. Raises StudioError, or OSError."""
        self._is_refused = False
        if not any(entry.state.is_open for entry in self.queue.entries()):
            return True
        lock = FileLock(self.queue.folder / LOCK)
        if not lock.acquire():
            self._is_refused = True
            return False
        try:
            self.queue.recover(self.gallery)
            with closing(self.queue.run(self._bundle, self.gallery, should_stop=self._stop.is_set)) as events:
                for entry, event in events:
                    self._note(entry, event)
        finally:
            for name in (UNDERWAY, PREVIEW):
                (self.queue.folder / name).unlink(missing_ok=True)
            lock.release()
        self.queue.clear_done(DONE_KEPT)
        return True

    def _bundle(self, entry: QueueEntry) -> ModelBundle:
        (self.queue.folder / PREVIEW).unlink(missing_ok=True)
        self._now = Underway(id=entry.id, phase="load")
        self._tell()
        bundle = self._load(entry.model)
        if bundle.lock.locked():
            self._now = replace(self._now, phase="wait")
            self._tell()
        return bundle

    def _note(self, entry: QueueEntry, event: SampleEvent) -> None:
        now = self._now
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
        is_news = (now.phase, now.picture) != (self._now.phase, self._now.picture)
        self._now = now
        if is_news or time.monotonic() - self._told > WRITE_SECONDS:
            self._tell()

    def _tell(self) -> None:
        """A page that hears nothing is no reason to stop."""
        self._told = time.monotonic()
        try:
            write_json(self.queue.folder / UNDERWAY, asdict(self._now))
        except OSError as error:
            logger.warning("how far the sample %s is cannot be told: %s", self._now.id, error)

    def _write_preview(self, frames: np.ndarray) -> bool:
        """uint8 [T, H, W, 3] as an animated WebP; False where it cannot be written."""
        data = preview_webp(frames)
        unfinished = self.queue.folder / f"{PREVIEW}.part"
        try:
            unfinished.write_bytes(data)
            unfinished.replace(self.queue.folder / PREVIEW)
        except OSError as error:
            logger.warning("the preview of %s cannot be written: %s", self._now.id, error)
            return False
        return True


def compared(variants: Sequence[tuple[str, SampleRequest]]) -> list[SampleRequest]:
    """The requests as one group, each with its label."""
    group = secrets.token_hex(6)
    return [replace(request, group=group, label=label) for label, request in variants]


def preview_steps(num_steps: int) -> int:
    """Steps from one preview to the next."""
    return max(1, math.ceil(num_steps / PREVIEWS))
