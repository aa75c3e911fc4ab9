"""A run on several GPUs as a program of its own, which outlives whoever starts it; its folder tells how it goes."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from studio.core.errors import ConfigError, JobAlreadyRunning, StudioError
from studio.core.runlog import EVENTS_FILE, RunFolder
from studio.core.train.failure import failure_of

LOG_FILE = "processes.log"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Launched:
    """A run whose processes were started."""

    folder: RunFolder
    count: int
    """Of its processes."""
    process: subprocess.Popen[bytes]
    """Who started them, and ends last."""
    begins_at: int
    """Bytes that the log of events had before."""

    @property
    def is_alive(self) -> bool:
        """True until all its processes have ended."""
        return self.process.poll() is None

    @property
    def has_begun(self) -> bool:
        """True as soon as the run's folder tells of this attempt."""
        return _size(self.folder.path / EVENTS_FILE) > self.begins_at

    @property
    def is_starting(self) -> bool:
        """True while the folder does not tell yet how it goes."""
        return self.is_alive and not self.has_begun


def command(run: RunFolder, count: int, *, is_sharded: bool) -> list[str]:
    """What begins the run of a folder, or goes on with it, on `count` GPUs."""
    shard = ["--shard"] if is_sharded else []
    return [sys.executable, "-m", "studio", "train", "--gpus", str(count), *shard, "--config", str(run.path)]


def launch(run: RunFolder, count: int, *, is_sharded: bool = False) -> Launched:
    """Starts the processes, in a session of their own, and returns at once. When they end before the run has begun,
    their last sentence becomes its last event.

    Raises ConfigError: they cannot be started.
    """
    log = run.path / LOG_FILE
    said_before, begins_at = _size(log), _size(run.path / EVENTS_FILE)
    try:
        with log.open("ab") as errors:
            process = subprocess.Popen(
                command(run, count, is_sharded=is_sharded),
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True,
            )  # fmt: skip
    except OSError as error:
        raise ConfigError(
            f"The processes of {run.name} cannot be started: {error.strerror}.", "Free some space, and start it again."
        ) from error
    launched = Launched(run, count, process, begins_at)
    threading.Thread(target=_wait, args=(launched, said_before), name=f"wait for {run.name}", daemon=True).start()
    return launched


def _wait(launched: Launched, said_before: int) -> None:
    run, code = launched.folder, launched.process.wait()
    if launched.has_begun:
        return
    said = last_sentence(run.path / LOG_FILE, said_before)
    error = StudioError(said or f"The processes ended with exit code {code} before they began.", "")
    try:
        with run.locked():
            run.append(failure_of(error, run.snapshot().step, run))
    except (OSError, JobAlreadyRunning) as unwritten:
        logger.warning("run=%s cannot be told to have failed: %s", run.name, unwritten)


def last_sentence(log: Path, start: int = 0) -> str:
    """What a log says last, from byte `start` on, warnings of libraries aside; nothing where it says nothing."""
    try:
        lines = log.read_bytes()[start:].decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    said = [line.strip() for line in lines if line.strip() and not line.startswith(("[", "WARNING", " "))]
    return said[-1] if said else ""


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
