"""Finished videos against one another: which settings differ, and how far apart the pictures are.

Frames are uint8 [T, H, W, 3]; levels are 0 to 255.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from studio.core.errors import ConfigError
from studio.core.sample.figures import decibels
from studio.core.sample.gallery import GalleryVideo
from studio.core.sample.video import VideoShape, iterate_video, video_shape

MOST = 8
"""Videos that are compared at once."""
SETTINGS = (
    "model", "loras", "prompt", "negative_prompt", "later_prompts", "start_frame_sha256", "clip_sha256", "clip_fps",
    "seed", "num_frames", "height", "width", "num_inference_steps", "guidance_scale", "schedule", "attention",
    "refinement", "num_segments", "num_overlap_frames", "gpus",
)  # fmt: skip
"""In the order in which they are told; those of a later version come after them."""
FOUND = frozenset({
    "attention_reason", "attention_sparsity", "attention_block", "crop", "device", "dtype", "figures", "group",
    "guidance_batched", "label", "refined_height", "refined_width", "seconds", "fps",
})  # fmt: skip
"""What a video says of itself that nobody asked for, or that follows from what was; attention is put together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SettingRow:
    """What several videos have for one setting."""

    key: str
    """As in the mp4."""
    values: tuple[Any, ...]
    """Of each video; None where it has none. Of `attention`: (kind, sparsity or None, block or None); of `loras`:
    (name, strength) of each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureDifference:
    """How far the pictures of a video are from those of another one, over the frames that both have."""

    psnr: tuple[float, ...]
    """Decibels of each frame."""
    error: float
    """Norm of the difference over the norm of the other video's levels."""
    drift: float
    """Mean difference, levels."""

    @property
    def worst(self) -> int:
        """The frame that differs most, from 0."""
        return int(np.argmin(self.psnr))

    @property
    def mean_psnr(self) -> float:
        """Mean of the frames, decibels."""
        return sum(self.psnr) / len(self.psnr)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two videos or more; the first is what the others are held against."""

    videos: tuple[GalleryVideo, ...]
    shapes: tuple[VideoShape, ...]
    differences: tuple[SettingRow, ...]
    pictures: tuple[PictureDifference | None, ...]
    """Of each video against the first: None for the first itself, and where sizes or rates differ."""

    @property
    def is_pixelwise(self) -> bool:
        """True when all have one size and one rate: a pixel of one is a pixel of the others."""
        return _is_pixelwise(self.shapes)


def compare_videos(videos: Sequence[GalleryVideo]) -> Comparison:
    """Reads the videos and holds them against the first.

    Raises:
        ConfigError: there are fewer than two, or more than `MOST`.
        MediaError: one cannot be read.
    """
    if not 2 <= len(videos) <= MOST:
        raise ConfigError(f"{len(videos)} videos cannot be compared.", f"Choose 2 to {MOST}.")
    shapes = tuple(video_shape(video.path) for video in videos)
    base, *others = videos
    alike = _is_pixelwise(shapes)
    found: list[PictureDifference | None] = [None] * len(others)
    if alike:
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(partial(picture_difference, base.path), [other.path for other in others]))
    return Comparison(
        videos=tuple(videos), shapes=shapes, differences=setting_differences(videos), pictures=(None, *found)
    )


def picture_difference(base: Path, other: Path) -> PictureDifference:
    """How far `other` is from `base`, frame by frame; both have one size. Raises MediaError: one cannot be read."""
    errors, norm, drift = list[float](), 0.0, 0.0
    for a, b in zip(iterate_video(base), iterate_video(other), strict=False):
        levels = a.astype(np.float32).ravel()
        difference = levels - b.ravel()
        errors.append(float(difference @ difference) / difference.size)
        norm += float(levels @ levels) / levels.size
        drift += float(np.abs(difference).mean())
    return PictureDifference(
        psnr=tuple(decibels(error) for error in errors),
        error=math.sqrt(sum(errors) / norm) if norm else 0.0,
        drift=drift / len(errors),
    )


def moments(shapes: Sequence[VideoShape], count: int) -> tuple[float, ...]:
    """`count` evenly spaced frames of the longest video, from its first to its last, in seconds."""
    longest = max(shapes, key=lambda shape: (shape.num_frames - 1) / shape.fps)
    indices = np.linspace(0, longest.num_frames - 1, count).round()
    return tuple(float(index / longest.fps) for index in indices)


def frames_at(path: Path, seconds: Sequence[float]) -> np.ndarray:
    """uint8 [T, H, W, 3]: what is seen at these seconds; after its end, the last frame. Raises MediaError."""
    shape = video_shape(path)
    wanted = [min(shape.num_frames - 1, round(second * shape.fps)) for second in seconds]
    held = {index: frame for index, frame in enumerate(iterate_video(path)) if index in wanted}
    return np.stack([held[index] for index in wanted])


def setting_differences(videos: Sequence[GalleryVideo]) -> tuple[SettingRow, ...]:
    """The settings in which the videos differ."""
    return tuple(row for row in setting_rows(videos) if any(value != row.values[0] for value in row.values))


def setting_rows(videos: Sequence[GalleryVideo]) -> tuple[SettingRow, ...]:
    """Every setting that one of the videos has, alike or not."""
    names = _lora_names(videos)
    settings = [_settings(video, names) for video in videos]
    there = dict.fromkeys(key for one in settings for key in one)
    keys = [*(key for key in SETTINGS if key in there), *(key for key in there if key not in SETTINGS)]
    return tuple(SettingRow(key=key, values=tuple(one.get(key) for one in settings)) for key in keys)


def _settings(video: GalleryVideo, names: Mapping[Path, str]) -> dict[str, Any]:
    settings = {key: value for key, value in video.settings.items() if key not in FOUND}
    if "attention" in video.settings:
        block = video.settings.get("attention_block")
        sparsity = video.settings.get("attention_sparsity")
        settings["attention"] = (video.settings["attention"], sparsity, tuple(block) if block else None)
    settings["loras"] = tuple((names[path], strength) for path, strength in video.loras)
    return settings


def _lora_names(videos: Sequence[GalleryVideo]) -> dict[Path, str]:
    """The end of each LoRA's path that tells it from the others: two checkpoints of a run have one file name."""
    paths = {path for video in videos for path, _ in video.loras}
    return {path: _end(path, paths) for path in paths}


def _end(path: Path, others: set[Path]) -> str:
    count = 1
    while count < len(path.parts) and any(o != path and o.parts[-count:] == path.parts[-count:] for o in others):
        count += 1
    return "/".join(path.parts[-count:])


def _is_pixelwise(shapes: Sequence[VideoShape]) -> bool:
    return len({(shape.height, shape.width, shape.fps) for shape in shapes}) == 1
