"""Whether a sample has room on the device, and what makes it fit when it has not."""

from __future__ import annotations

from studio.core.data.bucket import smaller_buckets
from studio.core.model.load import ModelBundle
from studio.core.model.memory import NOTHING_HELPS, cache_bytes, forward_bytes, free_bytes, freed_by_swap, swap_for
from studio.core.remedy import CONFIG_NAME, Change
from studio.core.types import Bucket

LEAST_MISSING = 0.2
"""Share of what is needed that is taken to be missing at least: where memory ran out, an estimate that says otherwise
was wrong.
"""


def has_room_for_both(bundle: ModelBundle, size: Bucket, num_held: int = 1) -> bool:
    """True when the two prompts of guidance can run in one batch; on a CPU they always do."""
    free = free_bytes(bundle.device)
    return free is None or needed_bytes(bundle, size, num_prompts=2, num_held=num_held) <= free


def needed_bytes(bundle: ModelBundle, size: Bucket, *, num_prompts: int = 1, num_held: int = 1) -> int:
    """Bytes beside the weights that denoising takes: the clean latents' keys and values, and a forward's work."""
    grid = bundle.grid.token_grid(size.num_frames, size.height, size.width)
    return cache_bytes(bundle.dit, num_held * grid.h * grid.w) + num_prompts * forward_bytes(bundle.dit, grid.size)


def room_for_sample(bundle: ModelBundle, size: Bucket) -> str | Change:
    """The cheapest change after denoising has run out of memory: swap, fewer frames, or a smaller size."""
    free, needed = free_bytes(bundle.device), needed_bytes(bundle, size)
    least = round(LEAST_MISSING * needed)
    if free is None:
        return _smaller(bundle, size, needed - least)
    missing = max(needed - free, least)
    room = needed - missing + max(0, freed_by_swap(bundle.dit, len(bundle.dit.blocks) - 1))
    return swap_for(bundle.dit, missing) or _smaller(bundle, size, room)


def room_for_decoding(bundle: ModelBundle, size: Bucket) -> str | Change:
    """The cheapest change after decoding has run out of memory: tiles before all else."""
    if not bundle.vae.use_tiling:
        return Change(((CONFIG_NAME, "vae_enable_tiling", True),))
    return room_for_sample(bundle, size)


def _smaller(bundle: ModelBundle, size: Bucket, room: int) -> str:
    """The most frames, else the largest size, that `room` is enough for."""
    for smaller in smaller_buckets(size, bundle.grid):
        if needed_bytes(bundle, smaller) > room:
            continue
        if smaller.num_frames < size.num_frames:
            return f"Render {smaller.num_frames} frames or fewer."
        return f"Render a smaller size, {smaller.height}x{smaller.width} (height x width) or less."
    return NOTHING_HELPS
