"""A folder's files by kind, in a stable order; nothing is opened, nothing but regular files is listed."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from dataclasses import dataclass
from pathlib import Path

CLIP_SUFFIXES = frozenset({".mp4", ".mov", ".m4v", ".mkv", ".webm"})
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
CAPTION_SUFFIX = ".txt"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""What would break a line, or give orders to a terminal."""
_FOREIGN_SUFFIXES = frozenset(
    {
        ".avi",
        ".flv",
        ".gif",
        ".mpeg",
        ".mpg",
        ".ogv",
        ".ts",
        ".wmv",
        ".bmp",
        ".tif",
        ".tiff",
        ".heic",
        ".avif",
    }
)
"""Media that people have, but that is not read here: said aloud, unlike a stray README."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Skipped:
    """Something that was not taken, and why."""

    name: str
    """Relative to the folder, printable."""
    reason: str
    remedy: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Scan:
    """What a folder holds, each kind sorted by relative path."""

    root: Path
    clips: tuple[Path, ...]
    images: tuple[Path, ...]
    captions: tuple[Path, ...]
    skipped: tuple[Skipped, ...]


def scan_folder(root: Path) -> Scan:
    """The clips, images and captions below `root`.

    Hidden files are passed over. Links to files are followed, links to folders are not: no loops.

    Raises:
        OSError: `root` is not a folder, or cannot be listed.
    """
    found: dict[str, list[Path]] = {"clip": [], "image": [], "caption": []}
    skipped: list[Skipped] = []
    _walk(root, root, found, skipped)
    clips, images, captions = (
        tuple(sorted(paths, key=lambda path: relative_name(path, root))) for paths in found.values()
    )
    return Scan(root=root, clips=clips, images=images, captions=captions, skipped=tuple(skipped))


def relative_name(path: Path, root: Path) -> str:
    """Path relative to the folder, POSIX separators."""
    return path.relative_to(root).as_posix()


def loose_form(name: str) -> str:
    """A name without its case and Unicode form: names that some file system takes for one have one such form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _walk(folder: Path, root: Path, found: dict[str, list[Path]], skipped: list[Skipped]) -> None:
    with os.scandir(folder) as entries:
        children = sorted(entries, key=lambda entry: entry.name)
    for entry in children:
        if entry.name.startswith("."):
            continue
        path = Path(entry.path)
        shown = _printable(relative_name(path, root))
        if _CONTROL.search(entry.name):
            skipped.append(Skipped(name=shown, reason="its name holds a control character", remedy="Rename it."))
            continue
        if entry.is_dir(follow_symlinks=False):
            try:
                if _kind(path) in found and not any(path.iterdir()):
                    skipped.append(Skipped(name=shown, reason="it is an empty folder, no file", remedy="Delete it."))
                _walk(path, root, found, skipped)
            except OSError as error:
                reason = f"the folder cannot be listed ({error.strerror})"
                skipped.append(Skipped(name=shown, reason=reason, remedy="Check its permissions."))
            continue
        kind = _kind(path)
        if kind is None and not entry.is_symlink():
            continue
        fault = _fault(entry, kind, shown)
        if fault is not None:
            skipped.append(fault)
        elif kind in found:
            found[kind].append(path)


def _printable(name: str) -> str:
    """The name with bytes that are not UTF-8, line breaks and the like written out."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return _CONTROL.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def _kind(path: Path) -> str | None:
    """`clip`, `image`, `caption`, `foreign`, or None for files that concern nobody here."""
    suffix = path.suffix.lower()
    if suffix in CLIP_SUFFIXES:
        return "clip"
    if suffix in IMAGE_SUFFIXES:
        return "image"
    if suffix == CAPTION_SUFFIX:
        return "caption"
    return "foreign" if suffix in _FOREIGN_SUFFIXES else None


def _fault(entry: os.DirEntry[str], kind: str | None, shown: str) -> Skipped | None:
    """Why an entry is not taken; None when it is."""
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        reason = f"the link leads nowhere ({error.strerror})" if entry.is_symlink() else f"{error.strerror}"
        return Skipped(name=shown, reason=reason, remedy="Delete the link, or mend it.")
    if stat.S_ISDIR(mode):
        remedy = "Name the folder itself as a dataset, or move the files."
        return Skipped(name=shown, reason="links to folders are not followed", remedy=remedy)
    if kind is None:
        return None
    if not stat.S_ISREG(mode):
        return Skipped(name=shown, reason="not a regular file", remedy="Delete it, or move it elsewhere.")
    if kind == "foreign":
        remedy = "Convert it: clips to MP4, images to PNG."
        return Skipped(name=shown, reason="a kind of file that is not read", remedy=remedy)
    try:
        entry.path.encode("utf-8")
    except UnicodeEncodeError:
        return Skipped(name=shown, reason="its name is not UTF-8", remedy="Rename it.")
    return None
