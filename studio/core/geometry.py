"""From pixels and frames to latents and tokens: every size rule of the model, derived from its strides."""

from __future__ import annotations

import math
from dataclasses import dataclass

from studio.core.published_buckets import published_size


@dataclass(frozen=True, slots=True)
class Grid:
    """Counts along time, height and width, of latents or of tokens."""

    t: int
    h: int
    w: int

    @property
    def size(self) -> int:
        """Number of cells."""
        return self.t * self.h * self.w


@dataclass(frozen=True, kw_only=True, slots=True)
class GridSpec:
    """Strides of one checkpoint, from `vae/config.json` and `dit/config.json`."""

    temporal_stride: int = 4
    """Frames per latent after the first (`AutoencoderKLWan.scale_factor_temporal`)."""
    spatial_stride: int = 8
    """Pixels per latent (`AutoencoderKLWan.scale_factor_spatial`)."""
    patch: int = 2
    """Latents per token in height and in width (`patch_size` of the transformer)."""
    attention_block: tuple[int, int, int] = (4, 4, 4)
    """Tokens of an attention block, (t, h, w) (`bsa_params.chunk_3d_shape_q`)."""

    @property
    def pixel_multiple(self) -> int:
        """Height and width must be multiples of this to be legal for the model (published: 16)."""
        return self.spatial_stride * self.patch

    @property
    def bucket_alignment(self) -> int:
        """Height and width on this grid also fill whole attention blocks (published: 64)."""
        return self.pixel_multiple * max(self.attention_block[1:])

    def is_legal_size(self, height: int, width: int) -> bool:
        """True when the model can take this size in pixels."""
        unit = self.pixel_multiple
        return height >= unit and width >= unit and height % unit == 0 and width % unit == 0

    def is_legal_frame_count(self, num_frames: int) -> bool:
        """True when `(num_frames - 1) % 4 == 0` (decisions: this rule and nothing else)."""
        return num_frames >= 1 and (num_frames - 1) % self.temporal_stride == 0

    def floor_frame_count(self, num_frames: int) -> int:
        """The largest legal frame count that is at most `num_frames`; 0 when there is none."""
        return 0 if num_frames < 1 else (num_frames - 1) // self.temporal_stride * self.temporal_stride + 1

    def latent_grid(self, num_frames: int, height: int, width: int) -> Grid:
        """Latent counts of a clip of legal size, in pixels and frames."""
        return Grid(
            (num_frames - 1) // self.temporal_stride + 1,
            height // self.spatial_stride,
            width // self.spatial_stride,
        )

    def token_grid(self, num_frames: int, height: int, width: int) -> Grid:
        """Token counts of a clip of legal size, in pixels and frames."""
        latents = self.latent_grid(num_frames, height, width)
        return Grid(latents.t, latents.h // self.patch, latents.w // self.patch)


def round_to_grid(value: float, alignment: int) -> int:
    """Nearest multiple of `alignment`, at least one, ties to even multiples.

    Source: SimpleTuner's `near(v) = max(A, round(v / A) * A)` with Python's banker's rounding.
    """
    return max(alignment, round(value / alignment) * alignment)


def bucket_size(height: int, width: int, *, resolution: float, resolution_type: str, alignment: int) -> tuple[int, int]:
    """Target (height, width) in pixels of a clip under SimpleTuner's bucket formulas, or from the published tables.

    `resolution_type` is `pixel` (edge of the shorter side), `area` (megapixels), `pixel_area` (the edge of a
    square of that area) or `published` (480 or 720: see `published_buckets.py`). For SimpleTuner's three the
    aspect ratio is width / height rounded to two digits, as there.
    Source: SimpleTuner's bucket maths; its order-dependent reuse of the first size seen is left out.
    """
    if resolution_type == "published":
        return published_size(height, width, int(resolution), alignment)
    aspect = round(width / height, 2)
    if resolution_type == "pixel":
        if width < height:
            return round_to_grid(int(resolution / aspect), alignment), round_to_grid(resolution, alignment)
        return round_to_grid(resolution, alignment), round_to_grid(int(resolution * aspect), alignment)
    megapixels = resolution if resolution_type == "area" else resolution**2 / 1e6
    edge = round_to_grid(int(math.sqrt(megapixels * 1e6)), alignment)
    if aspect == 1.0:
        return edge, edge
    root = math.sqrt(aspect)
    return round_to_grid(edge / root, alignment), round_to_grid(edge * root, alignment)
