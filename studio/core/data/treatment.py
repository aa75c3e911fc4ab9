"""Everything that happens to a clip on its way to the trainer, in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from studio.core.data.decode import cover_box
from studio.core.geometry import Grid, GridSpec
from studio.core.types import Bucket, Clip, Pair


@dataclass(frozen=True, kw_only=True, slots=True)
class Treatment:
    """What a clip becomes in its bucket, and what it loses."""

    crop_box: tuple[float, float, float, float]
    """(left, top, right, bottom) in pixels of the clip: what is kept, and scaled to the bucket."""
    share_cropped: float
    """Of the clip's area, 0..1."""
    fps: float
    """Frames per second at which the clip is read: its own, or the rate it is converted to."""
    num_frames: int
    """Frames that are trained."""
    num_source_frames: int
    """Different frames of the clip among them; fewer than `num_frames` where a conversion repeats some."""
    num_frames_lost: int
    """Frames of the clip that are not trained: dropped by the conversion, or after the end."""
    seconds_lost: float
    """What is left out at the end of the clip, in its own time."""
    latents: Grid
    tokens: Grid
    num_blocks: int
    """Attention blocks over the token grid, of the block-sparse kernels."""
    num_ragged_blocks: int
    """Those of them at the far ends of the grid that are not full."""
    is_legal: bool
    """The clip's own size is what the model can take (published: multiples of 16)."""
    is_on_grid: bool
    """The clip's own size also fills whole attention blocks in height and width (published: multiples of 64)."""

    @property
    def fills_blocks(self) -> bool:
        """True when the attention blocks divide the token grid evenly."""
        return self.num_ragged_blocks == 0


def treatment_of(pair: Pair, spec: GridSpec | None = None) -> Treatment | None:
    """What happens to the clip of a pair; None when it has no bucket."""
    if pair.clip is None or pair.bucket is None:
        return None
    return treat(pair.clip, pair.bucket, fps=pair.fps, frames=pair.frame_indices, spec=spec)


def treat(
    clip: Clip,
    bucket: Bucket,
    *,
    fps: float | None = None,
    frames: Sequence[int] = (),
    spec: GridSpec | None = None,
) -> Treatment:
    """What happens to a clip in a bucket, read at `fps` as the frames `frames`, both as in `Pair`."""
    spec = spec or GridSpec()
    left, top, right, bottom = box = cover_box(clip.height, clip.width, bucket.height, bucket.width)
    read_at = fps or clip.fps
    num_source = len(set(frames)) if frames else bucket.num_frames
    tokens = spec.token_grid(bucket.num_frames, bucket.height, bucket.width)
    sides = tuple(zip((tokens.t, tokens.h, tokens.w), spec.attention_block, strict=True))
    all_blocks, full_blocks = Grid(*(-(-side // edge) for side, edge in sides)), Grid(*(a // b for a, b in sides))
    grid = spec.bucket_alignment
    return Treatment(
        crop_box=box,
        share_cropped=max(0.0, 1 - (right - left) * (bottom - top) / (clip.width * clip.height)),
        fps=read_at,
        num_frames=bucket.num_frames,
        num_source_frames=num_source,
        num_frames_lost=clip.num_frames - num_source,
        seconds_lost=max(0.0, clip.num_frames / clip.fps - bucket.num_frames / read_at),
        latents=spec.latent_grid(bucket.num_frames, bucket.height, bucket.width),
        tokens=tokens,
        num_blocks=all_blocks.size,
        num_ragged_blocks=all_blocks.size - full_blocks.size,
        is_legal=spec.is_legal_size(clip.height, clip.width),
        is_on_grid=clip.height % grid == 0 and clip.width % grid == 0,
    )
