"""Files that a visitor drops, copied into a folder of their own, to be opened like any other."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from studio.core.data.scan import CAPTION_SUFFIX, CLIP_SUFFIXES, IMAGE_SUFFIXES
from studio.core.errors import StudioError
from studio.view.words import Words

MAX_FILES, MAX_BYTES = 300, 4 * 10**9
"""What is dropped at a time; one file is limited by the server."""
SUFFIXES = sorted(CLIP_SUFFIXES | IMAGE_SUFFIXES | {CAPTION_SUFFIX})


def copy_dropped(files: Sequence[Path], into: Path, w: Words) -> Path:
    """A new folder under `into` with copies of the files, under their names.

    Raises:
        StudioError: no files, too many, two of one name, or they cannot be copied; nothing is left of them then.
    """
    if not files:
        raise StudioError(w("dataset.drop_none"), w("dataset.drop_none_remedy"))
    size = sum(file.stat().st_size for file in files)
    if len(files) > MAX_FILES or size > MAX_BYTES:
        many = w("dataset.drop_too_many", files=len(files), gigabytes=w.number(size / 1e9, 1))
        raise StudioError(many, w("dataset.drop_too_many_remedy"))
    names = [file.name for file in files]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise StudioError(w("dataset.drop_twice", name=twice), w("dataset.drop_twice_remedy"))
    folder = new_folder(into, "dropped")
    try:
        for file in files:
            shutil.copyfile(file, folder / file.name)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        why = w("dataset.drop_failed", reason=error.strerror or error)
        raise StudioError(why, w("dataset.drop_failed_remedy")) from error
    return folder


def new_folder(above: Path, name: str) -> Path:
    """A folder that was not there before: `name`, `name-2`, and so on. Raises OSError."""
    above.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = above / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder
