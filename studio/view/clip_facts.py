"""The figures of one clip, in words, the same in the app, in the notebook and in the report."""

from __future__ import annotations

from dataclasses import dataclass

from studio.core.data.bucket import MODEL_FPS
from studio.core.data.findings import fits_another_frame
from studio.core.data.frame_rate import is_steady
from studio.core.data.treatment import Treatment, treatment_of
from studio.core.geometry import Grid, GridSpec
from studio.core.types import Clip, Pair
from studio.view.words import Words


@dataclass(frozen=True, slots=True)
class Fact:
    """One line of a table of figures."""

    name: str
    value: str
    reason: str = ""
    """What the core says about it, in English."""


def clip_facts(pair: Pair, w: Words) -> list[Fact]:
    """What becomes of a clip, what its file is, and how its start frame compares; as much of it as is known."""
    treatment = treatment_of(pair)
    facts = _training(treatment, w) if treatment else []
    if pair.clip:
        facts += _file(pair.clip, w)
    return facts + _start_frame(pair, w)


def _training(t: Treatment, w: Words) -> list[Fact]:
    height, width = GridSpec().spatial_stride * t.latents.h, GridSpec().spatial_stride * t.latents.w
    blocks = w("fact.blocks_even", n=t.num_blocks)
    if not t.fills_blocks:
        blocks = w("fact.blocks_ragged", n=t.num_blocks, ragged=t.num_ragged_blocks)
    return [
        Fact(w("fact.bucket"), w("dataset.bucket", width=width, height=height, frames=t.num_frames)),
        Fact(w("fact.plays"), w("fact.plays_as", seconds=w.number(t.num_frames / MODEL_FPS, 1), fps=f"{MODEL_FPS:g}")),
        Fact(w("fact.lost_time"), _lost_time(t, w)),
        Fact(w("fact.lost_picture"), _lost_picture(t, w)),
        Fact(w("fact.latents"), _grid(t.latents)),
        Fact(w("fact.tokens"), f"{_grid(t.tokens)} = {t.tokens.size}"),
        Fact(w("fact.blocks"), blocks),
        _multiple("fact.legal", t.is_legal, GridSpec().pixel_multiple, (height, width), w),
        _multiple("fact.on_grid", t.is_on_grid, GridSpec().bucket_alignment, (height, width), w),
    ]


def _multiple(name: str, is_own: bool, unit: int, bucket: tuple[int, int], w: Words) -> Fact:
    """Whether the clip's own size is in multiples of `unit` pixels, and if not, whether its bucket is."""
    is_bucket = all(side % unit == 0 for side in bucket)
    return Fact(w(name, unit=unit), w("fact.yes" if is_own else "fact.no_resized" if is_bucket else "fact.no_neither"))


def _lost_time(t: Treatment, w: Words) -> str:
    """Seconds and frames of the clip that are not trained, and frames that come twice."""
    lost = w("fact.lost", seconds=w.number(t.seconds_lost, 1), frames=t.num_frames_lost)
    parts = [lost if t.num_frames_lost else w("fact.nothing")]
    if repeated := t.num_frames - t.num_source_frames:
        parts.append(w("fact.repeated", n=repeated))
    return ", ".join(parts)


def _lost_picture(t: Treatment, w: Words) -> str:
    """Share of the picture that is cut off, and the box that is kept."""
    if t.share_cropped < 0.0005:
        return w("fact.nothing")
    left, top, right, bottom = (round(edge) for edge in t.crop_box)
    kept = w("fact.kept", width=right - left, height=bottom - top, left=left, top=top)
    return f"{w('fact.percent', n=w.number(100 * t.share_cropped, 1))}; {kept}"


def _file(clip: Clip, w: Words) -> list[Fact]:
    seconds = w.number(clip.num_frames / clip.fps, 1)
    size = w("dataset.size", seconds=seconds, frames=clip.num_frames, width=clip.width, height=clip.height)
    rate = w("fact.fps", fps=f"{clip.fps:.4g}")
    if not is_steady(clip):
        rate = w("fact.fps_varies", fps=rate, slow=f"{clip.slowest_fps:.4g}", fast=f"{clip.fastest_fps:.4g}")
    coded = [clip.codec] if clip.codec else []
    if clip.rotation:
        coded.append(w("fact.rotated", degrees=clip.rotation))
    return [
        Fact(w("fact.file"), size),
        Fact(w("fact.rate"), rate),
        *([Fact(w("fact.codec"), ", ".join(coded))] if coded else []),
        Fact(w("fact.reader"), clip.reader, clip.reader_reason),
    ]


def _start_frame(pair: Pair, w: Words) -> list[Fact]:
    if pair.start_frame is None:
        return []
    size = w("dataset.pixels", width=pair.start_frame.width, height=pair.start_frame.height)
    facts = [Fact(w("dataset.start_frame"), size)]
    match = pair.match
    if match is None:
        return facts
    likeness = w("fact.likeness", psnr=w.number(match.psnr, 1), ssim=w.number(match.ssim, 3))
    facts.append(Fact(w("fact.like_first"), likeness))
    if fits_another_frame(match):
        best = w("fact.best_frame", frame=match.best_frame + 1, psnr=w.number(match.best_psnr, 1))
        facts.append(Fact(w("fact.like_best"), best))
    return facts


def _grid(grid: Grid) -> str:
    return f"{grid.t} x {grid.h} x {grid.w}"
