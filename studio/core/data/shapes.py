"""A small world of coloured shapes that move as their caption says, and the tracker that measures it.

The tiny checkpoint is trained on it, the demo dataset is drawn from it, and the figures in `assets/README.md` are
measured with it. Letters: B clips, T frames, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.88, 0.16, 0.16),
    "green": (0.14, 0.68, 0.28),
    "blue": (0.16, 0.36, 0.92),
    "yellow": (0.94, 0.80, 0.14),
    "purple": (0.62, 0.22, 0.78),
    "white": (0.97, 0.97, 0.97),
}
"""sRGB in 0..1; the muted backgrounds stay well away from all of them."""

SHAPES = ("circle", "square", "triangle")

BASE_MOTIONS = (
    "moves right", "moves left", "moves up", "moves down",
    "swings right and back", "swings left and back", "grows", "shrinks", "stays still",
)  # fmt: skip
"""What the tiny checkpoint knows."""

EFFECT = "hops"
"""What the demo's LoRA teaches: the shape jumps up and lands where it stood."""

SECOND_EFFECT = "pulses"
"""What the bench of learning teaches too: the shape swells and shrinks back to its size."""

EFFECTS = (EFFECT, SECOND_EFFECT)
"""What the tiny checkpoint does not know."""

MOTIONS = (*BASE_MOTIONS, *EFFECTS)

TRAVEL = 0.28
"""How far a motion goes, in shorter sides of the frame."""


def motion_paths(num_frames: int) -> torch.Tensor:
    """fp32 [M, T, 3]: shift right, shift down (shorter sides of the frame) and scale, of each motion in time."""
    t = torch.linspace(0, 1, num_frames)
    zero, one = torch.zeros_like(t), torch.ones_like(t)
    out_and_back = TRAVEL * torch.sin(math.pi * t)
    arc = 4 * t * (1 - t)
    paths = {
        "moves right": (TRAVEL * t, zero, one),
        "moves left": (-TRAVEL * t, zero, one),
        "moves up": (zero, -TRAVEL * t, one),
        "moves down": (zero, TRAVEL * t, one),
        "swings right and back": (out_and_back, zero, one),
        "swings left and back": (-out_and_back, zero, one),
        "grows": (zero, zero, 1 + 0.7 * t),
        "shrinks": (zero, zero, 1 - 0.5 * t),
        "stays still": (zero, zero, one),
        EFFECT: (zero, -TRAVEL * arc, one),
        SECOND_EFFECT: (zero, zero, 1 + 0.7 * arc),
    }
    return torch.stack([torch.stack(paths[name], dim=-1) for name in MOTIONS])


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenes:
    """A batch of scenes: one shape each on a gradient, and how it moves. Tensors on one device."""

    shape: torch.Tensor
    """int64 [B], index in `SHAPES`."""
    color: torch.Tensor
    """int64 [B], index in `COLORS`."""
    motion: torch.Tensor
    """int64 [B], index in `MOTIONS`."""
    center: torch.Tensor
    """fp32 [B, 2], x and y of the shape in the first frame, pixels."""
    radius: torch.Tensor
    """fp32 [B], pixels."""
    background: torch.Tensor
    """fp32 [B, 2, 3], the two ends of the gradient, sRGB in 0..1."""
    angle: torch.Tensor
    """fp32 [B], direction of the gradient, radians."""
    height: int
    width: int

    def captions(self) -> list[str]:
        """`a red circle moves right`, one a scene."""
        names = list(COLORS)
        rows = zip(self.color.tolist(), self.shape.tolist(), self.motion.tolist(), strict=True)
        return [f"a {names[c]} {SHAPES[s]} {MOTIONS[m]}" for c, s, m in rows]

    def to(self, device: str | torch.device) -> Scenes:
        """The same scenes on another device."""
        moved = {name: getattr(self, name).to(device) for name in self.__slots__ if name not in _SIZES}
        return Scenes(**moved, height=self.height, width=self.width)


_SIZES = ("height", "width")


def random_scenes(
    count: int,
    *,
    height: int,
    width: int,
    generator: torch.Generator,
    motions: Sequence[str] = BASE_MOTIONS,
) -> Scenes:
    """`count` scenes whose shape stays inside the frame; `generator` lives on the CPU."""
    side = min(height, width)
    rand = torch.rand(count, 12, generator=generator)
    choices = torch.tensor([MOTIONS.index(name) for name in motions])
    motion = choices[(rand[:, 0] * len(choices)).long()]
    radius = side * (0.10 + 0.05 * rand[:, 1])
    path = motion_paths(17)[motion]
    reach = 1.05 * radius * path[..., 2].amax(dim=1) + 1
    low = reach[:, None] - side * path[..., :2].amin(dim=1)
    high = torch.tensor([width, height]) - reach[:, None] - side * path[..., :2].amax(dim=1)
    grey = 0.25 + 0.35 * rand[:, 2:4]
    tint = 0.12 * (rand[:, 4:10].view(count, 2, 3) - 0.5)
    return Scenes(
        shape=(rand[:, 10] * len(SHAPES)).long(),
        color=torch.randint(len(COLORS), (count,), generator=generator),
        motion=motion,
        center=low + (high - low) * torch.rand(count, 2, generator=generator),
        radius=radius,
        background=grey[..., None] + tint,
        angle=2 * math.pi * rand[:, 11],
        height=height,
        width=width,
    )


def draw_background(scenes: Scenes) -> torch.Tensor:
    """fp32 [B, 3, H, W] in 0..1: the gradient without its shape."""
    y, x = _pixel_axes(scenes)
    cos, sin = scenes.angle.cos()[:, None, None], scenes.angle.sin()[:, None, None]
    along = (x / scenes.width - 0.5) * cos + (y / scenes.height - 0.5) * sin
    blend = (along / math.sqrt(2) + 0.5).unsqueeze(1)
    first, last = scenes.background[:, 0, :, None, None], scenes.background[:, 1, :, None, None]
    return first * (1 - blend) + last * blend


def draw_clips(scenes: Scenes, num_frames: int) -> torch.Tensor:
    """fp32 [B, 3, T, H, W] in 0..1, edges antialiased."""
    device = scenes.center.device
    side = min(scenes.height, scenes.width)
    path = motion_paths(num_frames).to(device)[scenes.motion]
    center = scenes.center[:, None] + side * path[..., :2]
    radius = scenes.radius[:, None] * path[..., 2]
    inside = _coverage(scenes, center, radius).unsqueeze(1)
    colors = torch.tensor(list(COLORS.values()), device=device)[scenes.color][:, :, None, None, None]
    return draw_background(scenes).unsqueeze(2) * (1 - inside) + colors * inside


def _pixel_axes(scenes: Scenes) -> tuple[torch.Tensor, torch.Tensor]:
    """(y [H, 1], x [1, W]) of pixel centres."""
    device = scenes.center.device
    y = torch.arange(scenes.height, device=device, dtype=torch.float32) + 0.5
    x = torch.arange(scenes.width, device=device, dtype=torch.float32) + 0.5
    return y[:, None], x[None, :]


def _coverage(scenes: Scenes, center: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """fp32 [B, T, H, W] in 0..1: how much of each pixel the shape covers; `center` [B, T, 2], `radius` [B, T]."""
    y, x = _pixel_axes(scenes)
    dx = x - center[..., 0, None, None]
    dy = y - center[..., 1, None, None]
    r = radius[..., None, None]
    circle = torch.sqrt(dx * dx + dy * dy) - r
    square = torch.maximum(dx.abs(), dy.abs()) - 0.88 * r
    # Equilateral, tip up: two slanted sides and the base, each at 0.62 r from the centre.
    slanted = dx.abs() * math.cos(math.pi / 6) - dy * math.sin(math.pi / 6)
    triangle = torch.maximum(slanted, dy) - 0.62 * r
    kind = scenes.shape[:, None, None, None]
    distance = torch.where(kind == 0, circle, torch.where(kind == 1, square, triangle))
    return (0.5 - distance).clamp(0, 1)


MIN_AREA = 12
"""Pixels; with fewer the shape is gone."""

JUDGED_DIAMETER = 18.0
"""Pixels; a smaller shape covers about two cells of the VAE, and nobody can tell what it is."""

SCALE_WEIGHT = TRAVEL / 0.7
"""Makes `grows` end as far from `stays still` as a move does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Track:
    """What a video shows, measured."""

    path: torch.Tensor
    """fp32 [T, 3]: shift right, shift down (shorter sides), scale; relative to the first frame. NaN where the
    shape is gone."""
    colors: tuple[str, ...]
    """Nearest named colour in each frame; empty where the shape is gone."""
    misfit: torch.Tensor
    """fp32 [T, 3]: relative squared error of the best drawing of each of `SHAPES`; NaN where the shape is gone or
    smaller than `JUDGED_DIAMETER`."""

    def follows(self, motion: str, tolerance: float = 0.1) -> bool:
        """True when `motion` is the nearest of all motions and the path stays within `tolerance` of it (RMS)."""
        if self.path.isnan().any():
            return False
        weight = torch.tensor([1.0, 1.0, SCALE_WEIGHT])
        distance = ((motion_paths(len(self.path)) - self.path) * weight).square().sum(-1).mean(-1).sqrt()
        index = MOTIONS.index(motion)
        return bool(distance.argmin() == index and distance[index] < tolerance)

    def keeps(self, color: str, shape: str) -> bool:
        """True when three quarters of the frames and the last one show the colour, and the shape fits best over the
        frames that can be judged and over the last quarter of those."""
        judged = self.misfit[~self.misfit.isnan().any(1)]
        if len(judged) == 0:
            return False
        parts = (judged, judged[-max(1, len(judged) // 4) :])
        best = {SHAPES[int(part.mean(0).argmin())] for part in parts}
        hits = [c == color for c in self.colors]
        return best == {shape} and hits[-1] and sum(hits) >= 0.75 * len(hits)


def track(frames: np.ndarray, background: np.ndarray) -> Track:
    """Follows the shape through uint8 [T, H, W, 3] `frames`, given the uint8 [H, W, 3] scene without it.

    In each frame the colour is the named one nearest to the median of the pixels that differ from the background by
    more than 0.15 in some channel; the shape is where a pixel lies nearer to that colour than to the background.
    """
    video = torch.from_numpy(frames.astype(np.float32) / 255)
    plate = torch.from_numpy(background.astype(np.float32) / 255)
    _, height, width, _ = video.shape
    names = list(COLORS)
    palette = torch.tensor(list(COLORS.values()))
    y, x = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    rows, colors, misfits = [], [], []
    for frame in video:
        differs = (frame - plate).abs().amax(-1) > 0.15
        if differs.sum() < MIN_AREA:
            rows.append([math.nan] * 3)
            colors.append("")
            misfits.append(torch.full((3,), math.nan))
            continue
        nearest = int((palette - frame[differs].median(dim=0).values).square().sum(-1).argmin())
        span = palette[nearest] - plate
        cover = ((frame - plate) * span).sum(-1) / span.square().sum(-1)
        mask = cover > 0.5
        area = mask.sum().clamp(min=1)
        rows.append([float((mask.sum(0) * x).sum() / area), float((mask.sum(1) * y).sum() / area), float(area)])
        colors.append(names[nearest])
        misfits.append(_misfit(cover))
    measured = torch.tensor(rows)
    shift = (measured[:, :2] - measured[0, :2]) / min(height, width)
    scale = (measured[:, 2:] / measured[0, 2]).sqrt()
    return Track(path=torch.cat((shift, scale), dim=-1), colors=tuple(colors), misfit=torch.stack(misfits))


def _misfit(cover: torch.Tensor) -> torch.Tensor:
    """fp32 [3]: how badly the best drawing of each shape explains `cover` [H, W], the share of shape colour in a pixel.

    Drawings have the centroid and about the area of `cover`, under four degrees of blur, since a decoder softens edges.
    """
    rows, columns = (cover > 0.5).nonzero(as_tuple=True)
    if len(rows) < math.pi * (JUDGED_DIAMETER / 2) ** 2:
        return torch.full((3,), math.nan)
    # Areas at radius 1: pi, (2 * 0.88)^2, and 3 * sqrt(3) * 0.62^2.
    radius = torch.tensor([(len(rows) / unit) ** 0.5 for unit in (math.pi, 3.0976, 1.9974)])
    radii = (radius[:, None] * torch.tensor([0.92, 1.0, 1.08])).flatten()
    reach = int(1.6 * radius.max()) + 6
    y, x = int(rows.float().mean()), int(columns.float().mean())
    top, left = max(0, y - reach), max(0, x - reach)
    seen = cover[top : y + reach, left : x + reach].clamp(-0.2, 1.2)
    kind = torch.arange(3).repeat_interleave(3)
    center = torch.stack((columns.float().mean() + 0.5 - left, rows.float().mean() + 0.5 - top))
    drawn = Scenes(
        shape=kind, color=kind * 0, motion=kind * 0, center=center.expand(9, 2), radius=radii,
        background=torch.zeros(9, 2, 3), angle=torch.zeros(9), height=seen.shape[0], width=seen.shape[1],
    )  # fmt: skip
    templates = _coverage(drawn, drawn.center[:, None], radii[:, None])
    errors = [(_blurred(templates, sigma)[:, 0] - seen).square().sum((1, 2)) for sigma in (0.8, 1.6, 2.4, 3.2)]
    return torch.stack(errors).amin(0).view(3, 3).amin(1) / seen.square().sum()


def _blurred(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """[B, 1, H, W] under a Gaussian of `sigma` pixels."""
    offsets = torch.arange(-8.0, 9.0)
    kernel = torch.softmax(-offsets.square() / (2 * sigma**2), dim=0)
    across = F.conv2d(images, kernel.view(1, 1, 1, -1), padding=(0, 8))
    return F.conv2d(across, kernel.view(1, 1, -1, 1), padding=(8, 0))


def to_uint8(video: torch.Tensor) -> np.ndarray:
    """uint8 [B, T, H, W, 3] of fp32 [B, 3, T, H, W] in 0..1."""
    return (video.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 4, 1).cpu().numpy()
