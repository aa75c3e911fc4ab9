"""A lock on a file that the kernel frees when its holder dies: no stale lock ever has to be cleaned up."""

from __future__ import annotations

import os
import sys
from pathlib import Path

if sys.platform == "win32":
    import msvcrt

    def _take(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _take(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


class FileLock:
    """One holder at a time among all processes and threads of this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """True when the lock is now ours; False when someone holds it, be it another object in this process."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _take(descriptor)
        except OSError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    @property
    def descriptor(self) -> int | None:
        """What a process that inherits it holds the lock with, too, until it ends; None while the lock is not ours."""
        return self._descriptor

    def release(self) -> None:
        """Frees the lock, if it is ours, unless a process that inherited it lives on."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_locked(path: Path) -> bool:
    """True when someone holds the lock on `path`; no file, no lock. Nothing is created."""
    if not path.exists():
        return False
    probe = FileLock(path)
    is_free = probe.acquire()
    probe.release()
    return not is_free
