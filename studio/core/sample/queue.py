"""Samples that wait for their turn, in a folder: they can be put in another order, and a restart loses none."""

from __future__ import annotations

import json
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path

from studio.core.errors import ConfigError, StudioError
from studio.core.events import SampleDone, SampleEvent
from studio.core.model.load import ModelBundle
from studio.core.sample.gallery import sample_into
from studio.core.sample.request import SampleRequest
from studio.core.sample.request_file import delete_request, load_request, save_request, write_json

ID = re.compile(r"[0-9a-f]{12}")
ENTRY = ".entry.json"


class EntryState(StrEnum):
    """Where a sample of the queue stands."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"


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
    message: str = ""
    remedy: str = ""
    """What went wrong, and what to do, where it failed."""


class SampleQueue:
    """The queue in `folder`; one process works on it, threads may share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.RLock()

    def add(self, request: SampleRequest) -> QueueEntry:
        """Puts a request at the end. Raises ConfigError: it cannot be kept."""
        with self._lock:
            place = max((entry.place for entry in self.entries()), default=0) + 1
            entry = QueueEntry(id=secrets.token_hex(6), place=place, prompt=request.prompt)
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

    def move(self, id_: str, position: int) -> None:
        """Puts a waiting entry at `position`, 0 for next, among those that wait. Raises ConfigError."""
        with self._lock:
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
        with self._lock:
            self._write(replace(self._entry(id_, EntryState.WAITING, EntryState.RUNNING), state=EntryState.CANCELLED))

    def remove(self, id_: str) -> None:
        """Deletes an entry that does not run; its video stays. Raises ConfigError."""
        with self._lock:
            if self._entry(id_).state is EntryState.RUNNING:
                raise ConfigError(f"The sample {id_} is running.", "Cancel it first.")
            (self.folder / f"{id_}{ENTRY}").unlink(missing_ok=True)
            delete_request(self.folder, id_)

    def recover(self) -> None:
        """After a restart: what was running waits again, at its place."""
        with self._lock:
            for entry in self.entries():
                if entry.state is EntryState.RUNNING:
                    self._write(replace(entry, state=EntryState.WAITING))

    def take(self) -> QueueEntry | None:
        """The next waiting entry, which runs from now on; None when none waits."""
        with self._lock:
            waiting = (entry for entry in self.entries() if entry.state is EntryState.WAITING)
            entry = next(waiting, None)
            return None if entry is None else self._write(replace(entry, state=EntryState.RUNNING))

    def run(
        self, bundle: ModelBundle, gallery: Path, *, should_stop: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[QueueEntry, SampleEvent]]:
        """Renders what waits, one after the other, until none waits or `should_stop`; then the running one waits again.

        An entry that fails keeps its reason, and the next one runs.
        """
        while not should_stop() and (entry := self.take()) is not None:
            at = entry
            try:
                request = load_request(self.folder, at.id)
                ending = replace(at, state=EntryState.WAITING)
                ends = partial(self._ends, at.id, should_stop)
                for event in sample_into(request, bundle, gallery, should_stop=ends):
                    if isinstance(event, SampleDone):
                        ending = replace(at, state=EntryState.DONE, video=event.path.stem)
                    yield at, event
            except StudioError as error:
                ending = replace(at, state=EntryState.FAILED, message=error.message, remedy=error.remedy)
            except GeneratorExit:
                self._end(replace(at, state=EntryState.WAITING))
                raise
            self._end(ending)

    def _ends(self, id_: str, should_stop: Callable[[], bool]) -> bool:
        return should_stop() or self._read(id_).state is EntryState.CANCELLED

    def _end(self, entry: QueueEntry) -> None:
        """A cancelled entry stays cancelled, unless its video came first."""
        with self._lock:
            if entry.state is EntryState.DONE or self._read(entry.id).state is EntryState.RUNNING:
                self._write(replace(entry, place=self._read(entry.id).place))

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
            return QueueEntry(
                **{**values, "id": id_, "state": EntryState(values["state"]), "place": int(values["place"])}
            )
        except (OSError, ValueError, TypeError, KeyError) as error:
            said = f"{file.name} cannot be read: {error}."
            return QueueEntry(
                id=id_, place=0, prompt="", state=EntryState.FAILED, message=said, remedy="Ask for the sample again."
            )

    def _write(self, entry: QueueEntry) -> QueueEntry:
        try:
            write_json(self.folder / f"{entry.id}{ENTRY}", asdict(entry))
        except OSError as error:
            raise ConfigError(
                f"The queue cannot be kept: {error.strerror or error}.", "Check the disk and the folder."
            ) from error
        return entry
