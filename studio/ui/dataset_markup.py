"""HTML of the room Dataset. Everything that a file, a caption or a configuration says is escaped here."""

from __future__ import annotations

from html import escape
from pathlib import Path

from studio.core.types import Bucket, DatasetReport, Issue, Pair, Severity
from studio.ui import selection
from studio.ui.markup import core_text, note
from studio.view.sheets import Thumbnails
from studio.view.verdicts import (
    ICONS,
    Verdict,
    by_gravity,
    icon_of,
    problems_of,
    small_buckets,
    summary_parts,
    verdict_of,
)
from studio.view.words import Words


def summary(report: DatasetReport, path: Path, w: Words) -> str:
    """`12 ready · 3 to mend · 1 unreadable`, and where that is."""
    parts = "<span class='dot' aria-hidden='true'>·</span>".join(
        f"<span class='kind-{kind}'><span class='icon' aria-hidden='true'>{ICONS[kind]}</span>{escape(text)}</span>"
        for kind, text in summary_parts(report, w)
    )
    return f"<div class='summary' role='status'><p>{parts}</p><p class='note path'>{escape(str(path))}</p></div>"


def filters(report: DatasetReport, show: str, w: Words) -> str:
    """Buttons that choose what the table shows: by readiness, then by each kind of problem with its count."""
    whole = [
        _filter(name, w(f"dataset.filter_{name}"), len(selection.clips_shown(report, name)), show)
        for name in (selection.ALL, selection.MEND, selection.READY)
    ]
    kinds = [
        _filter(selection.PROBLEM + p.code.value, w.verdicts[p.code], p.count, show, _severity_icon(p.severity))
        for p in problems_of(report)
    ]
    groups = [("dataset.filter", whole), ("dataset.filter_problem", kinds)]
    return "".join(
        f"<div class='filters' role='group' aria-label='{escape(w(label))}'>{''.join(buttons)}</div>"
        for label, buttons in groups
        if buttons
    )


def _filter(name: str, label: str, count: int, show: str, icon: str = "") -> str:
    return (
        f"<button type='button' class='filter' data-show='{escape(name)}' aria-pressed='{_claim(name == show)}'>"
        f"{icon}{escape(label)} <b>{count}</b></button>"
    )


def clip_table(
    pairs: list[tuple[int, Pair]], chosen: int | None, loose: tuple[Issue, ...], thumbnails: Thumbnails, w: Words
) -> str:
    """Clips as rows to choose from, and below them the issues of no clip that were asked for too."""
    others = issue_list(loose, w) if loose else ""
    if not pairs:
        return others or note(w("dataset.nothing_here"))
    columns = ("start_frame", "clip", "caption", "length", "verdict")
    head = "".join(f"<span>{escape(w(f'dataset.{column}'))}</span>" for column in columns)
    rows = "".join(_clip_row(index, pair, index == chosen, thumbnails, w) for index, pair in pairs)
    return (
        f"<div class='clips' role='group' aria-label='{escape(w('dataset.clips'))}'>"
        f"<div class='clips-head' aria-hidden='true'>{head}</div>{rows}</div>{others}"
    )


def _clip_row(index: int, pair: Pair, is_chosen: bool, thumbnails: Thumbnails, w: Words) -> str:
    verdict = verdict_of(pair, w)
    caption = escape(pair.captions[0]) if pair.captions else f"<i>{escape(w('dataset.no_caption'))}</i>"
    length = "".join(f"<span>{escape(line)}</span>" for line in _length_and_size(pair, w))
    return (
        f"<button type='button' class='clip' data-index='{index}' aria-pressed='{_claim(is_chosen)}'>"
        + _picture(thumbnails.start_frame(pair), w("dataset.start_frame"), w("dataset.no_start_frame"))
        + _picture(thumbnails.clip(pair), w("dataset.clip"), w("dataset.no_picture"))
        + f"<span class='words'><b>{escape(pair.name)}</b><span class='caption'>{caption}</span></span>"
        + f"<span class='length'>{length}</span>"
        + f"<span class='verdict'>{badge(verdict)}{_reason(verdict, w)}</span></button>"
    )


def _length_and_size(pair: Pair, w: Words) -> list[str]:
    """`6.2 s → 93 frames` and the size of the bucket, as much of it as there is."""
    if pair.clip is None:
        return ["-"]
    seconds = w.number(pair.clip.num_frames / pair.clip.fps, 1)
    if pair.bucket is None:
        return [w("dataset.seconds", seconds=seconds)]
    return [
        w("dataset.seconds_frames", seconds=seconds, frames=pair.bucket.num_frames),
        w("dataset.pixels", width=pair.bucket.width, height=pair.bucket.height),
    ]


def _reason(verdict: Verdict, w: Words) -> str:
    """Beside the row, the gravest problem of a clip and its mend; the rest waits in the detail."""
    if verdict.kind == "ready":
        return ""
    issue = verdict.issues[0]
    what = f"{w.verdict(issue)}. " if verdict.kind == "note" else ""
    return f"<span class='reason'>{escape(what + w.mend(issue))}</span>"


def badge(verdict: Verdict) -> str:
    """Icon and words of a verdict."""
    return (
        f"<span class='badge kind-{verdict.kind}'><span class='icon' aria-hidden='true'>{verdict.icon}</span>"
        f"{escape(verdict.label)}</span>"
    )


def _picture(uri: str | None, alt: str, missing: str) -> str:
    if uri is None:
        return f"<span class='picture missing'>{escape(missing)}</span>"
    return f"<span class='picture'><img src='{uri}' alt='{escape(alt)}'></span>"


def issue_list(issues: tuple[Issue, ...], w: Words) -> str:
    """Issues, gravest first: verdict, what is wrong, what to do."""
    return f"<ul class='issues'>{''.join(_issue_item(issue, w) for issue in by_gravity(issues))}</ul>"


def _issue_item(issue: Issue, w: Words) -> str:
    mend, severity = w.mend(issue), issue.severity
    remedy = f"<p class='remedy'>{escape(mend)}</p>" if mend else ""
    return (
        f"<li><p><span class='badge'>{_severity_icon(severity)}{escape(w.verdict(issue))}</span> "
        f"<span class='note'>{escape(w(f'severity.{severity.value}'))}</span></p>"
        f"<p {core_text(w)}>{escape(issue.message)}</p>{remedy}</li>"
    )


def _severity_icon(severity: Severity) -> str:
    return f"<span class='icon severity-{severity.value}' aria-hidden='true'>{icon_of(severity)}</span>"


def buckets(report: DatasetReport, show: str, w: Words) -> str:
    """A bar a bucket, from wide to tall, as buttons that filter the table; small ones are called out in words."""
    counts = {bucket: len(pairs) for bucket, pairs in report.by_bucket.items()}
    small = small_buckets(report)
    most = max(counts.values(), default=1)
    bars = "".join(_bucket(b, count, count / most, str(b) in small, show, w) for b, count in counts.items())
    title = escape(w("dataset.buckets"))
    return f"<h3 class='heading'>{title}</h3><div class='bars' role='group' aria-label='{title}'>{bars}</div>"


def _bucket(bucket: Bucket, count: int, share: float, is_small: bool, show: str, w: Words) -> str:
    name = f"{selection.BUCKET}{bucket}"
    label = w("dataset.bucket", width=bucket.width, height=bucket.height, frames=bucket.num_frames)
    long = max(bucket.width, bucket.height)
    shape = f"width: {24 * bucket.width / long:.1f}px; height: {24 * bucket.height / long:.1f}px"
    warning = f"<span class='small'>{ICONS['mend']} {escape(w('dataset.bucket_small'))}</span>" if is_small else ""
    return (
        f"<button type='button' class='bucket' data-show='{escape(name)}' aria-pressed='{_claim(name == show)}'>"
        f"<span class='shape' aria-hidden='true'><i style='{shape}'></i></span><span>{escape(label)}</span>"
        f"<b>{escape(w.count('dataset.num_clips', count))}</b>"
        f"<span class='bar' aria-hidden='true'><i style='width: {100 * share:.1f}%'></i></span>{warning}</button>"
    )


def _claim(value: bool) -> str:
    return str(value).lower()
