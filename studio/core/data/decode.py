"""Frames and images as arrays; clips and start frames go through one geometry."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from av.video.frame import VideoFrame
from PIL import Image

from studio.core.data.container import DECODER_ERRORS, open_clip, upright
from studio.core.data.probe import load_image
from studio.core.errors import DamagedClipError, DatasetError, MediaError
from studio.core.types import Bucket, Clip, Pair


def frames_as_trained(pair: Pair, num_frames: int | None = None) -> np.ndarray:
    """The clip of a pair as the trainer gets it: uint8 [T,H,W,3], RGB, in the size of the pair's bucket.

    After conversion of the frame rate, trim, crop and resize; whoever encodes or shows a clip takes it from here.
    `num_frames` limits it to the first ones.

    Raises:
        DatasetError: the pair has no clip that can be read, or no bucket.
        MediaError: its file has changed or gone since it was checked.
    """
    clip, bucket = _clip_and_bucket(pair)
    frames = (pair.frame_indices or range(bucket.num_frames))[:num_frames]
    return np.stack([resize_frames(frame, bucket.height, bucket.width) for frame in iterate_frames(clip, frames)])


def start_frame_as_trained(pair: Pair) -> np.ndarray:
    """What conditions a pair: its start frame in the size of its bucket, or without one the first frame of its clip.

    uint8 [H,W,3], RGB. Raises as `frames_as_trained`.
    """
    if pair.start_frame is None:
        return frames_as_trained(pair, 1)[0]
    _, bucket = _clip_and_bucket(pair)
    return resize_frames(read_image(pair.start_frame.path), bucket.height, bucket.width)


def _clip_and_bucket(pair: Pair) -> tuple[Clip, Bucket]:
    if pair.clip is None or pair.bucket is None:
        raise DatasetError(f"{pair.name} is not ready to train on.", "Check the dataset, and mend it.")
    return pair.clip, pair.bucket


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
    return np.stack(list(iterate_frames(clip, range(num_frames))))


def iterate_frames(clip: Clip, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """Frames of a probed clip as shown, one at a time: uint8 [H,W,3], RGB. `indices` never fall, but may stay.

    Raises:
        MediaError: the file has changed or gone since it was probed.
    """
    with closing(_decord_frames(clip) if clip.reader == "decord" else _pyav_frames(clip)) as frames:
        numbered = enumerate(frames)
        position, frame = -1, np.empty((0, 0, 3), np.uint8)
        for index in indices:
            while position < index:
                try:
                    position, frame = next(numbered)
                except StopIteration:
                    raise _damaged(clip, position + 1, indices[-1] + 1) from None
            height, width, _ = frame.shape
            if (height, width) != (clip.height, clip.width):
                raise DamagedClipError(
                    f"{clip.path.name} has changed since it was checked: its frames are {height}x{width}, "
                    f"not {clip.height}x{clip.width}.",
                    "Check the dataset again.",
                )
            yield frame


def _damaged(clip: Clip, readable: int, wanted: int) -> DamagedClipError:
    return DamagedClipError(
        f"{clip.path.name} is readable up to frame {readable} of {wanted}.", "Check the dataset again."
    )


def _decord_frames(clip: Clip) -> Generator[np.ndarray]:
    import decord

    with open_clip(clip.path):
        pass  # the gate of `container.py` again: the file may be another one by now
    position = 0
    try:
        reader = decord.VideoReader(str(clip.path))
        while position < len(reader):
            yield reader.next().asnumpy()
            position += 1
    except (RuntimeError, IndexError, StopIteration, decord.DECORDError) as error:
        raise _damaged(clip, position, clip.num_frames) from error


def _pyav_frames(clip: Clip) -> Generator[np.ndarray]:
    position = 0
    with open_clip(clip.path) as (container, stream):
        try:
            for frame in container.decode(stream):
                if isinstance(frame, VideoFrame):
                    yield upright(frame)
                    position += 1
        except DECODER_ERRORS as error:
            raise _damaged(clip, position, clip.num_frames) from error


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
