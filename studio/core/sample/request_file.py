"""A sample request as files: JSON, with its start frame as a PNG and its clip as an array beside it."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from studio.core.errors import ConfigError
from studio.core.model.lora import LoraFile
from studio.core.sample.request import SampleRequest

START_FRAME, CLIP, REQUEST = ".start.png", ".clip.npy", ".request.json"
"""What is added to the name of a request."""
PIXELS = ("start_frame", "clip")


def save_request(request: SampleRequest, folder: Path, name: str) -> None:
    """Writes `<name>.request.json`, and what it needs beside it, each whole or not at all. Raises ConfigError."""
    values = {f.name: getattr(request, f.name) for f in fields(request) if f.name not in PIXELS}
    values["loras"] = [asdict(lora) | {"path": str(lora.path)} for lora in request.loras]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if request.start_frame is not None:
            with _replaced(folder / f"{name}{START_FRAME}").open("wb") as file:
                Image.fromarray(request.start_frame).save(file, "PNG")
            _place(folder / f"{name}{START_FRAME}")
        if request.clip is not None:
            with _replaced(folder / f"{name}{CLIP}").open("wb") as file:
                np.save(file, request.clip, allow_pickle=False)
            _place(folder / f"{name}{CLIP}")
        write_json(folder / f"{name}{REQUEST}", values)
    except OSError as error:
        raise ConfigError(
            f"The request {name} cannot be kept: {error.strerror or error}.", "Check the disk and the folder."
        ) from error


def load_request(folder: Path, name: str) -> SampleRequest:
    """What `save_request` wrote. Raises ConfigError: it is not there, or cannot be read."""
    try:
        values: dict[str, Any] = json.loads((folder / f"{name}{REQUEST}").read_text(encoding="utf-8"))
        values["loras"] = tuple(
            LoraFile(path=Path(lora["path"]), strength=lora["strength"]) for lora in values["loras"]
        )
        values["later_prompts"] = tuple(values["later_prompts"])
        if (folder / f"{name}{START_FRAME}").is_file():
            with Image.open(folder / f"{name}{START_FRAME}", formats=["PNG"]) as image:
                values["start_frame"] = np.array(image.convert("RGB"))
        if (folder / f"{name}{CLIP}").is_file():
            values["clip"] = np.load(folder / f"{name}{CLIP}", allow_pickle=False)
        return SampleRequest(**values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"The request {name} cannot be read: {error}.", "Ask for the sample again.") from error


def delete_request(folder: Path, name: str) -> None:
    """Deletes what `save_request` wrote, as far as it is there."""
    for ending in (REQUEST, START_FRAME, CLIP):
        (folder / f"{name}{ending}").unlink(missing_ok=True)


def write_json(file: Path, values: Any) -> None:
    """Writes JSON whole or not at all. Raises OSError."""
    _replaced(file).write_text(json.dumps(values, indent=1), encoding="utf-8")
    _place(file)


def _replaced(file: Path) -> Path:
    return file.with_name(f".{file.name}.part")


def _place(file: Path) -> None:
    _replaced(file).replace(file)
