"""What to say of a clip, and of a dataset: kind, icon and words, the same in every face."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from studio.core.types import DatasetReport, Issue, IssueCode, Pair, Severity
from studio.view.words import Words

Kind = Literal["ready", "note", "mend", "unreadable", "left_out"]

ICONS: dict[Kind, str] = {"ready": "✓", "note": "i", "mend": "!", "unreadable": "✕", "left_out": "–"}
"""Beside the words, never instead of them."""

_ORDER: tuple[Kind, ...] = ("unreadable", "mend", "note", "ready", "left_out")
_UNREADABLE = {IssueCode.CLIP_UNREADABLE, IssueCode.CLIP_DAMAGED, IssueCode.IMAGE_UNREADABLE}
_RANK = [Severity.ERROR, Severity.WARNING, Severity.NOTICE]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What a check came to about one clip."""

    kind: Kind
    label: str
    """`Ready`, or the gravest problem in a few words."""
    issues: tuple[Issue, ...]
    """Gravest first."""

    @property
    def icon(self) -> str:
        """One character that says the kind without colour."""
        return ICONS[self.kind]


def by_gravity(issues: tuple[Issue, ...]) -> tuple[Issue, ...]:
    """Errors, then warnings, then notices."""
    return tuple(sorted(issues, key=lambda issue: _RANK.index(issue.severity)))


def kind_of(pair: Pair) -> Kind:
    """The kind of a pair's verdict."""
    if pair.is_left_out:
        return "left_out"
    if not pair.is_ready:
        return "unreadable" if any(issue.code in _UNREADABLE for issue in pair.issues) else "mend"
    return "note" if any(issue.severity is Severity.WARNING for issue in pair.issues) else "ready"


def gravest_first(report: DatasetReport) -> list[Pair]:
    """Pairs that need something, then those that are ready, then those left out."""
    return sorted(report.pairs, key=lambda pair: _ORDER.index(kind_of(pair)))


def small_buckets(report: DatasetReport) -> frozenset[str]:
    """Names of the buckets that hold fewer than a batch, repeats counted."""
    return frozenset(i.subject for i in report.issues if i.code is IssueCode.BUCKET_TOO_SMALL)


def verdict_of(pair: Pair, w: Words) -> Verdict:
    """The verdict on a pair."""
    kind, issues = kind_of(pair), by_gravity(pair.issues)
    label = w(f"verdict.{kind}") if pair.is_ready or not issues else w.verdict(issues[0])
    return Verdict(kind=kind, label=label, issues=issues)


def count_kinds(report: DatasetReport) -> Counter[Kind]:
    """How many pairs there are of each kind."""
    return Counter(kind_of(pair) for pair in report.pairs)


def summary_parts(report: DatasetReport, w: Words) -> list[tuple[Kind, str]]:
    """`12 ready`, `3 to mend`, `1 unreadable`, each with its kind; the first always, the others where there are any."""
    counts = count_kinds(report)
    parts: list[tuple[Kind, str]] = [("ready", w.count("dataset.ready", counts["ready"] + counts["note"]))]
    if counts["mend"]:
        parts.append(("mend", w.count("dataset.to_mend", counts["mend"])))
    if counts["unreadable"]:
        parts.append(("unreadable", w.count("dataset.unreadable", counts["unreadable"])))
    if counts["left_out"]:
        parts.append(("left_out", w.count("dataset.left_out", counts["left_out"])))
    return parts


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A kind of problem that a check found."""

    code: IssueCode
    severity: Severity
    """The gravest of its issues'."""
    count: int
    """Clips that have it, and files or settings of no clip."""


def problems_of(report: DatasetReport) -> list[Problem]:
    """Every kind of problem, gravest first, then the most frequent; what is only said of no clip is left to lists."""
    counts: Counter[IssueCode] = Counter()
    severities: dict[IssueCode, Severity] = {}
    loose = [(issue,) for issue in report.issues if issue.severity is not Severity.NOTICE]
    for issues in (*loose, *(pair.issues for pair in report.pairs)):
        counts.update({issue.code for issue in issues})
        for issue in issues:
            known = severities.get(issue.code, Severity.NOTICE)
            severities[issue.code] = min(known, issue.severity, key=_RANK.index)
    found = [Problem(code=code, severity=severities[code], count=count) for code, count in counts.items()]
    return sorted(found, key=lambda problem: (_RANK.index(problem.severity), -problem.count))


def icon_of(severity: Severity) -> str:
    """One character that says without colour whether an issue must be mended."""
    return ICONS["mend" if severity is Severity.ERROR else "note"]
