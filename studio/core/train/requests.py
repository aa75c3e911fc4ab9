"""What a run is asked to do between two steps: a file each in its folder, from whichever process asks.

<run>/requests/pause      there as long as the run is to be paused
               stop, save, sample
"""

from __future__ import annotations

from contextlib import suppress
from enum import StrEnum
from pathlib import Path

from studio.core.runlog import RunFolder

FOLDER = "requests"


class Request(StrEnum):
    """What can be asked for."""

    STOP = "stop"
    """End after this step, and save."""
    PAUSE = "pause"
    """Wait, with the device free; `withdraw` it to continue."""
    SAVE = "save"
    """Write a checkpoint now."""
    SAMPLE = "sample"
    """Render the validation samples now."""


def ask(run: RunFolder, request: Request) -> None:
    """Leaves the request; the run obeys between two steps, and one that does not live forgets it when it goes on.

    Raises OSError.
    """
    _file(run, request).parent.mkdir(exist_ok=True)
    _file(run, request).touch()


def withdraw(run: RunFolder, request: Request) -> None:
    """Takes the request back; a paused run then continues."""
    _file(run, request).unlink(missing_ok=True)


def is_asked(run: RunFolder, request: Request) -> bool:
    """True while the request is there."""
    return _file(run, request).exists()


def forget(run: RunFolder) -> None:
    """Drops what an earlier attempt was asked for."""
    for request in Request:
        with suppress(OSError):
            withdraw(run, request)


def _file(run: RunFolder, request: Request) -> Path:
    return run.path / FOLDER / request.value
