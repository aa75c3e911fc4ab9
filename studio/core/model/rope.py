"""Three-axis rotary position embedding.

Letters: B batch, N heads, S tokens, D head width.
"""

from __future__ import annotations

import torch

from studio.core.geometry import Grid

ROPE_BASE = 10000.0
"""Source: the published transformer; the same base on every axis."""


def axis_widths(head_width: int) -> tuple[int, int, int]:
    """Channels of a head given to time, height and width: (44, 42, 42) at 128.

    Source: the published split (D - 4 * (D // 6), 2 * (D // 6), 2 * (D // 6)).
    """
    side = 2 * (head_width // 6)
    return head_width - 2 * side, side, side


def rotary_table(grid: Grid, head_width: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(cos, sin), each fp32 [S, D], of the tokens of `grid` in (t, h, w) order, positions from zero."""
    angles = []
    counts = (grid.t, grid.h, grid.w)
    for axis, width in enumerate(axis_widths(head_width)):
        exponent = torch.arange(0, width, 2, device=device, dtype=torch.float32) / width
        position = torch.arange(counts[axis], device=device, dtype=torch.float32)
        angle = torch.outer(position, ROPE_BASE**-exponent).repeat_interleave(2, dim=-1)
        shape = [1, 1, 1, width]
        shape[axis] = counts[axis]
        angles.append(angle.view(shape).expand(*counts, width))
    angle_SD = torch.cat(angles, dim=-1).reshape(grid.size, head_width)
    return angle_SD.cos(), angle_SD.sin()


def rotate(x_BNSD: torch.Tensor, cos_SD: torch.Tensor, sin_SD: torch.Tensor) -> torch.Tensor:
    """`x` rotated in fp32 by interleaved pairs, (x0, x1) -> (-x1, x0), back in its own dtype."""
    x = x_BNSD.float()
    pairs = x.unflatten(-1, (-1, 2))
    turned = torch.stack((-pairs[..., 1], pairs[..., 0]), dim=-1).flatten(-2)
    return (x * cos_SD + turned * sin_SD).to(x_BNSD.dtype)
