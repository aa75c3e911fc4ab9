"""Caption files: UTF-8 text, each line that is not blank a caption, or all of them one."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from studio.core.errors import MediaError

MAX_CAPTION_BYTES = 100_000
"""The text encoder reads 512 tokens; a file this long is no caption."""


def read_captions(path: Path, *, split_lines: bool = True) -> tuple[str, ...]:
    """The captions in a file; empty when it holds only blanks. A byte order mark and CRLF are accepted.

    Without `split_lines` the whole file is one caption, its lines joined by blanks.

    Raises:
        MediaError: not readable, not UTF-8 (names the byte), or too long to be captions.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CAPTION_BYTES + 1)
    except OSError as error:
        raise MediaError(f"{path.name} cannot be read: {error.strerror}.", "Check its permissions.") from error
    if len(raw) > MAX_CAPTION_BYTES:
        raise MediaError(f"{path.name} is too long for captions (over 100 kB).", "Shorten it.")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        hint = " (it looks like UTF-16)" if utf16 else ""
        raise MediaError(f"{path.name} is not UTF-8 at byte {error.start}{hint}.", "Save it as UTF-8.") from error
    if "\0" in text:
        raise MediaError(f"{path.name} holds a NUL character, so it is not text.", "Save it as UTF-8 text.")
    lines = tuple(line.strip() for line in re.split(r"\r\n|\r|\n", text) if line.strip())
    return lines if split_lines or not lines else (" ".join(lines),)
