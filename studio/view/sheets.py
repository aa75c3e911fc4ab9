"""Contact sheets: frames of videos side by side, and a dataset at a glance."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from studio.core.data.decode import frames_as_trained, read_frames, read_image
from studio.core.data.probe_cache import file_state
from studio.core.errors import MediaError
from studio.core.types import DatasetReport, Pair
from studio.view.plots import LIGHT, Palette
from studio.view.verdicts import gravest_first, verdict_of
from studio.view.words import Words


def contact_sheet(
    rows: Sequence[tuple[str, np.ndarray]], *, columns: int = 6, palette: Palette = LIGHT, width: float = 9.6
) -> Figure:
    """One row a video, evenly spaced frames from the first to the last, its label above.

    Frames are uint8 [T,H,W,3]; videos may differ in length and size.
    """
    if not rows or columns < 1:
        raise ValueError("a contact sheet needs a video and a column")
    heights = [width / columns * frames.shape[1] / frames.shape[2] + 0.32 for _, frames in rows]
    figure = Figure(figsize=(width, sum(heights)))
    figure.set_facecolor(palette.paper or "none")
    grid = figure.add_gridspec(
        len(rows), columns, height_ratios=heights, wspace=0.04, hspace=0.32 / min(heights),
        left=0.01, right=0.99, bottom=0.01, top=1 - 0.3 / sum(heights),
    )  # fmt: skip
    for row, (label, frames) in enumerate(rows):
        for column, index in enumerate(spaced(len(frames), columns)):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(frames[index])
            axes.set_axis_off()
            if column == 0:
                axes.set_title(label, loc="left", fontsize=10, color=palette.ink)
    return figure


def dataset_sheet(
    report: DatasetReport, w: Words, *, columns: int = 4, max_pairs: int = 12, palette: Palette = LIGHT
) -> Figure:
    """A row a clip: start frame, frames of the clip, caption and verdict; of `max_pairs` clips, the gravest."""
    pairs = gravest_first(report)[:max_pairs]
    figure = Figure(figsize=(9.6, 0.4 + 1.2 * max(1, len(pairs))), layout="constrained")
    figure.set_facecolor(palette.paper or "none")
    grid = figure.add_gridspec(max(1, len(pairs)), columns + 3)
    for row, pair in enumerate(pairs):
        start, frames = start_picture(pair), first_frames(pair, columns)
        pictures = [start, *([None] * columns if frames is None else frames[spaced(len(frames), columns)])]
        for column, picture in enumerate(pictures):
            axes = figure.add_subplot(grid[row, column])
            axes.set_axis_off()
            if row == 0 and column < 2:
                title = w("dataset.start_frame") if column == 0 else w("dataset.clip")
                axes.set_title(title, loc="left", fontsize=9, color=palette.muted)
            if picture is None:
                missing = w("dataset.no_start_frame") if column == 0 else w("dataset.no_picture")
                axes.text(0.5, 0.5, missing, ha="center", va="center", color=palette.muted, fontsize=8)
            else:
                axes.imshow(picture)
        _write_verdict(figure.add_subplot(grid[row, columns + 1 :]), pair, w, palette)
    return figure


def _write_verdict(axes, pair: Pair, w: Words, palette: Palette) -> None:  # noqa: ANN001
    verdict = verdict_of(pair, w)
    axes.set_axis_off()
    caption = pair.captions[0] if pair.captions else w("dataset.no_caption")
    tone = palette.ink if pair.is_ready else palette.warn
    axes.text(0, 0.92, f"{verdict.icon}  {verdict.label}", va="top", color=tone, fontsize=10, parse_math=False)
    axes.text(0, 0.60, _short(pair.name, 40), va="top", color=palette.muted, fontsize=8, parse_math=False)
    axes.text(0, 0.34, _short(caption, 90), va="top", color=palette.ink, fontsize=8, wrap=True, parse_math=False)


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def spaced(length: int, count: int) -> np.ndarray:
    """`count` indices from the first to the last of `length`."""
    return np.linspace(0, length - 1, count).round().astype(int)


def start_picture(pair: Pair) -> np.ndarray | None:
    """The pair's start frame, uint8 [H,W,3], or None where there is none to read."""
    try:
        return read_image(pair.start_frame.path) if pair.start_frame else None
    except (MediaError, OSError):
        return None


def first_frames(pair: Pair, num_frames: int = 1) -> np.ndarray | None:
    """The first frame of the file, or for more than one all that are trained, as they are trained.

    uint8 [T,H,W,3]; of a clip without a bucket, all frames of the file. None where unreadable.
    """
    if pair.clip is None:
        return None
    try:
        if num_frames > 1 and pair.bucket:
            return frames_as_trained(pair)
        return read_frames(pair.clip, 1 if num_frames == 1 else pair.clip.num_frames)
    except (MediaError, OSError):
        return None


def _first_of_video(path: Path) -> np.ndarray | None:
    try:
        with av.open(str(path), format="mov") as container:
            return next(container.decode(video=0)).to_ndarray(format="rgb24")
    except (av.FFmpegError, OSError, ValueError, IndexError, StopIteration):
        return None


def picture_uri(picture: np.ndarray, height: int = 144) -> str:
    """A uint8 [H,W,3] picture, made `height` pixels high, as a data address of a JPEG."""
    image = Image.fromarray(picture)
    image.thumbnail((height * 3, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@dataclass(slots=True)
class Thumbnails:
    """Small pictures of clips and start frames as data addresses; a file is read once in each of its states."""

    height: int = 96
    """Pixels."""
    held: dict[tuple[Path, int, int], str | None] = field(default_factory=dict)

    def start_frame(self, pair: Pair) -> str | None:
        """The start frame; None where there is none to read."""
        if pair.start_frame is None:
            return None
        return self._of(pair.start_frame.path, lambda: start_picture(pair))

    def clip(self, pair: Pair) -> str | None:
        """The first frame of the clip; None where it cannot be read."""

        def first() -> np.ndarray | None:
            frames = first_frames(pair)
            return None if frames is None else frames[0]

        return self._of(pair.clip_path, first)

    def video(self, path: Path) -> str | None:
        """The first frame of an mp4; None where it cannot be read."""
        return self._of(path, lambda: _first_of_video(path))

    def _of(self, path: Path, read: Callable[[], np.ndarray | None]) -> str | None:
        state = file_state(path)
        if state not in self.held:
            picture = read()
            self.held[state] = None if picture is None else picture_uri(picture, self.height)
        return self.held[state]
