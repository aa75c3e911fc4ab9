"""Names for what is found again by its content; without torch, so that a check starts at once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from studio.core.errors import MediaError


def cache_key(*parts: str | int | float | tuple[int, ...]) -> str:
    """sha256 of everything that a cached thing depends on."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes. Raises MediaError."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise MediaError(f"{path.name} cannot be read: {error.strerror}.", "Check the dataset again.") from error
