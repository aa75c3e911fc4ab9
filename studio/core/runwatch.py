"""Snapshots of runs for many watchers: of a run's events only those are read that were written since the last look."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from studio.core.events import TrainEvent
from studio.core.filelock import is_locked
from studio.core.runlog import EVENTS_FILE, LOCK_FILE, RunFolder, RunSnapshot, read_event

KEPT = 8
"""Runs that are remembered; the one looked at longest ago makes room."""


@dataclass(slots=True)
class _Reading:
    """What is known of a run."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    state: tuple[object, ...] = ()
    """Of its files, when `snapshot` was made."""
    file: int = 0
    """The inode of the events; another one is read from its beginning."""
    offset: int = 0
    """Bytes of the whole lines that were read."""
    events: list[tuple[float, TrainEvent]] = field(default_factory=list)
    snapshot: RunSnapshot | None = None
    looked: float = 0.0
    """When, by the monotonic clock."""


class RunReader:
    """Reads runs for whoever watches, in any number of threads; a snapshot of an unchanged run is the same object.

    `every`: for how many seconds that of a live run is good enough, though the run has gone on.
    """

    def __init__(self, every: float = 0.0) -> None:
        self._every = every
        self._readings: OrderedDict[Path, _Reading] = OrderedDict()
        self._lock = threading.Lock()

    def snapshot(self, run: RunFolder) -> RunSnapshot:
        """What `run.snapshot()` gives, at the cost of what is new."""
        with self._lock:
            reading = self._readings.setdefault(run.path, _Reading())
            self._readings.move_to_end(run.path)
            if len(self._readings) > KEPT:
                self._readings.popitem(last=False)
        with reading.lock:
            known, now = reading.snapshot, time.monotonic()
            if known is not None and known.state.is_live and now - reading.looked < self._every:
                return known
            reading.looked = now
            return _read(run, reading)


def _read(run: RunFolder, reading: _Reading) -> RunSnapshot:
    lock = run.path / LOCK_FILE
    try:
        file = (run.path / EVENTS_FILE).stat()
        state = (file.st_ino, file.st_size, file.st_mtime_ns, lock.exists(), is_locked(lock))
        if reading.snapshot is None or state != reading.state:
            tail = _read_new(run, reading, file.st_ino, file.st_size)
            reading.snapshot = run.snapshot((*reading.events, *tail))
            reading.state = state
    except FileNotFoundError:
        # Nothing has happened yet, or someone has just deleted the run.
        return run.snapshot()
    return reading.snapshot


def _read_new(run: RunFolder, reading: _Reading, inode: int, size: int) -> list[tuple[float, TrainEvent]]:
    """Adds the events of the lines that are whole by now; what the last, unfinished line says is returned."""
    if inode != reading.file or size < reading.offset:
        reading.file, reading.offset = inode, 0
        reading.events.clear()
    with (run.path / EVENTS_FILE).open("rb") as file:
        file.seek(reading.offset)
        *lines, rest = file.read().split(b"\n")
    reading.offset += sum(len(line) + 1 for line in lines)
    reading.events += [event for line in lines if (event := read_event(line)) is not None]
    unfinished = read_event(rest)
    return [] if unfinished is None else [unfinished]
