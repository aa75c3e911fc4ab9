"""One thread that renders what waits in the queue of a gallery, and how far it is, in files that every page reads.

<gallery>/queue/<id>.*          the samples asked for (`SampleQueue`)
               /.lock           locked while someone renders them
               /.underway.json  how far the one that is rendered is
               /.preview.webp   what it looks like so far
               /.processes.log  what the processes of the last one on several GPUs said
"""

from __future__ import annotations

import logging
import math
import secrets
import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from studio.core.config import ModelConfig
from studio.core.data.digest import file_hash
from studio.core.errors import ConfigError, StudioError
from studio.core.filelock import FileLock
from studio.core.model.load import ModelBundle
from studio.core.sample.program import render_on_gpus
from studio.core.sample.queue import EntryState, QueueEntry, SampleQueue
from studio.core.sample.request import SampleRequest
from studio.core.sample.underway import Report, Underway, read_preview, read_underway

logger = logging.getLogger(__name__)

LOCK = ".lock"
DONE_KEPT = 20
"""Done samples that stay in the queue; their videos are in the gallery."""
AGAIN_SECONDS, TROUBLE_SECONDS = 1.0, 5.0
"""After this long another process may have ended, or a disk may have room again."""
PREVIEWS = 12
"""Pictures of a sample while it emerges, at most one a step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeskSnapshot:
    """What a page shows of a desk."""

    entries: tuple[QueueEntry, ...] = ()
    """In the order of their turns; what has ended stands where it was."""
    underway: Underway | None = None
    is_elsewhere: bool = False
    """Another process renders what is in the queue."""
    is_held: bool = False
    """What is next wants GPUs that a run, or another sample, has."""
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

    `load(model)` gives a loaded model; None stands for the one in use. What asks for several GPUs is rendered by
    processes of its own (`program`), once `lend(gpus)` says that they may have them, until `take_back()`; they end with
    this process. Of several processes on one folder one renders at a time. What one was rendering when it was killed
    waits again.
    """

    def __init__(
        self,
        gallery: Path,
        load: Callable[[ModelConfig | None], ModelBundle],
        *,
        lend: Callable[[int], bool] = lambda _: True,
        take_back: Callable[[], None] = lambda: None,
    ) -> None:
        self.gallery = gallery
        self.queue = SampleQueue(gallery / "queue")
        self._load, self._lend, self._take_back = load, lend, take_back
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._is_refused = self._is_held = False
        self._trouble: tuple[str, str] | None = None
        self._report = Report(self.queue.folder)
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

    def add(
        self, requests: Sequence[SampleRequest], model: ModelConfig | None = None, gpus: int = 1
    ) -> tuple[QueueEntry, ...]:
        """Puts requests at the end of the queue, each for so many GPUs. Raises ConfigError: they cannot be kept."""
        added = tuple(self.queue.add(request, model, gpus) for request in requests)
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
            entries=self.queue.entries(), is_elsewhere=self._is_refused, is_held=self._is_held, trouble=self._trouble
        )
        if not snapshot.is_busy:
            return replace(snapshot, is_elsewhere=False, is_held=False)
        self._wake.set()
        running, underway = snapshot.running, read_underway(self.queue.folder)
        return replace(snapshot, underway=underway if running and underway and underway.id == running.id else None)

    def preview(self) -> bytes | None:
        """WebP, animated: the sample so far."""
        return read_preview(self.queue.folder)

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
        """Renders all that waits; False when it has to wait for others. Raises StudioError, or OSError."""
        self._is_refused = False
        if not any(entry.state.is_open for entry in self.queue.entries()):
            return True
        lock = FileLock(self.queue.folder / LOCK)
        if not lock.acquire():
            self._is_refused = True
            return False
        try:
            self.queue.recover(self.gallery)
            while not self._stop.is_set() and (entry := self.queue.next()) is not None:
                self._is_held = entry.gpus > 1 and not self._lend(entry.gpus)
                if self._is_held:
                    return False
                if entry.gpus > 1:
                    self._render_on_gpus(entry, lock)
                else:
                    self._render_here()
        finally:
            self._report.end()
            lock.release()
        self.queue.clear_done(DONE_KEPT)
        return True

    def _render_here(self) -> None:
        """All that wait for one GPU, up to one that asks for more."""
        rendering = self.queue.run(
            self._bundle, self.gallery, should_stop=self._stop.is_set, is_next=lambda entry: entry.gpus == 1
        )
        with closing(rendering) as events:
            for _, event in events:
                self._report.note(event)

    def _render_on_gpus(self, entry: QueueEntry, lock: FileLock) -> None:
        """An entry, and those after it that ask for the same, by processes of their own. Raises ConfigError."""
        assert entry.model is not None
        try:
            if self.queue.take(lambda other: other.id == entry.id) is None:
                return
            self._report.begin(entry.id, "start")
            said = render_on_gpus(self.gallery, entry.gpus, entry.model.device, lock, self._stop)
            if not self._stop.is_set():
                self.queue.fail_running(said)
            self.queue.recover(self.gallery)
        finally:
            self._take_back()

    def _bundle(self, entry: QueueEntry) -> ModelBundle:
        self._report.begin(entry.id)
        bundle = self._load(entry.model)
        if bundle.lock.locked():
            self._report.enter("wait")
        return bundle


def compared(variants: Sequence[tuple[str, SampleRequest]]) -> list[SampleRequest]:
    """The requests as one group, each with its label."""
    group = secrets.token_hex(6)
    return [replace(request, group=group, label=label) for label, request in variants]


def preview_steps(num_steps: int) -> int:
    """Steps from one preview to the next."""
    return max(1, math.ceil(num_steps / PREVIEWS))
