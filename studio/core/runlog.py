"""A run as a folder: its configuration, its events, and what they add up to.

    <output_dir>/20261122-101500-3fa9/
        config.json      the resolved RunConfig
        events.jsonl     one line an event
        run.lock         locked while a process writes the run
        checkpoints/ samples/ lora/
        requests/        what the run is asked to do, a file each
        processes.log    what several processes said that an app started for the run

Whoever watches a run reads this folder and nothing else.
"""

from __future__ import annotations

import os
import secrets
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from studio.core.config import DataConfig, RunConfig
from studio.core.config_json import read_run_config, write_run_config
from studio.core.errors import ConfigError, JobAlreadyRunning
from studio.core.events import (
    CacheProgress,
    CheckpointSaved,
    FitPredicted,
    FitProgress,
    HeldOutLoss,
    RunContinued,
    RunFailed,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStarted,
    RunStopped,
    SampleSaved,
    StepDone,
    TrainEvent,
    decode_event,
    encode_event,
)
from studio.core.filelock import FileLock, is_locked

CONFIG_FILE = "config.json"
EVENTS_FILE = "events.jsonl"
LOCK_FILE = "run.lock"

RECENT_STEPS = 50
"""The time left is told from the median of this many last steps."""
_LOCK_SECONDS = 2.0
"""How long a writer waits for the lock: a watcher holds it for a moment when it looks."""


class RunState(StrEnum):
    """Where a run stands."""

    NEW = "new"
    """Nothing has happened yet; the model may be loading."""
    CACHING = "caching"
    MEASURING = "measuring"
    """What a step takes is being measured."""
    RUNNING = "running"
    PAUSED = "paused"
    """It waits until it is asked to continue; the device is free."""
    STOPPED = "stopped"
    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    """Its process ended without a word."""

    @property
    def is_live(self) -> bool:
        """True while something may still happen by itself."""
        return self in (RunState.NEW, RunState.CACHING, RunState.MEASURING, RunState.RUNNING, RunState.PAUSED)

    @property
    def can_resume(self) -> bool:
        """True for a run that ended half-way."""
        return self in (RunState.STOPPED, RunState.INTERRUPTED, RunState.FAILED)


_TERMINAL = {RunFinished: RunState.FINISHED, RunStopped: RunState.STOPPED, RunFailed: RunState.FAILED}


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSnapshot:
    """What every face draws of a run."""

    state: RunState
    step: int
    """Steps done; 0 before the first."""
    num_steps: int
    """0 while the run does not know yet."""
    num_pairs: int
    cache_done: int
    cache_total: int
    losses: tuple[tuple[int, float], ...]
    """(step, loss), each step once: after a resume the later attempt counts."""
    steps: tuple[StepDone, ...]
    """All that is known of these steps."""
    times: tuple[float, ...]
    """When each of these steps was done, Unix time in seconds."""
    held_out: tuple[HeldOutLoss, ...]
    """Each step once, in order."""
    checkpoints: tuple[int, ...]
    """Steps after which a checkpoint was written, though it may have been deleted since."""
    learning_rate: float | None
    """Of the last step."""
    seconds_per_step: float | None
    """Median of the last steps."""
    seconds_left: float | None
    """None when nobody can know, or nothing is left."""
    samples: tuple[SampleSaved, ...]
    """In the order of their steps."""
    lora: Path | None
    """The LoRA file, once it is written."""
    failure: RunFailed | None
    """Message and remedy, when the run failed."""
    started: RunStarted | None
    """Device, dtype and attention."""
    fit_done: int
    fit_total: int
    """How many sizes are measured; 0 before that is known."""
    fit: FitPredicted | None
    """What the steps of the last attempt were predicted to take."""
    peak_bytes: int | None
    """What they took, once that attempt has ended."""
    updated: float | None
    """Unix time of the last event, seconds."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One run on disk."""

    path: Path

    @staticmethod
    def create(output_dir: Path, config: RunConfig) -> RunFolder:
        """A new folder in `output_dir`, named by the time (UTC), with `config.json` in it."""
        output_dir.mkdir(parents=True, exist_ok=True)
        name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"
        folder = RunFolder(output_dir.absolute() / name)
        folder.path.mkdir()
        write_run_config(folder.path / CONFIG_FILE, config)
        return folder

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.name

    def config(self) -> RunConfig:
        """The configuration of the run. Raises ConfigError."""
        return read_run_config(self.path / CONFIG_FILE)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Inside, this process is the run's only writer. Raises JobAlreadyRunning."""
        lock = FileLock(self.path / LOCK_FILE)
        deadline = time.monotonic() + _LOCK_SECONDS
        while not lock.acquire():
            if time.monotonic() > deadline:
                raise JobAlreadyRunning(f"The run {self.name} is being trained already.", "Wait, or stop it.")
            time.sleep(0.01)
        try:
            yield
        finally:
            lock.release()

    def append(self, event: TrainEvent) -> None:
        """Writes one event, in one write; what a crash left of an earlier line is closed off first."""
        line = encode_event(event, time=time.time()).encode() + b"\n"
        with (self.path / EVENTS_FILE).open("ab+", buffering=0) as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line)

    def events(self) -> tuple[tuple[float, TrainEvent], ...]:
        """(Unix time, event) of every whole line; a line that a crash cut off is passed over."""
        try:
            lines = (self.path / EVENTS_FILE).read_bytes().split(b"\n")
        except FileNotFoundError:
            return ()
        return tuple(event for line in lines if (event := read_event(line)) is not None)

    def state(self) -> RunState:
        """Where the run stands, from its last event and its lock."""
        return self._state(self.events())

    def snapshot(self, timed: tuple[tuple[float, TrainEvent], ...] | None = None) -> RunSnapshot:
        """All that a face draws, in one reading; `timed` are the run's events, where they are known already."""
        timed = self.events() if timed is None else timed
        events = [event for _, event in timed]
        started = next((e for e in reversed(events) if isinstance(e, RunStarted)), None)
        cache = next((e for e in reversed(events) if isinstance(e, CacheProgress)), None)
        lora = next((e.lora for e in reversed(events) if isinstance(e, RunFinished | RunStopped) and e.lora), None)
        last = events[-1] if events else None
        measuring = next((e for e in reversed(events) if isinstance(e, FitProgress)), None)
        fit = next((e for e in reversed(_last_attempt(events)) if isinstance(e, FitPredicted)), None)
        timed_steps = _last_steps(timed)
        steps = tuple(step for _, step in timed_steps)
        state = self._state(timed)
        is_moving = state.is_live and state is not RunState.PAUSED
        num_steps = started.num_steps if started else 0
        step = steps[-1].step if steps else 0
        seconds = statistics.median(s.seconds for s in steps[-RECENT_STEPS:]) if steps else None
        return RunSnapshot(
            state=state,
            step=step,
            num_steps=num_steps,
            num_pairs=started.num_pairs if started else 0,
            cache_done=cache.done if cache else 0,
            cache_total=cache.total if cache else 0,
            losses=tuple((s.step, s.loss) for s in steps),
            steps=steps,
            times=tuple(when for when, _ in timed_steps),
            held_out=_held_out(events),
            checkpoints=tuple(sorted({e.step for e in events if isinstance(e, CheckpointSaved)})),
            learning_rate=steps[-1].learning_rate if steps else None,
            seconds_per_step=seconds,
            seconds_left=seconds * (num_steps - step) if seconds is not None and is_moving else None,
            samples=_samples(events),
            lora=self.path / lora if lora else None,
            failure=last if isinstance(last, RunFailed) else None,
            started=started,
            fit_done=measuring.done if measuring else 0,
            fit_total=measuring.total if measuring else 0,
            fit=fit,
            peak_bytes=last.peak_bytes if isinstance(last, RunFinished | RunStopped) else None,
            updated=timed[-1][0] if timed else None,
        )

    def _state(self, timed: tuple[tuple[float, TrainEvent], ...]) -> RunState:
        last = timed[-1][1] if timed else None
        if type(last) in _TERMINAL:
            return _TERMINAL[type(last)]
        lock = self.path / LOCK_FILE
        if not is_locked(lock):
            return RunState.INTERRUPTED if lock.exists() or last else RunState.NEW
        if last is None or isinstance(last, RunResumed):
            return RunState.NEW
        turns = (event for _, event in reversed(timed) if isinstance(event, RunPaused | RunContinued | RunStarted))
        if isinstance(next(turns, None), RunPaused):
            return RunState.PAUSED
        if isinstance(last, RunStarted | CacheProgress):
            return RunState.CACHING
        return RunState.MEASURING if isinstance(last, FitProgress) else RunState.RUNNING


def list_runs(output_dir: Path) -> tuple[RunFolder, ...]:
    """The runs in a folder, newest first; none when the folder is not there, or cannot be read."""
    if not os.access(output_dir, os.R_OK):
        return ()
    configs: list[tuple[Path, int]] = []
    for path in output_dir.absolute().glob(f"[!.]*/{CONFIG_FILE}"):
        # Someone may delete a run right now.
        with suppress(FileNotFoundError):
            configs.append((path.parent, path.stat().st_mtime_ns))
    # The name tells the second; within one second the clock of the file system decides.
    newest_first = sorted(configs, key=lambda run: (run[0].name[:15], run[1]), reverse=True)
    return tuple(RunFolder(path) for path, _ in newest_first)


def run_at(path: Path) -> RunFolder | None:
    """The run whose folder this is; None for a project, a dataset or anything else."""
    run = RunFolder(path.absolute())
    try:
        run.config()
    except ConfigError:
        return None
    return run


def is_of_data(run: RunFolder, data: DataConfig) -> bool:
    """True for a run that was trained on the same folders as `data` names."""
    try:
        return _folders(run.config().data) == _folders(data)
    except ConfigError:
        return False


def newest_unfinished(output_dir: Path, data: DataConfig) -> RunFolder:
    """The run to go on with. Raises ConfigError when no run of this data ended half-way."""
    for run in list_runs(output_dir):
        if is_of_data(run, data) and run.state().can_resume:
            return run
    raise ConfigError(f"There is no unfinished run of this dataset in {output_dir}.", "Leave out --resume.")


def _folders(data: DataConfig) -> set[Path]:
    return {dataset.directory.resolve() for dataset in data.datasets}


def read_event(line: bytes) -> tuple[float, TrainEvent] | None:
    """The event of a line; None for one that is cut off, or of a kind that is not known here."""
    try:
        return decode_event(line.decode())
    except (ValueError, KeyError, TypeError):
        return None


def _last_attempt(events: list[TrainEvent]) -> list[TrainEvent]:
    """The events since the run was last started or resumed."""
    start = max((index for index, event in enumerate(events) if isinstance(event, RunStarted)), default=0)
    return events[start:]


def _last_steps(timed: tuple[tuple[float, TrainEvent], ...]) -> list[tuple[float, StepDone]]:
    """(Unix time, step) in order: one that was done again after a resume replaces what followed the checkpoint."""
    steps: list[tuple[float, StepDone]] = []
    for when, event in timed:
        if isinstance(event, StepDone):
            while steps and steps[-1][1].step >= event.step:
                steps.pop()
            steps.append((when, event))
    return steps


def _held_out(events: list[TrainEvent]) -> tuple[HeldOutLoss, ...]:
    by_step = {event.step: event for event in events if isinstance(event, HeldOutLoss)}
    return tuple(by_step[step] for step in sorted(by_step))


def _samples(events: list[TrainEvent]) -> tuple[SampleSaved, ...]:
    by_path = {event.path: event for event in events if isinstance(event, SampleSaved)}
    return tuple(sorted(by_path.values(), key=lambda sample: sample.step))
