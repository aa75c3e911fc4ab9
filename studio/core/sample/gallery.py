"""A folder of samples: each video with its settings inside, and the request that made it beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import av

from studio.core.data.probe_cache import FileState, file_state
from studio.core.errors import MediaError
from studio.core.events import SampleDone, SampleEvent
from studio.core.model.load import ModelBundle
from studio.core.sample.request import SampleRequest
from studio.core.sample.request_file import REQUEST, delete_request, load_request, save_request
from studio.core.sample.sampler import sample
from studio.core.sample.video import make_folder, read_settings, unfinished_video

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
    loras: tuple[tuple[Path, float], ...]
    """(file, strength) of each; of a video without its request beside it, the file's name alone."""

    @property
    def group(self) -> str:
        """Videos to be compared with each other have the same; empty: none."""
        return str(self.settings.get("group") or "")

    @property
    def gpus(self) -> int:
        """That rendered it."""
        gpus = self.settings.get("gpus")
        return gpus if isinstance(gpus, int) else 1

    @property
    def label(self) -> str:
        """What tells it from the others of its group; else its name."""
        return str(self.settings.get("label") or self.name)


@dataclass(slots=True)
class GalleryReader:
    """Reads galleries again and again; a video is read once in each of its states."""

    held: dict[FileState, GalleryVideo] = field(default_factory=dict)

    def videos(self, folder: Path) -> tuple[GalleryVideo, ...]:
        """As `list_videos`."""
        states = [file_state(file) for file in folder.glob("sample-*.mp4") if NAME.fullmatch(file.stem)]
        states = [state for state in states if state[1]]
        # What was deleted is forgotten.
        self.held = {state: self.held.get(state) or read_gallery_video(state[0]) for state in states}
        return tuple(sorted(self.held.values(), key=lambda video: int(video.name[7:]), reverse=True))


def sample_into(
    request: SampleRequest, bundle: ModelBundle, folder: Path, *, should_stop: Callable[[], bool] = lambda: False
) -> Iterator[SampleEvent]:
    """As `sample`, into the gallery under the next free name, with the request beside the video. Raises as `sample`."""
    yield from sample_as(request, bundle, new_video(folder), should_stop=should_stop)


def sample_as(
    request: SampleRequest, bundle: ModelBundle, out: Path, *, should_stop: Callable[[], bool] = lambda: False
) -> Iterator[SampleEvent]:
    """As `sample_into`, under the name that `new_video` gave."""
    try:
        for event in sample(request, bundle, out, should_stop=should_stop):
            if isinstance(event, SampleDone):
                save_request(request, out.parent, out.stem)
            yield event
    finally:
        _drop_empty(out)


def abandon_video(folder: Path, name: str) -> None:
    """Deletes what a process that was killed left of the video that it rendered under this name; never a whole one."""
    out = folder / f"{name}.mp4"
    if NAME.fullmatch(name):
        unfinished_video(out).unlink(missing_ok=True)
        _drop_empty(out)


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
    return GalleryReader().videos(folder)


def find_videos(folder: Path, names: Iterable[str]) -> tuple[GalleryVideo, ...]:
    """The videos of these names, in their order. Raises MediaError: there is no such video."""
    return tuple(read_gallery_video(_check(folder, name)) for name in names)


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


def read_gallery_video(file: Path) -> GalleryVideo:
    """What an mp4, and the request beside it if there is one, say; of any folder."""
    try:
        settings = read_settings(file)
    except (av.FFmpegError, OSError):
        settings = {}
    figures = settings.get("figures")
    return GalleryVideo(
        name=file.stem,
        path=file,
        settings=settings,
        figures=figures if isinstance(figures, dict) else {},
        loras=_loras(file, settings),
    )


def _loras(file: Path, settings: Mapping[str, Any]) -> tuple[tuple[Path, float], ...]:
    try:
        request = json.loads(file.with_name(f"{file.stem}{REQUEST}").read_text(encoding="utf-8"))
        return tuple((Path(lora["path"]), float(lora["strength"])) for lora in request["loras"])
    except (OSError, ValueError, TypeError, KeyError):
        pass
    try:
        return tuple((Path(lora["file"]), float(lora["strength"])) for lora in settings.get("loras", []))
    except (ValueError, TypeError, KeyError):
        return ()


def _drop_empty(out: Path) -> None:
    if out.exists() and not out.stat().st_size:
        out.unlink()


def _check(folder: Path, name: str) -> Path:
    """The file of a video; a name from outside is never a path."""
    file = folder / f"{name}.mp4"
    if not NAME.fullmatch(name) or not file.is_file() or not file.stat().st_size:
        raise MediaError(f"There is no video {name[:80]} in the gallery.", "Refresh the gallery.")
    return file
