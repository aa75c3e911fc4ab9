"""Whether a sample has room on the device, and what makes it fit when it has not."""

from __future__ import annotations

from dataclasses import dataclass, replace

from studio.core.geometry import round_to_grid
from studio.core.model.load import ModelBundle
from studio.core.model.memory import NOTHING_HELPS, cache_bytes, forward_bytes, free_bytes, freed_by_swap, swap_for

LEAST_MISSING = 0.2
"""Share of what is needed that is taken to be missing at least: where memory ran out, an estimate that says otherwise
was wrong.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoSize:
    """Size of a video, in frames and pixels."""

    num_frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.num_frames} frames of {self.height}x{self.width}"


def has_room_for_both(bundle: ModelBundle, size: VideoSize) -> bool:
    """True when the two prompts of guidance can run in one batch; on a CPU they always do."""
    free = free_bytes(bundle.device)
    return free is None or needed_bytes(bundle, size, num_prompts=2) <= free


def needed_bytes(bundle: ModelBundle, size: VideoSize, *, num_prompts: int = 1) -> int:
    """Bytes beside the weights that denoising takes: the clean latent's keys and values, and a forward's work."""
    grid = bundle.grid.token_grid(size.num_frames, size.height, size.width)
    return cache_bytes(bundle.dit, grid.h * grid.w) + num_prompts * forward_bytes(bundle.dit, grid.size)


def room_for_sample(bundle: ModelBundle, size: VideoSize) -> str:
    """The cheapest change after denoising has run out of memory: swap, fewer frames, or a smaller size."""
    free, needed = free_bytes(bundle.device), needed_bytes(bundle, size)
    least = round(LEAST_MISSING * needed)
    if free is None:
        return _smaller(bundle, size, needed - least)
    missing = max(needed - free, least)
    room = needed - missing + max(0, freed_by_swap(bundle.dit, len(bundle.dit.blocks) - 1))
    return swap_for(bundle.dit, missing) or _smaller(bundle, size, room)


def room_for_decoding(bundle: ModelBundle, size: VideoSize) -> str:
    """The cheapest change after decoding has run out of memory: tiles before all else."""
    if not bundle.vae.use_tiling:
        return "Set vae_enable_tiling to true in config.json."
    return room_for_sample(bundle, size)


def _smaller(bundle: ModelBundle, size: VideoSize, room: int) -> str:
    """The most frames, else the largest size, that `room` is enough for."""
    stride, unit = bundle.grid.temporal_stride, bundle.grid.pixel_multiple
    for num_frames in range(size.num_frames - stride, stride, -stride):
        if needed_bytes(bundle, replace(size, num_frames=num_frames)) <= room:
            return f"Render {num_frames} frames or fewer."
    short = min(size.height, size.width)
    for edge in range(short - unit, 0, -unit):
        height, width = (round_to_grid(side * edge / short, unit) for side in (size.height, size.width))
        if needed_bytes(bundle, replace(size, height=height, width=width)) <= room:
            return f"Render a smaller size, {height}x{width} (height x width) or less."
    return NOTHING_HELPS
