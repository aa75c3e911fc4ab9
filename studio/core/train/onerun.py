"""One run at a time in an output folder and on a GPU, among all processes of this machine.

<output_dir>/.train.lock    locked while a run is trained there
             .train.json    which run that is, since when and in which process
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import torch

from studio.core.config import RunConfig
from studio.core.errors import ConfigError, JobAlreadyRunning
from studio.core.filelock import FileLock
from studio.core.runlog import RunFolder

LOCK_FILE = ".train.lock"

logger = logging.getLogger(__name__)

_TELL_SECONDS = 1.0
"""How long someone who is refused waits for the name of the run that began a moment ago."""


class TrainingLock:
    """Held from the start of a run to its end; the kernel frees it when the process dies.

    Raises:
        JobAlreadyRunning: another run holds it; says which, since when and in which process.
    """

    def __init__(self, config: RunConfig, *, is_main: bool = True) -> None:
        """Of several processes the first one, `is_main`, holds the output folder, and each its GPU."""
        self._held: list[tuple[FileLock, Path]] = []
        output, gpu = config.output_dir, _gpu(config.model.device)
        try:
            if is_main:
                self._take(output / LOCK_FILE, f"in {output.name}")
            if gpu is not None:
                self._take(_machine_folder() / f"{gpu}.lock", "on this GPU")
        except OSError as error:
            self.release()
            raise ConfigError(
                f"No run can be made in {output}: {error.strerror}.", "Choose another output_dir, or free some space."
            ) from error
        except BaseException:
            self.release()
            raise

    def tell(self, run: RunFolder) -> None:
        """Lets those who are refused know which run it is."""
        since = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        for _, holder in self._held:
            unfinished = holder.with_name(f"{holder.name}.part")
            try:
                unfinished.write_text(json.dumps({"run": run.name, "since": since, "process": os.getpid()}))
                unfinished.replace(holder)
            except OSError as error:
                logger.warning("run=%s cannot be named in %s: %s", run.name, holder.name, error)

    def release(self) -> None:
        """Frees it."""
        for lock, holder in self._held:
            with suppress(OSError):  # the name of a run that ended does no harm
                holder.unlink()
            lock.release()
        self._held.clear()

    def _take(self, file: Path, where: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock, holder = FileLock(file), file.with_suffix(".json")
        if not lock.acquire():
            raise JobAlreadyRunning(f"{_who(holder)} is being trained {where}.", "Wait until it ends, or stop it.")
        # A process that was killed left its name here.
        holder.unlink(missing_ok=True)
        self._held.append((lock, holder))


def told_run(output_dir: Path) -> RunFolder | None:
    """The run that holds the lock of an output folder, as it told; its process may have been killed since.

    The lock itself is not looked at: to do so is to hold it for a moment, and whoever starts a run then is refused.
    """
    try:
        name = json.loads((output_dir / LOCK_FILE).with_suffix(".json").read_text())["run"]
        folder = output_dir.absolute() / Path(name).name
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return RunFolder(folder) if folder.is_dir() else None


def _who(holder: Path) -> str:
    deadline = time.monotonic() + _TELL_SECONDS
    while True:
        try:
            told = json.loads(holder.read_text())
            return f"The run {told['run']} (since {told['since']}, process {told['process']})"
        except (OSError, ValueError, KeyError, TypeError):
            if time.monotonic() > deadline:
                return "Another run"
            time.sleep(0.02)


def _gpu(device: str) -> str | None:
    """A name of the GPU that no setting changes; None on a CPU."""
    if device == "cpu" or not torch.cuda.is_available():
        return None
    index = torch.device("cuda" if device == "auto" else device).index
    index = torch.cuda.current_device() if index is None else index
    return str(torch.cuda.get_device_properties(index).uuid) if index < torch.cuda.device_count() else None


def _machine_folder() -> Path:
    """A folder of this user on this machine: a home may be shared by several."""
    return Path(tempfile.gettempdir()) / f"longcat-studio-{os.getuid() if hasattr(os, 'getuid') else ''}"
