"""HTML of one clip: what it looks like, what becomes of it, what is amiss. Everything is escaped here."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from studio.core.data.treatment import treatment_of
from studio.core.types import Pair
from studio.ui.dataset_markup import badge, issue_list
from studio.ui.markup import core_text, note
from studio.view.clip_facts import Fact, clip_facts
from studio.view.verdicts import verdict_of
from studio.view.words import Words


def detail_head(pair: Pair, w: Words) -> str:
    """Name, verdict and captions of a clip."""
    captions = "".join(f"<blockquote>{escape(caption)}</blockquote>" for caption in pair.captions)
    return f"<div class='detail'><h3>{escape(pair.name)}</h3>{badge(verdict_of(pair, w))}{captions}</div>"


def start_frame_figure(uri: str | None, w: Words) -> str:
    """The start frame as it is trained, to stand beside the player."""
    return _figure(uri, w("dataset.start_frame"), w("dataset.start_frame_trained")) if uri else ""


def clip_detail(pair: Pair, first: str | None, best: str | None, w: Words) -> str:
    """What is cut off, the figures, and the issues of a clip.

    `first` is a picture of its first frame, `best` one of the frame that its start frame fits better.
    """
    pictures = [_crop_figure(pair, first, w) if first else ""]
    if best and pair.match:
        pictures.append(_figure(best, w("dataset.clip"), w("dataset.best_frame", frame=pair.match.best_frame + 1)))
    verdict = verdict_of(pair, w)
    listed = issue_list(verdict.issues, w) if verdict.issues else note(w("dataset.no_issue"))
    return (
        f"<div class='detail'><div class='figures'>{''.join(pictures)}</div>{listed}"
        f"{fact_table(clip_facts(pair, w), w)}</div>"
    )


def _crop_figure(pair: Pair, uri: str, w: Words) -> str:
    """The first frame of the clip as it is in its file, with what the bucket keeps of it framed."""
    treatment, clip = treatment_of(pair), pair.clip
    if treatment is None or clip is None:
        return _figure(uri, w("dataset.clip"), w("dataset.source_frame"))
    left, top, right, bottom = treatment.crop_box
    whole = f"M0 0H{clip.width}V{clip.height}H0Z"
    kept = f"M{left:.1f} {top:.1f}H{right:.1f}V{bottom:.1f}H{left:.1f}Z"
    box = (
        f"<svg class='crop' viewBox='0 0 {clip.width} {clip.height}' aria-hidden='true'>"
        f"<path class='lost' fill-rule='evenodd' d='{whole}{kept}'/><path class='kept' d='{kept}'/></svg>"
    )
    if treatment.share_cropped < 0.0005:
        return _figure(uri, w("dataset.clip"), w("dataset.source_frame"))
    share = w.number(100 * treatment.share_cropped, 1)
    return _figure(uri, w("dataset.clip"), w("dataset.crop", share=share), box)


def _figure(uri: str, alt: str, caption: str, over: str = "") -> str:
    return (
        f"<figure><span class='frame'><img src='{uri}' alt='{escape(alt)}'>{over}</span>"
        f"<figcaption class='note'>{escape(caption)}</figcaption></figure>"
    )


def fact_table(rows: Iterable[Fact], w: Words) -> str:
    """Names and values in two columns."""
    cells = "".join(f"<dt>{escape(row.name)}</dt><dd>{escape(row.value)}{_reason(row, w)}</dd>" for row in rows)
    return f"<dl class='facts figures-of-clip'>{cells}</dl>"


def _reason(row: Fact, w: Words) -> str:
    return f" <span class='note' {core_text(w)}>({escape(row.reason)})</span>" if row.reason else ""
