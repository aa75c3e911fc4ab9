"""A folder of samples: each video with its settings inside, and the request that made it beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import av

from studio.core.errors import MediaError
from studio.core.events import SampleDone, SampleEvent
from studio.core.model.load import ModelBundle
from studio.core.sample.request import SampleRequest
from studio.core.sample.request_file import delete_request, load_request, save_request
from studio.core.sample.sampler import sample
from studio.core.sample.video import make_folder, read_settings

NAME = re.compile(r"sample-\d{4,}")


@dataclass(frozen=True, kw_only=True, slots=True)
class GalleryVideo:
    """A video of the gallery."""

    name: str
    """Without the extension."""
    path: Path
    settings: Mapping[str, Any]
    """What the mp4 says of itself (`describe`); empty where it cannot be read."""
    figures: Mapping[str, float | None]
    """`start_psnr`, `motion`, `flicker`, `color_drift` (`VideoFigures`)."""


def sample_into(
    request: SampleRequest, bundle: ModelBundle, folder: Path, *, should_stop: Callable[[], bool] = lambda: False
) -> Iterator[SampleEvent]:
    """As `sample`, into the gallery under the next free name, with the request beside the video. Raises as `sample`."""
    out = new_video(folder)
    try:
        for event in sample(request, bundle, out, should_stop=should_stop):
            if isinstance(event, SampleDone):
                save_request(request, folder, out.stem)
            yield event
    finally:
        if out.exists() and not out.stat().st_size:
            out.unlink()


def new_video(folder: Path) -> Path:
    """An empty file of the next free name, such as `sample-0007.mp4`: nobody else takes it. Raises MediaError."""
    make_folder(folder)
    taken = [int(file.stem.partition("-")[2]) for file in folder.glob("sample-*.mp4") if NAME.fullmatch(file.stem)]
    for number in count(max(taken, default=0) + 1):
        out = folder / f"sample-{number:04d}.mp4"
        try:
            out.touch(exist_ok=False)
        except FileExistsError:
            continue
        except OSError as error:
            raise MediaError(f"{out.name} cannot be written: {error.strerror}.", "Check the disk.") from error
        return out
    raise AssertionError("there is always another number")


def list_videos(folder: Path) -> tuple[GalleryVideo, ...]:
    """The newest first; those that are still being rendered are not among them."""
    files = [file for file in folder.glob("sample-*.mp4") if NAME.fullmatch(file.stem) and file.stat().st_size]
    return tuple(_video(file) for file in sorted(files, key=lambda file: int(file.stem[7:]), reverse=True))


def settings_again(folder: Path, name: str) -> SampleRequest:
    """The request that made a video. Raises MediaError: there is no such video; ConfigError: nor its request."""
    _check(folder, name)
    return load_request(folder, name)


def delete_video(folder: Path, name: str) -> None:
    """Deletes a video and its request. Raises MediaError."""
    file = _check(folder, name)
    try:
        file.unlink()
        delete_request(folder, name)
    except OSError as error:
        raise MediaError(f"The video {name} cannot be deleted: {error.strerror}.", "Close what shows it.") from error


def _video(file: Path) -> GalleryVideo:
    try:
        settings = read_settings(file)
    except (av.FFmpegError, OSError):
        settings = {}
    figures = settings.get("figures")
    return GalleryVideo(
        name=file.stem, path=file, settings=settings, figures=figures if isinstance(figures, dict) else {}
    )


def _check(folder: Path, name: str) -> Path:
    """The file of a video; a name from outside is never a path."""
    file = folder / f"{name}.mp4"
    if not NAME.fullmatch(name) or not file.is_file() or not file.stat().st_size:
        raise MediaError(f"There is no video {name[:80]} in the gallery.", "Refresh the gallery.")
    return file
