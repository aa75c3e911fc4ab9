"""Frames and images as arrays; clips and start frames go through one geometry."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from av.video.frame import VideoFrame
from PIL import Image

from studio.core.data.container import DECODER_ERRORS, open_clip, upright
from studio.core.data.probe import load_image
from studio.core.errors import DamagedClipError, DatasetError, MediaError
from studio.core.types import Clip, DatasetReport, IssueCode, Pair


def read_frames(clip: Clip, num_frames: int) -> np.ndarray:
    """The first `num_frames` frames of a probed clip as shown: uint8 [T,H,W,3], RGB.

    Raises:
        MediaError: the clip holds fewer frames, or its file has changed or gone since it was probed.
    """
    if not 0 < num_frames <= clip.num_frames:
        raise MediaError(
            f"{clip.path.name} has {clip.num_frames} frames; {num_frames} were asked for.",
            f"Ask for 1 to {clip.num_frames}.",
        )
    frames = _read_decord(clip, num_frames) if clip.reader == "decord" else _read_pyav(clip, num_frames)
    if frames.shape != (num_frames, clip.height, clip.width, 3):
        raise DamagedClipError(
            f"{clip.path.name} has changed since it was checked: {frames.shape[0]} frames of "
            f"{frames.shape[1]}x{frames.shape[2]} were read.",
            "Check the dataset again.",
        )
    return frames


def _read_decord(clip: Clip, num_frames: int) -> np.ndarray:
    import decord

    with open_clip(clip.path):
        pass  # the gate of `container.py` again: the file may be another one by now
    try:
        return decord.VideoReader(str(clip.path)).get_batch(range(num_frames)).asnumpy()
    except (RuntimeError, IndexError, decord.DECORDError) as error:
        raise DamagedClipError(
            f"{clip.path.name} cannot be read up to frame {num_frames}.", "Check the dataset again."
        ) from error


def _read_pyav(clip: Clip, num_frames: int) -> np.ndarray:
    frames: list[np.ndarray] = []
    with open_clip(clip.path) as (container, stream):
        try:
            for frame in container.decode(stream):
                if isinstance(frame, VideoFrame):
                    frames.append(upright(frame))
                if len(frames) == num_frames:
                    break
        except DECODER_ERRORS as error:
            raise DamagedClipError(
                f"{clip.path.name} is readable up to frame {len(frames)} of {num_frames}.",
                "Check the dataset again.",
            ) from error
    if not frames:
        raise MediaError(f"{clip.path.name} holds no video frames.", "Check the dataset again.")
    return np.stack(frames)


def read_image(path: Path) -> np.ndarray:
    """An image as shown: uint8 [H,W,3], RGB. Transparency is laid over white, 16 bits become 8.

    Raises:
        MediaError: empty, not a PNG, JPEG or WebP, cut off, or larger than 64 million pixels.
    """
    image = load_image(path)
    if image.mode.startswith("I"):
        return np.repeat((np.asarray(image, np.uint32) >> 8).astype(np.uint8)[..., None], 3, axis=-1)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def resize_frames(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Frames scaled until they cover height x width, the rest cropped evenly: uint8, same leading axes.

    `frames` is uint8 [T,H,W,3] or [H,W,3]. Lanczos with antialiasing, for clips and start frames alike.
    """
    if frames.ndim == 3:
        return resize_frames(frames[None], height, width)[0]
    if frames.shape[1:3] == (height, width):
        return frames.copy()
    box = cover_box(frames.shape[1], frames.shape[2], height, width)
    resized = [Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS, box=box) for frame in frames]
    return np.stack([np.asarray(frame) for frame in resized])


def cover_box(height: int, width: int, target_height: int, target_width: int) -> tuple[float, float, float, float]:
    """The centred part (left, top, right, bottom) of a picture that has the target's aspect."""
    scale = min(height / target_height, width / target_width)
    left, top = (width - target_width * scale) / 2, (height - target_height * scale) / 2
    return max(0.0, left), max(0.0, top), min(width, width - left), min(height, height - top)


def extract_start_frames(report: DatasetReport, into: Path, *, dataset_id: str | None = None) -> tuple[Path, ...]:
    """Write the first frame of clips without a start frame as `into`/<pair name>.png; return the new files.

    Existing files are left as they are. `dataset_id` limits it to one dataset.

    Raises:
        DatasetError: two datasets have clips of the same name, which would get the same start frame.
        MediaError: a clip cannot be read any more.
    """
    pairs = [p for p in report.pairs if _lacks_start_frame(p) and dataset_id in (None, p.dataset_id)]
    owners: dict[str, str] = {}
    for pair in pairs:
        if owners.setdefault(pair.name, pair.dataset_id) != pair.dataset_id:
            raise DatasetError(
                f"{pair.name} is a clip of {owners[pair.name]} and of {pair.dataset_id}.",
                "Take the start frames of one dataset at a time, into a folder for each.",
            )
    return tuple(path for pair in pairs if (path := _write_start_frame(pair, into)) is not None)


def _lacks_start_frame(pair: Pair) -> bool:
    return pair.clip is not None and any(i.code is IssueCode.START_FRAME_MISSING for i in pair.issues)


def _write_start_frame(pair: Pair, into: Path) -> Path | None:
    """The path written, or None when the file is there already."""
    target = into / f"{pair.name}.png"
    if pair.clip is None or target.exists():
        return None
    encoded = io.BytesIO()
    Image.fromarray(read_frames(pair.clip, 1)[0]).save(encoded, format="PNG")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with target.open("xb") as file:
            file.write(encoded.getbuffer())
    except FileExistsError:
        return None
    return target
