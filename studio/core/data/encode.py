"""Pairs as tensors: decoded, resized, encoded once, and read from the caches from then on.

Letters: C channels, T latents, H W, n text tokens, E encoder width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from studio.core.config import DataConfig, DatasetConfig
from studio.core.data.cache import LatentCache
from studio.core.data.decode import frames_as_trained, start_frame_as_trained
from studio.core.data.digest import cache_key, file_hash
from studio.core.data.seeds import seeded
from studio.core.errors import DatasetError
from studio.core.types import Bucket, Pair

_GEOMETRY = "cover, lanczos"
"""Part of every key: how `resize_frames` fits a picture. Change it when that changes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoders:
    """The model's eyes and ears, handed in; each with the id of the weights behind it."""

    video: Callable[[np.ndarray, torch.Generator], torch.Tensor]
    """uint8 [T, H, W, 3] to normalised latents [C, T, H, W]."""
    video_id: str
    text: Callable[[str], torch.Tensor]
    """A caption to its [n, E] embeddings, padding left out."""
    text_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedPair:
    """What a training step needs of a pair; tensors on the CPU."""

    latents: torch.Tensor
    """[C, T, H, W] of the clip."""
    start_latent: torch.Tensor
    """[C, 1, H, W] of the start frame."""


class PairEncoder:
    """Encodes pairs and captions through caches: clips in their dataset's `cache_dir`, start frames in that of their
    own dataset, whatever names none in `default_cache`.
    """

    def __init__(self, data: DataConfig, encoders: Encoders, default_cache: Path) -> None:
        self._data = data
        self._encoders = encoders
        self._default_cache = default_cache
        self._hashes: Mapping[Path, str] = {}

    def fill(self, pairs: Sequence[Pair], *, rank: int = 0, count: int = 1) -> Iterator[tuple[int, int]]:
        """Encodes everything of `pairs` that is not in the caches; yields (done, total) after each piece.

        Of `count` processes that do this together the one of this `rank` takes every `count`-th piece, and yields when
        each has had one.
        """
        self._hashes = {path: file_hash(path) for pair in pairs for path in _files(pair)}
        captions = list(dict.fromkeys(caption for pair in pairs for caption in pair.captions))
        total = len(pairs) + len(captions)
        for first in range(0, total, count):
            if (own := first + rank) < len(pairs):
                self.pair(pairs[own])
            elif own < total:
                self.text(captions[own - len(pairs)])
            yield min(first + count, total), total

    def pair(self, pair: Pair) -> EncodedPair:
        """The latents of a ready pair. A pair without a start frame is conditioned on the clip's first frame.

        Raises:
            DatasetError: the pair is not ready.
            MediaError: a file cannot be read any more, or the cache cannot be written.
        """
        clip, bucket = pair.clip, pair.bucket
        if clip is None or bucket is None:
            raise DatasetError(f"{pair.name} is not ready to train on.", "Check the dataset, and mend it.")
        dataset = self._data.by_id[pair.dataset_id]
        key = self._key("clip", pair.clip_path, bucket, clip.reader, pair.frame_indices or bucket.num_frames)
        latents = self._cache(dataset).get_or_compute(key, lambda: self._encode(frames_as_trained(pair), key))
        return EncodedPair(latents=latents, start_latent=self._start_latent(pair, clip.reader, bucket, dataset))

    def text(self, caption: str) -> torch.Tensor:
        """The [n, E] embeddings of a caption."""
        cache = LatentCache(self._default_cache)
        return cache.get_or_compute(
            cache_key("text", caption, self._encoders.text_id), lambda: self._encoders.text(caption)
        )

    def _start_latent(self, pair: Pair, reader: str, bucket: Bucket, dataset: DatasetConfig) -> torch.Tensor:
        if pair.start_frame is None:
            owner, key = dataset, self._key("first frame", pair.clip_path, bucket, reader, 1)
        else:
            image = pair.start_frame.path
            owner, key = self._start_frame_dataset(image, dataset), self._key("start frame", image, bucket, "pillow", 1)
        return self._cache(owner).get_or_compute(key, lambda: self._encode(start_frame_as_trained(pair)[None], key))

    def _encode(self, frames: np.ndarray, key: str) -> torch.Tensor:
        return self._encoders.video(frames, seeded(key))

    def _key(self, kind: str, path: Path, bucket: Bucket, reader: str, frames: int | tuple[int, ...]) -> str:
        """`frames`: how many of the first frames, or which ones."""
        content = self._hashes.get(path) or file_hash(path)
        size = (bucket.height, bucket.width)
        return cache_key(kind, content, frames, *size, reader, _GEOMETRY, self._encoders.video_id)

    def _cache(self, dataset: DatasetConfig) -> LatentCache:
        return LatentCache(dataset.cache_dir or self._default_cache)

    def _start_frame_dataset(self, image: Path, dataset: DatasetConfig) -> DatasetConfig:
        """The dataset that a start frame lies in: one of those that the clips name, or the clips' own."""
        named = [self._data.by_id[name] for name in dataset.conditioning_ids]
        return next((owner for owner in named if image.is_relative_to(owner.directory)), dataset)


def _files(pair: Pair) -> tuple[Path, ...]:
    return (pair.clip_path, *((pair.start_frame.path,) if pair.start_frame else ()))
