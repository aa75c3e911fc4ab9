"""The report of a check as one HTML page that carries everything itself: no script, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

from studio.core.data.mend import offered_mends
from studio.core.simpletuner import Project
from studio.core.types import DatasetReport, Issue, Pair
from studio.view.clip_facts import Fact, clip_facts
from studio.view.plots import PAGE, draw_buckets, figure_svg
from studio.view.sheets import Thumbnails
from studio.view.verdicts import (
    ICONS,
    by_gravity,
    gravest_first,
    icon_of,
    problems_of,
    small_buckets,
    summary_parts,
    verdict_of,
)
from studio.view.words import Words

MAX_PICTURES = 200
"""Clips with pictures; two pictures take about 5 kB."""


def report_html(path: Path, report: DatasetReport, project: Project, w: Words) -> str:
    """The page of a check of the dataset at `path`, in the words of `w`; light and dark, and fit for paper."""
    name = path.name or str(path)
    thumbnails = Thumbnails(height=72)
    pairs = gravest_first(report)
    clips = "".join(_clip(pair, thumbnails if place < MAX_PICTURES else None, w) for place, pair in enumerate(pairs))
    few = _note(w("report.few_pictures", n=MAX_PICTURES)) if len(pairs) > MAX_PICTURES else ""
    body = [
        f"<h1>{escape(w('report.title', name=name))}</h1>",
        f"<p class='summary'>{_summary(report, w)}</p><p class='note'>{escape(str(path))}</p>",
        _problems(report, w),
        _mends(report, project, w),
        _buckets(report, w),
        _section("report.clips", f"{few}{clips}", w) if pairs else "",
        _section("report.other", _issues(report.issues, w), w) if report.issues else "",
        _note(w("report.made", app=w("app.name"))),
    ]
    return (
        f"<!DOCTYPE html>\n<html lang='{w.language}'>\n<head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        "<meta name='color-scheme' content='light dark'>"
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>{escape(w('report.title', name=name))}</title><style>{_CSS}</style></head>\n"
        f"<body><main>{''.join(body)}</main></body>\n</html>\n"
    )


def _section(title: str, html: str, w: Words) -> str:
    return f"<section><h2>{escape(w(title))}</h2>{html}</section>"


def _note(text: str) -> str:
    return f"<p class='note'>{escape(text)}</p>"


def _summary(report: DatasetReport, w: Words) -> str:
    return " · ".join(
        f"<span class='is-{kind}'>{ICONS[kind]} {escape(text)}</span>" for kind, text in summary_parts(report, w)
    )


def _problems(report: DatasetReport, w: Words) -> str:
    """A row for each kind of problem: what, how grave, how often."""
    rows = "".join(
        f"<tr><td class='is-{p.severity.value}'>{icon_of(p.severity)} {escape(w.verdicts[p.code])}</td>"
        f"<td>{escape(w(f'severity.{p.severity.value}'))}</td><td class='number'>{p.count}</td></tr>"
        for p in problems_of(report)
    )
    if not rows:
        return _section("report.problems", _note(w("dataset.no_issue")), w)
    names = (w("report.problem"), w("report.severity"), w("report.count"))
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in names)
    return _section("report.problems", f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>", w)


def _mends(report: DatasetReport, project: Project, w: Words) -> str:
    """The mends that would change something, and how many clips."""
    rows = "".join(
        f"<li>{escape(w(f'mend.kind_{kind.value}'))} ({len(pairs)})</li>"
        for kind, pairs in offered_mends(project, report).items()
    )
    return _section("report.mends", f"<ul>{rows}</ul>", w) if rows else ""


def _buckets(report: DatasetReport, w: Words) -> str:
    counts = {bucket: len(pairs) for bucket, pairs in report.by_bucket.items()}
    if not counts:
        return ""
    figure = draw_buckets(counts, w, small=small_buckets(report), palette=PAGE)
    return _section("dataset.buckets", figure_svg(figure, w("dataset.buckets")), w)


def _clip(pair: Pair, thumbnails: Thumbnails | None, w: Words) -> str:
    """Pictures, verdict, captions, issues, and the figures folded away."""
    verdict = verdict_of(pair, w)
    pictures = ""
    if thumbnails:
        pictures = _picture(thumbnails.start_frame(pair), w("dataset.start_frame"), w("dataset.no_start_frame"))
        pictures += _picture(thumbnails.clip(pair), w("dataset.clip"), w("dataset.no_picture"))
    captions = "".join(f"<blockquote>{escape(caption)}</blockquote>" for caption in pair.captions)
    facts = clip_facts(pair, w)
    folded = f"<details><summary>{escape(w('report.figures'))}</summary>{_facts(facts)}</details>" if facts else ""
    return (
        f"<article><div class='pictures'>{pictures}</div><div><h3>{escape(pair.name)}</h3>"
        f"<p class='is-{verdict.kind}'>{verdict.icon} {escape(verdict.label)}</p>"
        f"{captions}{_issues(verdict.issues, w) if verdict.issues else ''}{folded}</div></article>"
    )


def _picture(uri: str | None, alt: str, missing: str) -> str:
    if uri is None:
        return f"<span class='missing'>{escape(missing)}</span>"
    return f"<img src='{uri}' alt='{escape(alt)}'>"


def _issues(issues: tuple[Issue, ...], w: Words) -> str:
    return f"<ul>{''.join(_issue(issue, w) for issue in by_gravity(issues))}</ul>"


def _issue(issue: Issue, w: Words) -> str:
    mend = w.mend(issue)
    remedy = f" <b>{escape(mend)}</b>" if mend else ""
    return (
        f"<li><span class='is-{issue.severity.value}'>{icon_of(issue.severity)} {escape(w.verdict(issue))}</span> "
        f"<span class='note'>({escape(w(f'severity.{issue.severity.value}'))})</span><br>"
        f"<span lang='en'>{escape(issue.message)}</span>{remedy}</li>"
    )


def _facts(facts: Iterable[Fact]) -> str:
    rows = "".join(f"<dt>{escape(fact.name)}</dt><dd>{escape(fact.value)}{_reason(fact)}</dd>" for fact in facts)
    return f"<dl>{rows}</dl>"


def _reason(fact: Fact) -> str:
    return f" <span class='note' lang='en'>({escape(fact.reason)})</span>" if fact.reason else ""


_CSS = """
:root { --studio-ink: #1b1f24; --studio-muted: #5b6470; --studio-line: #e1e4e8; --studio-accent: #1f5fd0;
  --studio-warn: #8a5200; --bad: #b3261e; --good: #1a6b3c; --paper: #ffffff; }
@media (prefers-color-scheme: dark) {
  :root { --studio-ink: #e8eaed; --studio-muted: #a3acb6; --studio-line: #323a43; --studio-accent: #7fb0ff;
    --studio-warn: #f0b454; --bad: #ff9a90; --good: #74d29a; --paper: #14181d; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--studio-ink); line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  font-variant-numeric: tabular-nums; }
main { max-width: 960px; margin: 0 auto; padding: 32px 16px 64px; overflow-wrap: anywhere; }
h1 { font-size: 24px; line-height: 1.25; margin: 0 0 16px; }
h2 { font-size: 18px; margin: 32px 0 8px; }
h3 { font-size: 16px; margin: 0; }
p { margin: 0 0 4px; }
.summary { font-size: 20px; font-weight: 600; }
.note { color: var(--studio-muted); font-size: 14px; }
.is-ready { color: var(--good); }
.is-note, .is-warning { color: var(--studio-accent); }
.is-notice { color: var(--studio-muted); }
.is-mend, .is-error { color: var(--studio-warn); font-weight: 600; }
.is-unreadable { color: var(--bad); font-weight: 600; }
table { border-collapse: collapse; width: 100%; font-size: 15px; }
th { text-align: left; font-weight: 400; color: var(--studio-muted); }
th, td { padding: 8px 16px 8px 0; border-bottom: 1px solid var(--studio-line); vertical-align: top; }
.number, th:last-child { text-align: right; padding-right: 0; }
.figure { width: 100%; height: auto; display: block; }
article { display: grid; grid-template-columns: 216px minmax(0, 1fr); gap: 16px; padding: 16px 0;
  border-top: 1px solid var(--studio-line); break-inside: avoid; }
.pictures { display: flex; gap: 8px; align-items: flex-start; }
.pictures img { width: 104px; height: 72px; object-fit: contain; object-position: top; }
.missing { width: 104px; height: 72px; border: 1px dashed var(--studio-muted); border-radius: 8px; font-size: 13px;
  color: var(--studio-muted); display: flex; align-items: center; justify-content: center; }
blockquote { margin: 4px 0; padding-left: 8px; border-left: 2px solid var(--studio-line); color: var(--studio-muted);
  font-size: 15px; }
ul { margin: 8px 0; padding: 0; list-style: none; display: grid; gap: 8px; font-size: 15px; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 4px 16px; font-size: 14px; margin: 8px 0; }
dt { color: var(--studio-muted); } dd { margin: 0; }
summary { cursor: pointer; color: var(--studio-accent); font-size: 15px; padding: 4px 0; }
@media (max-width: 640px) {
  article { grid-template-columns: 1fr; }
  summary { min-height: 44px; padding: 10px 0; }
  dl { grid-template-columns: 1fr; } dd { margin-bottom: 8px; }
}
@media print { main { max-width: none; padding: 0; } details { display: block; } }
"""
