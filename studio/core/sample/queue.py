"""Samples that wait for their turn, in a folder: they can be put in another order, and a restart loses none."""

from __future__ import annotations

import json
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Protocol

from studio.core.config import ModelConfig
from studio.core.errors import ConfigError, StudioError
from studio.core.events import SampleDone, SampleEvent
from studio.core.filelock import FileLock
from studio.core.model.load import ModelBundle
from studio.core.model.memory import release
from studio.core.sample.gallery import NAME, abandon_video, new_video, sample_as
from studio.core.sample.request import SampleRequest
from studio.core.sample.request_file import delete_request, load_request, save_request, write_json

logger = logging.getLogger(__name__)

ID = re.compile(r"[0-9a-f]{12}")
ENTRY, CHANGING = ".entry.json", ".changing"
TEXTS = ("prompt", "video", "taken", "message", "remedy", "group", "label")
"""Fields of an entry that are text."""
CHANGE_SECONDS = 10.0
"""A change takes milliseconds: another process that holds the queue for longer hangs."""


class Render(Protocol):
    """As `sample_as`."""

    def __call__(
        self, request: SampleRequest, bundle: ModelBundle, out: Path, *, should_stop: Callable[[], bool]
    ) -> Iterator[SampleEvent]:
        """Renders a request into a file."""
        ...


class EntryState(StrEnum):
    """Where a sample of the queue stands."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def is_open(self) -> bool:
        """True while it waits or runs."""
        return self in (EntryState.WAITING, EntryState.RUNNING)


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueEntry:
    """One sample of the queue."""

    id: str
    place: int
    """Lower ones come first."""
    prompt: str
    state: EntryState = EntryState.WAITING
    video: str = ""
    """Name in the gallery, once done."""
    taken: str = ""
    """Name in the gallery that nobody else takes, while it is rendered."""
    message: str = ""
    remedy: str = ""
    """What went wrong, and what to do, where it failed."""
    group: str = ""
    label: str = ""
    """As in the request."""
    model: ModelConfig | None = None
    """The model to render with; None: whichever is in use then, on one GPU."""
    gpus: int = 1
    """That render it together."""
    ended: float = 0.0
    """Unix time at which it was done, failed or was cancelled; 0 before."""


class SampleQueue:
    """The queue in `folder`; one process works on it, others and their threads may change what waits."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.RLock()
        self._file_lock = FileLock(folder / CHANGING)
        self._depth = 0

    def add(self, request: SampleRequest, model: ModelConfig | None = None, gpus: int = 1) -> QueueEntry:
        """Puts a request at the end, to be rendered with `model`, which several GPUs need to be told. Raises
        ConfigError: it cannot be kept.
        """
        assert gpus == 1 or model is not None
        with self._changing():
            place = max((entry.place for entry in self.entries()), default=0) + 1
            entry = QueueEntry(
                id=secrets.token_hex(6), place=place, prompt=request.prompt, group=request.group, label=request.label,
                model=model, gpus=gpus,
            )  # fmt: skip
            save_request(request, self.folder, entry.id)
            return self._write(entry)

    def entries(self) -> tuple[QueueEntry, ...]:
        """All of them in order; one that cannot be read has failed, and says so."""
        with self._lock:
            names = (file.name.removesuffix(ENTRY) for file in self.folder.glob(f"*{ENTRY}"))
            found = [self._read(name) for name in names if ID.fullmatch(name)]
            return tuple(sorted(found, key=lambda entry: (entry.place, entry.id)))

    def request(self, id_: str) -> SampleRequest:
        """What an entry asks for. Raises ConfigError."""
        self._entry(id_)
        return load_request(self.folder, id_)

    def gpus(self, id_: str) -> int:
        """How many GPUs an entry asks for. Raises ConfigError."""
        return self._entry(id_).gpus

    def move(self, id_: str, position: int) -> None:
        """Puts a waiting entry at `position`, 0 for next, among those that wait. Raises ConfigError."""
        with self._changing():
            moved = self._entry(id_, EntryState.WAITING)
            waiting = [entry for entry in self.entries() if entry.state is EntryState.WAITING]
            places = [entry.place for entry in waiting]
            waiting.remove(moved)
            waiting.insert(max(0, position), moved)
            for entry, place in zip(waiting, places, strict=True):
                if entry.place != place:
                    self._write(replace(entry, place=place))

    def cancel(self, id_: str) -> None:
        """A waiting entry never runs; a running one ends after its step. Raises ConfigError."""
        with self._changing():
            entry = self._entry(id_, EntryState.WAITING, EntryState.RUNNING)
            self._write(replace(entry, state=EntryState.CANCELLED, ended=time.time()))

    def remove(self, id_: str) -> None:
        """Deletes an entry that does not run; its video stays. Raises ConfigError."""
        with self._changing():
            if self._entry(id_).state is EntryState.RUNNING:
                raise ConfigError(f"The sample {id_} is running.", "Cancel it first.")
            (self.folder / f"{id_}{ENTRY}").unlink(missing_ok=True)
            delete_request(self.folder, id_)

    def clear_done(self, keep: int) -> None:
        """Deletes the entries that are done but the newest `keep`; their videos stay."""
        with self._changing():
            done = (entry for entry in self.entries() if entry.state is EntryState.DONE)
            for entry in sorted(done, key=lambda entry: entry.ended, reverse=True)[keep:]:
                self.remove(entry.id)

    def recover(self, gallery: Path) -> None:
        """After a restart: what was running waits again, at its place, and half a video of it is gone."""
        with self._changing():
            for entry in self.entries():
                is_running = entry.state is EntryState.RUNNING
                if entry.taken:
                    abandon_video(gallery, entry.taken)
                if entry.taken or is_running:
                    self._write(replace(entry, state=EntryState.WAITING if is_running else entry.state, taken=""))

    def next(self) -> QueueEntry | None:
        """The next waiting entry; None when none waits."""
        return next((entry for entry in self.entries() if entry.state is EntryState.WAITING), None)

    def take(self, is_next: Callable[[QueueEntry], bool] = lambda _: True) -> QueueEntry | None:
        """The next waiting entry, which runs from now on; None when none waits, or it is none that `is_next`."""
        with self._changing():
            entry = self.next()
            if entry is None or not is_next(entry):
                return None
            return self._write(replace(entry, state=EntryState.RUNNING))

    def running(self) -> QueueEntry | None:
        """The one that runs."""
        return next((entry for entry in self.entries() if entry.state is EntryState.RUNNING), None)

    def fail_running(self, error: StudioError) -> None:
        """What runs has failed, if something does."""
        with self._changing():
            if (entry := self.running()) is not None:
                self._end(replace(entry, state=EntryState.FAILED, message=error.message, remedy=error.remedy))

    def run(
        self,
        load: Callable[[QueueEntry], ModelBundle],
        gallery: Path,
        *,
        should_stop: Callable[[], bool] = lambda: False,
        first: QueueEntry | None = None,
        is_next: Callable[[QueueEntry], bool] = lambda _: True,
        render: Render = sample_as,
    ) -> Generator[tuple[QueueEntry, SampleEvent], None, None]:
        """Renders `first`, which was taken already, then what waits, one after the other, until none waits that
        `is_next`, or `should_stop`; then the running one waits again.

        `load` gives the model of an entry. An entry that fails keeps its reason, and the next one runs.
        """
        while not should_stop() and (entry := first or self.take(is_next)) is not None:
            at, first = entry, None
            ending = replace(at, state=EntryState.WAITING)
            ends = partial(self._ends, at.id, should_stop)
            try:
                request = load_request(self.folder, at.id)
                bundle = load(at)
                # Loading takes minutes, in which someone may have changed their mind.
                events = iter(()) if ends() else render(request, bundle, self._name(at, gallery), should_stop=ends)
                for event in events:
                    if isinstance(event, SampleDone):
                        ending = replace(at, state=EntryState.DONE, video=event.path.stem)
                    yield at, event
            except StudioError as error:
                ending = replace(at, state=EntryState.FAILED, message=error.message, remedy=error.remedy)
            except GeneratorExit:
                self._end(replace(at, state=EntryState.WAITING))
                raise
            except Exception as error:  # noqa: BLE001 one sample that nobody foresaw must not hold up the others
                logger.exception("the sample %s failed", at.id)
                said = f"The sample ended with an error that was not foreseen: {type(error).__name__}."
                ending = replace(at, state=EntryState.FAILED, message=said, remedy="Look into the log of the app.")
            self._end(ending, gallery)
            release()

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Inside, no other thread or process changes an entry. Raises ConfigError."""
        with self._lock:
            if not self._depth:
                self._wait_for_the_file()
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if not self._depth:
                    self._file_lock.release()

    def _wait_for_the_file(self) -> None:
        deadline = time.monotonic() + CHANGE_SECONDS
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            while not self._file_lock.acquire():
                if time.monotonic() > deadline:
                    raise ConfigError("Another process holds the queue.", "End it, and try again.")
                time.sleep(0.005)
        except OSError as error:
            raise _unkept(error) from error

    def _name(self, entry: QueueEntry, gallery: Path) -> Path:
        """The file that it is rendered into; the entry says so, for whoever comes after a kill."""
        out = new_video(gallery)
        try:
            with self._changing():
                now = self._read(entry.id)
                if now.state is not EntryState.FAILED:
                    self._write(replace(now, taken=out.stem))
        except ConfigError:
            out.unlink()
            raise
        return out

    def _ends(self, id_: str, should_stop: Callable[[], bool]) -> bool:
        """True also of one that was cancelled and then removed."""
        return should_stop() or self._read(id_).state is not EntryState.RUNNING

    def _end(self, entry: QueueEntry, gallery: Path | None = None) -> None:
        """A cancelled entry stays cancelled, and a removed one removed, unless its video came first. Half a video of it
        goes from the gallery.
        """
        with self._changing():
            now = self._read(entry.id)
            if gallery is not None:
                abandon_video(gallery, now.taken)
            if entry.state is EntryState.DONE or now.state is EntryState.RUNNING:
                ended = 0.0 if entry.state is EntryState.WAITING else time.time()
                self._write(replace(entry, place=now.place, ended=ended))
            elif now.taken:
                self._write(replace(now, taken=""))

    def _entry(self, id_: str, *states: EntryState) -> QueueEntry:
        """Raises ConfigError: there is none, or it is in another state."""
        if not ID.fullmatch(id_) or not (self.folder / f"{id_}{ENTRY}").is_file():
            raise ConfigError(f"There is no sample {id_[:40]} in the queue.", "Refresh the queue.")
        entry = self._read(id_)
        if states and entry.state not in states:
            raise ConfigError(f"The sample {id_} is {entry.state}.", "Refresh the queue.")
        return entry

    def _read(self, id_: str) -> QueueEntry:
        file = self.folder / f"{id_}{ENTRY}"
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            known = {"id": id_, "state": EntryState(values["state"]), "place": int(values["place"])}
            texts = {name: str(values[name]) for name in TEXTS if name in values}
            if any(texts.get(name) and not NAME.fullmatch(texts[name]) for name in ("video", "taken")):
                raise ValueError("it names no video")
            model, gpus = ModelConfig(**values["model"]) if values.get("model") else None, int(values.get("gpus", 1))
            if gpus < 1 or (gpus > 1 and model is None):
                raise ValueError("it cannot be for so many GPUs")
            rest = {"model": model, "gpus": gpus, "ended": float(values.get("ended", 0))}
            return QueueEntry(**{**values, **known, **texts, **rest})
        except (OSError, ValueError, OverflowError, TypeError, KeyError, AttributeError, ConfigError) as error:
            said = f"{file.name} cannot be read: {error}."
            return QueueEntry(
                id=id_, place=0, prompt="", state=EntryState.FAILED, message=said, remedy="Ask for the sample again."
            )

    def _write(self, entry: QueueEntry) -> QueueEntry:
        try:
            write_json(self.folder / f"{entry.id}{ENTRY}", asdict(entry))
        except OSError as error:
            raise _unkept(error) from error
        return entry


def _unkept(error: OSError) -> ConfigError:
    return ConfigError(f"The queue cannot be kept: {error.strerror or error}.", "Check the disk and the folder.")
