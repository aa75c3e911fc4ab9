"""Which clips the table shows: all, to mend, ready, of one bucket, or with one problem."""

from __future__ import annotations

from studio.core.types import DatasetReport, Issue, Pair

ALL, MEND, READY = "all", "mend", "ready"
BUCKET, PROBLEM = "bucket:", "problem:"
"""Beginnings of what a page asks for; a bucket or a code follows."""


def clips_shown(report: DatasetReport, show: str) -> list[tuple[int, Pair]]:
    """The clips that are asked for, each with its place in the report."""
    return [(index, pair) for index, pair in enumerate(report.pairs) if _is_shown(pair, show)]


def issues_shown(report: DatasetReport, show: str) -> tuple[Issue, ...]:
    """Issues of no clip that belong to what is asked for: those of one problem, or why there are no clips at all."""
    if not report.pairs:
        return report.errors
    return tuple(issue for issue in report.issues if show == PROBLEM + issue.code.value)


def _is_shown(pair: Pair, show: str) -> bool:
    if show.startswith(BUCKET):
        return pair.is_ready and show == f"{BUCKET}{pair.bucket}"
    if show.startswith(PROBLEM):
        return any(show == PROBLEM + issue.code.value for issue in pair.issues)
    if show == MEND:
        return not pair.is_ready and not pair.is_left_out
    return show == ALL or pair.is_ready
