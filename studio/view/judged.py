"""Videos of the gallery in words: their figures, their settings, and in what several of them differ."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from studio.core.sample.figures import FROZEN_BELOW, SAME
from studio.core.sample.gallery import GalleryVideo
from studio.core.sample.judge import SETTINGS, Comparison, PictureDifference, SettingRow
from studio.view.words import Words

LABELS = {"without LoRA": "without", "with LoRA": "with", "dense": "dense", "sparse": "sparse"}
"""Labels that the core gives, by the end of their key; others are numbers or somebody's own words."""
NUMBER = re.compile(r"-?\d+\.\d+")
SHA = 8
"""Signs of a picture's hash that are shown: enough to tell two apart."""
DIFFERENT_PICTURES = frozenset({"seed", "start_frame_sha256", "clip_sha256"})
"""Where these differ, the videos are not one and the same under another setting."""


SPEEDING = frozenset({"attention", "num_inference_steps", "schedule", "refinement", "gpus"})
"""What a video takes longer or shorter for."""


def title(video: GalleryVideo, w: Words) -> str:
    """The label in words."""
    return label_text(video.label, w)


def label_text(label: str, w: Words) -> str:
    """A label that the core gives in words, a strength with the language's own point; others as they are."""
    if label in LABELS:
        return w(f"judge.label_{LABELS[label]}")
    return label.replace(".", w("decimal")) if NUMBER.fullmatch(label) else label


def titles(videos: Sequence[GalleryVideo], w: Words) -> list[str]:
    """Labels where they tell the videos of one group apart, else names."""
    found = [title(video, w) for video in videos]
    is_told = len(set(found)) == len(found) and len({video.group for video in videos}) == 1
    return found if is_told else [video.name for video in videos]


def figure_facts(video: GalleryVideo, w: Words) -> list[tuple[str, str]]:
    """(name, value) of what is known of how a video came out."""
    figures = {name: value for name, value in video.figures.items() if isinstance(value, int | float)}
    rows = [
        ("start", "start_psnr", lambda value: _decibels(value, w)),
        ("moves", "motion", lambda value: _motion(value, w)),
        ("flicker", "flicker", lambda value: _levels(value, w)),
        ("color", "color_drift", lambda value: _levels(value, w)),
    ]
    facts = [(w(f"judge.fact_{key}"), say(figures[name])) for key, name, say in rows if name in figures]
    if (seconds := _seconds(video)) is not None:
        facts.append((w("judge.fact_seconds"), w.duration(seconds)))
    if "attention" in video.settings:
        facts.append((w("judge.fact_attention"), attention_text(video.settings, w)))
    return facts


def difference_facts(comparison: Comparison, index: int, w: Words) -> list[tuple[str, str]]:
    """(name, value) of a video against the first: how far its pictures are, and how much faster it came."""
    found, first = comparison.pictures[index], comparison.videos[0]
    if index == 0:
        return []
    facts = [] if found is None else _picture_facts(found, w)
    ours, theirs = _seconds(comparison.videos[index]), _seconds(first)
    if ours and theirs and any(row.key in SPEEDING for row in comparison.differences):
        facts.append((w("judge.fact_speed"), w("judge.times", times=w.number(theirs / ours, 2))))
    return facts


def _picture_facts(found: PictureDifference, w: Words) -> list[tuple[str, str]]:
    worst = found.worst
    if found.psnr[worst] >= SAME:
        return [(w("judge.fact_psnr"), w("judge.same"))]
    said = w("judge.psnr", mean=w.number(found.mean_psnr, 1), worst=w.number(found.psnr[worst], 1), frame=worst + 1)
    return [
        (w("judge.fact_psnr"), said),
        (w("judge.fact_error"), w("judge.percent", n=w.number(100 * found.error, 1))),
        (w("judge.fact_drift"), _levels(found.drift, w)),
    ]


def difference_sentence(comparison: Comparison, w: Words) -> str:
    """In which settings the videos differ, in one sentence."""
    names = [setting_name(row.key, w) for row in comparison.differences]
    if not names:
        return w("judge.differ_none")
    return w.count("judge.differ", len(names), names=", ".join(names))


def warnings(comparison: Comparison, w: Words) -> list[str]:
    """What makes the comparison less than fair, and why some of it cannot be shown."""
    keys = {row.key for row in comparison.differences}
    found = [w("judge.other_pictures")] if keys & DIFFERENT_PICTURES else []
    return found if comparison.is_pixelwise else [*found, w("judge.not_pixelwise")]


def setting_name(key: str, w: Words) -> str:
    """The name of a setting in words; one of a later version goes by its own."""
    return w(f"judge.set_{key}") if key in SETTINGS else key


def setting_texts(row: SettingRow, w: Words) -> tuple[str, ...]:
    """What each video has for a setting."""
    return tuple(_setting_text(row.key, value, w) for value in row.values)


def own_settings(comparison: Comparison, index: int, w: Words) -> str:
    """What one of the videos has for the settings in which they differ; nothing for what is told by more than two."""
    parts = [
        setting_texts(row, w)[index] if row.key in ("loras", "attention") else _named(row, index, w)
        for row in comparison.differences
    ]
    return " · ".join(parts) if len(parts) <= 2 else ""


def _named(row: SettingRow, index: int, w: Words) -> str:
    return f"{setting_name(row.key, w)}: {setting_texts(row, w)[index]}"


def attention_text(settings: Mapping[str, Any], w: Words) -> str:
    """Dense, or sparse and how sparse."""
    return _attention(settings.get("attention"), settings.get("attention_sparsity"), settings.get("attention_block"), w)


def lora_text(loras: tuple[tuple[str, float], ...], w: Words) -> str:
    """The LoRAs with their strengths."""
    if not loras:
        return w("judge.no_lora")
    return " + ".join(
        w("judge.lora", name=name, strength=f"{strength:g}".replace(".", w("decimal"))) for name, strength in loras
    )


def _setting_text(key: str, value: Any, w: Words) -> str:
    if key == "loras":
        return lora_text(value or (), w)
    if key == "gpus":
        return str(value or 1)
    if value is None or value == "":
        return w("judge.nothing")
    if key == "attention" and isinstance(value, tuple):
        kind, sparsity, block = value
        return _attention(kind, sparsity, block, w)
    if key.endswith("_sha256"):
        return str(value)[:SHA]
    if isinstance(value, list | tuple):
        return " / ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _attention(kind: Any, sparsity: Any, block: Any, w: Words) -> str:
    if kind not in ("dense", "sparse", "mixed"):
        return str(kind)
    if isinstance(sparsity, int | float) and isinstance(block, list | tuple):
        return w("chip.sparse_blocks", sparsity=w.number(100 * sparsity, 2), block="x".join(map(str, block)))
    return w(f"chip.{kind}")


def _decibels(value: float, w: Words) -> str:
    return w("judge.decibels", n=w.number(value, 1))


def _motion(value: float, w: Words) -> str:
    return w("judge.frozen") if value < FROZEN_BELOW else _levels(value, w)


def _levels(value: float, w: Words) -> str:
    return w("judge.levels", n=w.number(value, 1))


def _seconds(video: GalleryVideo) -> float | None:
    seconds = video.settings.get("seconds")
    return float(seconds) if isinstance(seconds, int | float) else None
