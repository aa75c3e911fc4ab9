"""Files that are on the disk once their writing has returned, and a full disk in one sentence."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

from safetensors import SafetensorError

from studio.core.errors import ConfigError, DiskFull

PIECE = 2**20
"""Bytes of one write: a file cut off by a full disk is cut off at one of them."""

_FULL = {getattr(errno, name, errno.ENOSPC) for name in ("ENOSPC", "EFBIG", "EDQUOT")}
"""No room on the disk, no room in one file, no room in the user's share."""


def is_full(error: BaseException) -> bool:
    """True for an error that says that there is no room to write; safetensors puts the number into words."""
    if isinstance(error, SafetensorError):
        number = re.search(r"os error (\d+)", str(error))
        return number is not None and int(number[1]) in _FULL
    return isinstance(error, OSError) and error.errno in _FULL


def disk_full(what: str, folder: Path, needed_bytes: int) -> DiskFull:
    """The error that says what had no room, how much it takes and how much is free."""
    free = shutil.disk_usage(folder).free
    missing = f", {_mb(needed_bytes - free)} too few" if needed_bytes > free else ""
    return DiskFull(
        f"The disk is full: {what} needs {_mb(needed_bytes)}, and {_mb(free)} are free in {folder.name}{missing}.",
        "Free some space, then resume the run.",
    )


def require_room(what: str, folder: Path, needed_bytes: int) -> None:
    """Raises DiskFull when `folder` has too little room for so many bytes."""
    if shutil.disk_usage(folder).free < needed_bytes:
        raise disk_full(what, folder, needed_bytes)


def make_empty_folder(folder: Path) -> None:
    """Makes the folder, or takes one that is empty. Raises ConfigError: it holds something, or cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_empty = not any(folder.iterdir())
    except OSError as error:
        raise not_written(folder, error) from error
    if not is_empty:
        raise ConfigError(f"{folder.name} holds something already.", "Give a new folder; nothing is overwritten.")


def not_written(path: Path, error: OSError) -> ConfigError:
    """The error that says why a path that someone chose cannot be written."""
    return ConfigError(f"{path} cannot be written: {error.strerror or error}.", "Choose another place.")


def write_synced(path: Path, data: bytes) -> None:
    """Writes a new file and brings it to the disk. Raises OSError, FileExistsError among them."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o644)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest[:PIECE]) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Brings the names in a folder to the disk; Windows has no such call for folders."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
