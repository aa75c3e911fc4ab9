"""A stop that the one who started several processes passes on to them: they end when their step is done."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_FILE = "LONGCAT_STUDIO_STOP_FILE"
"""The variable that names a file to the processes; when it is there, they are to stop."""


def are_passed_on() -> bool:
    """True where whoever started this process hears the signals of a user, and answers them."""
    return _FILE in os.environ


def is_wished() -> bool:
    """True once these processes are to stop after their step."""
    return are_passed_on() and Path(os.environ[_FILE]).exists()


@contextmanager
def wishing(answer: Callable[[], None]) -> Iterator[list[int]]:
    """Around processes that are started inside, until they have ended: the first SIGINT or SIGTERM makes `is_wished`
    true in all of them, and calls `answer`; the next one ends them at once. Gives the signals that came; in the main
    thread alone.

    Raises SignalException, torch's: they are being ended.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException

    came: list[int] = []
    with tempfile.TemporaryDirectory(prefix="longcat-studio-", ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "stop"

        def hear(number: int, _: object) -> None:
            came.append(number)
            if len(came) > 1:
                # Torch's agent passes on the signal of the exception.
                raise SignalException("a second signal", signal.SIGKILL)
            try:
                file.touch()
            except OSError:
                raise SignalException("a stop that cannot be written", signal.Signals(number)) from None
            answer()

        before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
        os.environ[_FILE] = str(file)
        try:
            yield came
        finally:
            del os.environ[_FILE]
            for number, handler in before.items():
                signal.signal(number, handler)
