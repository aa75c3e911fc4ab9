"""What was found in clips and start frames, on disk under their content: another process need not decode them again.

Nothing here may fail: a cache that cannot be read or written costs time, and one line in the log.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

import av
import PIL

from studio.core.data.digest import cache_key, file_hash
from studio.core.errors import DamagedClipError, MediaError
from studio.core.types import Clip, StartFrame, StartFrameMatch

FileState = tuple[Path, int, int]

PROBE_VERSION = 7
"""To be raised when `probe_clip`, `read_image` or `match_start_frame` would find or say something else."""

MAX_ENTRIES = 100_000
MAX_IDLE_DAYS = 90

Found = TypeVar("Found", Clip, StartFrame, StartFrameMatch)
_ERRORS: dict[str, type[MediaError]] = {error.__name__: error for error in (MediaError, DamagedClipError)}
_DAY = 86_400
"""Seconds."""
_OF_THE_MACHINE = {
    errno.EACCES, errno.EAGAIN, errno.EINTR, errno.EIO, errno.EMFILE, errno.ENFILE,
    errno.ENOENT, errno.ENOMEM, errno.ENXIO, errno.ESTALE, errno.ETIMEDOUT,
}  # fmt: skip
"""What may be otherwise next time, with the same content."""

logger = logging.getLogger(__name__)


class NotOfContent(Exception):
    """The cause of an error that the file may not bring about the next time."""


class ProbeCache:
    """Probed clips and start frames in a folder, one JSON file for each fact; without a folder nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._made_by = (PROBE_VERSION, av.__version__, _decord_version() if folder else "", PIL.__version__)
        self._hashes: dict[FileState, str] = {}
        self._is_writable = True
        self._has_grown = False
        self._has_warned = False

    def get_or_probe(
        self, path: Path, kind: type[Found], probe: Callable[[Path], Found], beside: Path | None = None
    ) -> Found | MediaError:
        """What `probe` finds in a file, or its error; from the cache when a file of this name and content is known.

        `beside` is another file that it depends on. An error that is not of the content has NotOfContent as its cause.
        """
        files = [path, beside] if beside else [path]
        before = [file_state(file) for file in files]
        entry = self._entry(files, kind)
        known = self._read(entry, path, kind) if entry else None
        if known is not None:
            return known
        try:
            found, is_lasting = probe(path), True
        except MediaError as error:
            # The same error, holding on to no frames of the decoder.
            found, is_lasting = type(error)(error.message, error.remedy), is_of_content(error)
            found.__cause__ = None if is_lasting else NotOfContent()
        if entry and is_lasting and [file_state(file) for file in files] == before:
            self._write(entry, found)
        return found

    def drop_old(self) -> None:
        """Drops entries that were not used for 90 days, then the longest unused beyond 100,000.

        Looks only when something was added: the check of an unchanged folder has no folder to list.
        """
        if not self.folder or not self._has_grown:
            return
        self._has_grown = False
        used = []
        for file in self.folder.glob("[0-9a-f][0-9a-f]/*.*"):
            if file.suffix in (".json", ".part"):
                # Another process may have dropped it.
                with suppress(OSError):
                    used.append((file.stat().st_mtime, file))
        used.sort(reverse=True)
        oldest = time.time() - MAX_IDLE_DAYS * _DAY
        for index, (last, file) in enumerate(used):
            if index >= MAX_ENTRIES or last < oldest:
                with suppress(OSError):
                    file.unlink()

    def _entry(self, files: Sequence[Path], kind: type) -> Path | None:
        """Where an entry lies, by content and by names, which the messages name; None when a file cannot be read."""
        if not self.folder:
            return None
        try:
            parts = [part for file in files for part in (file.name, self._hash(file))]
        except MediaError:
            return None
        key = cache_key(*self._made_by, kind.__name__, *parts)
        return self.folder / key[:2] / f"{key}.json"

    def _hash(self, file: Path) -> str:
        """Of its content; once for a file that does not change."""
        state = file_state(file)
        if state not in self._hashes:
            self._hashes[state] = file_hash(file)
        return self._hashes[state]

    def _read(self, entry: Path, path: Path, kind: type[Found]) -> Found | MediaError | None:
        try:
            found = from_json(entry.read_bytes(), path, kind)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            self._warn("read", error)
            return None
        with suppress(OSError):
            if time.time() - entry.stat().st_mtime > _DAY:
                os.utime(entry)
        return found

    def _write(self, entry: Path, found: Clip | StartFrame | StartFrameMatch | MediaError) -> None:
        """Written under another name and then renamed: what has the final name is whole."""
        if not self._is_writable:
            return
        unfinished = entry.with_suffix(f".{os.getpid()}.{threading.get_ident()}.part")
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_text(to_json(found), encoding="utf-8")
            unfinished.replace(entry)
            self._has_grown = True
        except OSError as error:
            with suppress(OSError):
                unfinished.unlink()
            self._is_writable = False
            self._warn("written", error)

    def _warn(self, verb: str, error: Exception) -> None:
        """One line for all that goes wrong with one cache."""
        if not self._has_warned:
            reason = error.strerror if isinstance(error, OSError) else error
            logger.warning("the cache of checked files cannot be %s, which costs time only: %s", verb, reason)
        self._has_warned = True


def user_cache() -> ProbeCache:
    """The cache in the user's own cache folder, or where LONGCAT_STUDIO_CACHE says; none for a user without a home."""
    named, shared = os.environ.get("LONGCAT_STUDIO_CACHE"), os.environ.get("XDG_CACHE_HOME", "")
    if named:
        return ProbeCache(Path(named).absolute() / "probes")
    usual = {"win32": "AppData/Local", "darwin": "Library/Caches"}.get(sys.platform, ".cache")
    try:
        caches = Path(shared) if Path(shared).is_absolute() else Path.home() / usual
    except RuntimeError:
        return ProbeCache(None)
    return ProbeCache(caches / "longcat-studio" / "probes")


def file_state(path: Path) -> FileState:
    """What changes when a file does: path, bytes and nanoseconds; zeros for a file that is gone."""
    try:
        stat = path.stat()
    except OSError:
        return path, 0, 0
    return path, stat.st_size, stat.st_mtime_ns


def _decord_version() -> str:
    """Empty where decord cannot be loaded: the reader of a clip depends on it."""
    try:
        import decord
    except (ImportError, OSError):
        return ""
    return decord.__version__


def is_of_content(error: MediaError) -> bool:
    """False when something other than the file's content may have been the cause, such as too little memory."""
    cause = error.__cause__
    return not isinstance(cause, MemoryError | NotOfContent) and getattr(cause, "errno", None) not in _OF_THE_MACHINE


def to_json(found: Clip | StartFrame | StartFrameMatch | MediaError) -> str:
    """Everything but the path, which may be another next time."""
    if isinstance(found, MediaError):
        return json.dumps({"error": type(found).__name__, "message": found.message, "remedy": found.remedy})
    return json.dumps({f.name: getattr(found, f.name) for f in fields(found) if f.name != "path"})


def from_json(text: bytes, path: Path, kind: type[Found]) -> Found | MediaError:
    """Raises ValueError for anything but what `to_json` writes."""
    stored = json.loads(text)
    if not isinstance(stored, dict):
        raise ValueError("an entry is not an object")
    for name, value in stored.items():
        stored[name] = tuple(value) if isinstance(value, list) else value
    types = {name: type(value).__name__ for name, value in stored.items()}
    if types == {f.name: str(f.type).partition("[")[0] for f in fields(kind) if f.name != "path"}:
        if kind is not StartFrameMatch:
            stored["path"] = path
        return kind(**stored)
    error = _ERRORS.get(str(stored.get("error")))
    if error is None or types != dict.fromkeys(("error", "message", "remedy"), "str"):
        raise ValueError("an entry has other fields than expected")
    return error(stored["message"], stored["remedy"])
