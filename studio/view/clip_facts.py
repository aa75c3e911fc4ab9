"""The figures of one clip, in words, the same in the app, in the notebook and in the report."""

from __future__ import annotations

from dataclasses import dataclass

from studio.core.data.bucket import MODEL_FPS
from studio.core.data.findings import fits_another_frame
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
        Fact(w("fact.legal", unit=GridSpec().pixel_multiple), w("fact.yes" if t.is_legal else "fact.no_resized")),
        Fact(w("fact.on_grid", unit=GridSpec().bucket_alignment), w("fact.yes" if t.is_on_grid else "fact.no_resized")),
    ]


def _lost_time(t: Treatment, w: Words) -> str:
    """Seconds and frames of the clip that are not trained, and frames that come twice."""
    lost = w("fact.lost", seconds=w.number(t.seconds_lost, 1), frames=t.num_frames_lost)
    parts = [lost if t.num_frames_lost else w("fact.nothing")]
    if repeated := t.num_frames - t.num_source_frames:
        parts.append(w("fact.repeated", n=repeated))
    return ", ".join(parts)


def _lost_picture(t: Treatment, w: Words) -> str:
    percent = w.number(100 * t.share_cropped, 1)
    return w("fact.percent", n=percent) if t.share_cropped >= 0.0005 else w("fact.nothing")


def _file(clip: Clip, w: Words) -> list[Fact]:
    seconds = w.number(clip.num_frames / clip.fps, 1)
    size = w("dataset.size", seconds=seconds, frames=clip.num_frames, width=clip.width, height=clip.height)
    rate = w("fact.fps", fps=f"{clip.fps:.4g}")
    if clip.fastest_fps > clip.slowest_fps:
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
