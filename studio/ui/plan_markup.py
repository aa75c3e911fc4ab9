"""HTML of the plan, of what is wrong with settings, and of what each setting means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from studio.core.remedy import Setting, shown
from studio.core.simpletuner_help import KeyHelp
from studio.core.simpletuner_keys import Honoured, Refused
from studio.core.train.preflight import Preflight
from studio.core.types import Issue, Severity
from studio.ui import markup
from studio.view.plan import disk_rows, plan_rows
from studio.view.verdicts import ICONS, Kind
from studio.view.words import Words

KEYS_SHOWN = 12
"""Rows of the table of settings; a word finds the others."""
_KINDS: Mapping[Severity, Kind] = {Severity.ERROR: "unreadable", Severity.WARNING: "mend", Severity.NOTICE: "note"}


def plan_card(plan: Preflight, w: Words) -> str:
    """What a run takes and does, and what is wrong with it."""
    reason = plan.attention.reason.rstrip(".") if plan.attention else ""
    return (
        f"<h3 class='heading'>{escape(w('plan.title'))}</h3>{markup.facts(plan_rows(plan, w))}"
        + (f"<p class='note' {markup.core_text(w)}>{escape(reason[:1].upper() + reason[1:])}.</p>" if reason else "")
        + _folded(w("plan.disk_detail"), markup.facts(disk_rows(plan.disk, w)) if plan.disk.total else "")
        + problems(plan.issues, w)
        + (markup.warning(w("plan.blocked"), None, w) if plan.num_errors else "")
    )


def problems(issues: Iterable[Issue], w: Words) -> str:
    """Errors and warnings as a list, each with its key and its remedy; remarks are folded away."""
    listed = sorted(issues, key=lambda issue: list(_KINDS).index(issue.severity))
    grave = [_problem(issue, w) for issue in listed if issue.severity is not Severity.NOTICE]
    remarks = [_problem(issue, w) for issue in listed if issue.severity is Severity.NOTICE]
    return (f"<ul class='issues problems'>{''.join(grave)}</ul>" if grave else "") + (
        _folded(w.count("plan.notices", len(remarks)), f"<ul class='issues problems'>{''.join(remarks)}</ul>")
        if remarks
        else ""
    )


def _problem(issue: Issue, w: Words) -> str:
    kind = _KINDS[issue.severity]
    remedy = f" <span class='remedy'>{escape(issue.remedy)}</span>" if issue.remedy else ""
    return (
        f"<li class='severity-{issue.severity.value}'><span class='icon kind-{kind}' aria-hidden='true'>{ICONS[kind]}"
        f"</span><b {markup.core_text(w)}>{escape(issue.subject)}</b> "
        f"<span {markup.core_text(w)}>{escape(issue.message)}{remedy}</span></li>"
    )


def _folded(title: str, html: str) -> str:
    return f"<details class='folded'><summary>{escape(title)}</summary>{html}</details>" if html else ""


def key_list(keys: Sequence[KeyHelp], w: Words) -> str:
    """Settings with their meaning, their value now and their default; those that differ from it first."""
    if not keys:
        return markup.note(w("settings.no_key"))
    first = sorted(keys, key=lambda key: not _is_set(key))
    rows = "".join(_key_row(key, w) for key in first[:KEYS_SHOWN])
    more = markup.note(w("settings.more", n=len(keys) - KEYS_SHOWN)) if len(keys) > KEYS_SHOWN else ""
    return f"<ul class='keys'>{rows}</ul>{more}"


def _is_set(key: KeyHelp) -> bool:
    return isinstance(key.rule, Honoured) and key.value not in ("", key.default)


def _key_row(key: KeyHelp, w: Words) -> str:
    if isinstance(key.rule, Honoured):
        meaning = f"<p {markup.core_text(w)}>{escape(key.meaning)}</p>"
        values = [w("settings.now", value=key.value or w("settings.unset"))]
        values += [w("settings.default", value=key.default)] if key.default else []
        shown = f"<p class='{'is-set' if _is_set(key) else 'note'}'>{escape(' · '.join(values))}</p>"
    else:
        meaning, shown = f"<p class='note'>{escape(_without_effect(key, w))}</p>", ""
    return f"<li><code>{escape(key.key)}</code> <span class='note'>{escape(key.file)}</span>{meaning}{shown}</li>"


def _without_effect(key: KeyHelp, w: Words) -> str:
    if isinstance(key.rule, Honoured) or not key.rule.why:
        return w("settings.unused_plain")
    said = "settings.refused" if isinstance(key.rule, Refused) else "settings.unused"
    return w(said, why=key.rule.why)


def settings_line(settings: Iterable[Setting]) -> str:
    """`gradient_checkpointing = true, clips.video.num_frames = 45`."""
    return ", ".join(f"{key} = {shown(value)}" for _, key, value in settings)
