"""The panel of a check, with the app's words and figures."""

from __future__ import annotations

from html import escape
from pathlib import Path

import ipywidgets as widgets

from studio.core.data.check import check_project
from studio.core.data.mend import offered_mends
from studio.core.errors import StudioError
from studio.core.simpletuner import Project
from studio.core.types import DatasetReport
from studio.view.clip_facts import clip_facts
from studio.view.plots import draw_buckets, figure_png
from studio.view.sheets import dataset_sheet
from studio.view.verdicts import ICONS, by_gravity, gravest_first, small_buckets, summary_parts
from studio.view.words import Language, Words, words

MAX_FIGURES = 100
"""Clips whose figures a check panel holds."""


def check_panel(path: Path | str, *, language: Language = "en", max_pairs: int = 12) -> widgets.VBox:
    """The check of a project or folder: counts, a sheet of clips with verdicts, what to mend, the buckets."""
    w = words(language)
    try:
        project, report = check_project(Path(path))
    except StudioError as error:
        return widgets.VBox([_failure(error)])
    counts = {bucket: len(pairs) for bucket, pairs in report.by_bucket.items()}
    parts = [
        _summary(report, w),
        _picture(figure_png(dataset_sheet(report, w, max_pairs=max_pairs))),
        widgets.HTML(_shown(report, max_pairs, w)),
    ]
    parts += [
        widgets.HTML(_issues(report, w)),
        widgets.HTML(_figures(report, w)),
        widgets.HTML(_mends(project, report, w)),
    ]
    if counts:
        parts.append(_picture(figure_png(draw_buckets(counts, w, small=small_buckets(report)))))
    return widgets.VBox(parts)


def _summary(report: DatasetReport, w: Words) -> widgets.HTML:
    parts = " · ".join(f"{ICONS[kind]} {escape(text)}" for kind, text in summary_parts(report, w))
    return widgets.HTML(f"<h3>{parts}</h3>")


def _issues(report: DatasetReport, w: Words) -> str:
    rows = "".join(
        f"<li><b>{escape(w.verdict(issue))}</b> ({escape(w(f'severity.{issue.severity.value}'))}): "
        f"{escape(issue.message)} <i>{escape(w.mend(issue))}</i></li>"
        for issue in by_gravity(report.all_issues)
    )
    return f"<ul>{rows}</ul>" if rows else f"<p>{escape(w('dataset.no_issue'))}</p>"


def _figures(report: DatasetReport, w: Words) -> str:
    """The figures of every clip, folded away."""
    return "".join(
        f"<details><summary>{escape(pair.name)}</summary><table>"
        + "".join(
            f"<tr><td>{escape(fact.name)}</td><td>{escape(f'{fact.value} {fact.reason}'.strip())}</td></tr>"
            for fact in clip_facts(pair, w)
        )
        + "</table></details>"
        for pair in gravest_first(report)[:MAX_FIGURES]
    ) + _shown(report, MAX_FIGURES, w)


def _shown(report: DatasetReport, most: int, w: Words) -> str:
    """How many of the clips are shown, where that is not all."""
    total = len(report.pairs)
    return f"<p>{escape(w('report.shown', n=most, total=total))}</p>" if total > most else ""


def _mends(project: Project, report: DatasetReport, w: Words) -> str:
    """The mends that would change something, each with the code that chooses it."""
    offer = offered_mends(project, report)
    rows = "".join(
        f"<li>{escape(w(f'mend.kind_{kind}'))} ({len(pairs)}): <code>MendKind.{kind.name}</code></li>"
        for kind, pairs in offer.items()
    )
    if not rows:
        return ""
    code = (
        "plan = plan_mends(project, report, MendChoice(kinds=frozenset({MendKind....})))\nwrite_mends(plan, Path(...))"
    )
    return f"<h4>{escape(w('mend.kinds'))}</h4><ul>{rows}</ul><pre>{escape(code)}</pre>"


def _failure(error: StudioError) -> widgets.HTML:
    return widgets.HTML(f"<p>{ICONS['unreadable']} {escape(error.message)} <b>{escape(error.remedy)}</b></p>")


def _picture(png: bytes) -> widgets.Image:
    return widgets.Image(value=png, format="png")
