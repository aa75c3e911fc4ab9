"""Samples that wait for their turn, in a folder: they can be put in another order, and a restart loses none."""

from __future__ import annotations

import json
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path

from studio.core.config import ModelConfig
from studio.core.errors import ConfigError, StudioError
from studio.core.events import SampleDone, SampleEvent
from studio.core.model.load import ModelBundle
from studio.core.model.memory import release
from studio.core.sample.gallery import NAME, abandon_video, new_video, sample_as
from studio.core.sample.request import SampleRequest
from studio.core.sample.request_file import delete_request, load_request, save_request, write_json

logger = logging.getLogger(__name__)

ID = re.compile(r"[0-9a-f]{12}")
ENTRY = ".entry.json"
TEXTS = ("prompt", "video", "taken", "message", "remedy", "group", "label")
"""Fields of an entry that are text."""


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
    """The model to render with; None: whichever is in use then."""
    ended: float = 0.0
    """Unix time at which it was done, failed or was cancelled; 0 before."""


class SampleQueue:
    """The queue in `folder`; one process works on it, threads may share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.RLock()

    def add(self, request: SampleRequest, model: ModelConfig | None = None) -> QueueEntry:
        """Puts a request at the end, to be rendered with `model`. Raises ConfigError: it cannot be kept."""
        with self._lock:
            place = max((entry.place for entry in self.entries()), default=0) + 1
            entry = QueueEntry(
                id=secrets.token_hex(6), place=place, prompt=request.prompt, group=request.group, label=request.label,
                model=model,
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
            entry = self._entry(id_, EntryState.WAITING, EntryState.RUNNING)
            self._write(replace(entry, state=EntryState.CANCELLED, ended=time.time()))

    def remove(self, id_: str) -> None:
        """Deletes an entry that does not run; its video stays. Raises ConfigError."""
        with self._lock:
            if self._entry(id_).state is EntryState.RUNNING:
                raise ConfigError(f"The sample {id_} is running.", "Cancel it first.")
            (self.folder / f"{id_}{ENTRY}").unlink(missing_ok=True)
            delete_request(self.folder, id_)

    def clear_done(self, keep: int) -> None:
        """Deletes the entries that are done but the newest `keep`; their videos stay."""
        with self._lock:
            done = (entry for entry in self.entries() if entry.state is EntryState.DONE)
            for entry in sorted(done, key=lambda entry: entry.ended, reverse=True)[keep:]:
                self.remove(entry.id)

    def recover(self, gallery: Path) -> None:
        """After a restart: what was running waits again, at its place, and half a video of it is gone."""
        with self._lock:
            for entry in self.entries():
                is_running = entry.state is EntryState.RUNNING
                if entry.taken:
                    abandon_video(gallery, entry.taken)
                if entry.taken or is_running:
                    self._write(replace(entry, state=EntryState.WAITING if is_running else entry.state, taken=""))

    def take(self) -> QueueEntry | None:
        """The next waiting entry, which runs from now on; None when none waits."""
        with self._lock:
            waiting = (entry for entry in self.entries() if entry.state is EntryState.WAITING)
            entry = next(waiting, None)
            return None if entry is None else self._write(replace(entry, state=EntryState.RUNNING))

    def run(
        self,
        load: Callable[[QueueEntry], ModelBundle],
        gallery: Path,
        *,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Generator[tuple[QueueEntry, SampleEvent], None, None]:
        """Renders what waits, one after the other, until none waits or `should_stop`; then the running one waits again.

        `load` gives the model of an entry. An entry that fails keeps its reason, and the next one runs.
        """
        while not should_stop() and (entry := self.take()) is not None:
            at = entry
            ending = replace(at, state=EntryState.WAITING)
            ends = partial(self._ends, at.id, should_stop)
            try:
                request = load_request(self.folder, at.id)
                bundle = load(at)
                # Loading takes minutes, in which someone may have changed their mind.
                events = iter(()) if ends() else sample_as(request, bundle, self._name(at, gallery), should_stop=ends)
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
            self._end(ending)
            release()

    def _name(self, entry: QueueEntry, gallery: Path) -> Path:
        """The file that it is rendered into; the entry says so, for whoever comes after a kill."""
        out = new_video(gallery)
        try:
            with self._lock:
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

    def _end(self, entry: QueueEntry) -> None:
        """A cancelled entry stays cancelled, and a removed one removed, unless its video came first."""
        with self._lock:
            now = self._read(entry.id)
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
            model = ModelConfig(**values["model"]) if values.get("model") else None
            return QueueEntry(**{**values, **known, **texts, "model": model, "ended": float(values.get("ended", 0))})
        except (OSError, ValueError, TypeError, KeyError, AttributeError, ConfigError) as error:
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
