"""Walks one JSON object along a key table, and collects everything that has to be said about it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any

from studio.core.jsonc import Document, JsonPath, JsonValue
from studio.core.simpletuner_keys import ALIASES, Honoured, Refused, Rule, Unused
from studio.core.simpletuner_values import Normalised, Note
from studio.core.types import Issue, IssueCode, Severity

Sections = dict[str, dict[str, Any]]
"""Section -> field -> value, as `Honoured.field` names them."""


class Reading:
    """One document being read; `issues` grows while it is."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.issues: list[Issue] = [
            Issue(
                code=IssueCode.VALUE_INVALID,
                severity=Severity.ERROR,
                subject=str(duplicate.path[-1]),
                message=f"{document.name}, line {duplicate.line}: {duplicate.path[-1]} is written twice; "
                f"the first is on line {duplicate.first_line}.",
                remedy="Delete one of the two.",
            )
            for duplicate in document.duplicates
        ]

    def where(self, at: JsonPath) -> str:
        """File and line of a value, to begin a message with."""
        line = self.document.lines.get(at)
        return f"{self.document.name}, line {line}" if line else self.document.name

    def error(
        self,
        at: JsonPath,
        subject: str,
        what: str,
        remedy: str,
        *,
        code: IssueCode = IssueCode.VALUE_INVALID,
        severity: Severity = Severity.ERROR,
    ) -> None:
        """Collect a problem at a place in the document."""
        message = f"{self.where(at)}: {what}"
        self.issues.append(Issue(code=code, severity=severity, subject=subject, message=message, remedy=remedy))

    def notice(self, at: JsonPath, subject: str, what: str, *, code: IssueCode = IssueCode.KEY_NORMALISED) -> None:
        """Collect something that was normalised or assumed."""
        self.error(at, subject, what, "", code=code, severity=Severity.NOTICE)

    def note(self, at: JsonPath, subject: str, note: Note) -> None:
        """Collect what a value reader has to say."""
        self.error(at, subject, note.message, note.remedy, code=note.code, severity=note.severity)

    def object(self, members: JsonValue, at: JsonPath, table: Mapping[str, Rule], prefix: str = "") -> Sections:
        """Values of the honoured keys of a JSON object; all other keys become issues.

        `prefix` stands before a key in an issue's subject ("my-dataset.").
        """
        sections: Sections = {}
        if not isinstance(members, dict):
            what = f"an object in braces is expected, not {_show(members)}."
            self.error(at, prefix.rstrip("."), what, "Write { ... } around its keys.")
            return sections
        for key, (written, value) in self._canonical(members, at, prefix).items():
            place, subject = (*at, written), prefix + key
            rule = table.get(key)
            if rule is None:
                self._unknown(place, subject, key, table)
            elif isinstance(rule, Honoured):
                if value is None and not rule.accepts_null:
                    continue
                section, field = rule.field.split(".")
                taken = None if value is None else self._read(rule, place, subject, value)
                if taken is not None or value is None:
                    sections.setdefault(section, {})[field] = taken
            elif value is not None and value not in rule.harmless:
                self._left_out(place, subject, value, rule)
        return sections

    def _canonical(self, members: dict[str, JsonValue], at: JsonPath, prefix: str) -> dict[str, tuple[str, JsonValue]]:
        """Key -> (key as written, value), without leading dashes and with aliases replaced."""
        found: dict[str, tuple[str, JsonValue]] = {}
        dashed = []
        for written, value in members.items():
            bare = written.lstrip("-")
            key = ALIASES.get(bare, bare)
            if bare != written:
                dashed.append(bare)
            if bare != key:
                self.notice((*at, written), prefix + key, f"{bare} is read as {key}.")
            if key in found and found[key][1] != value:
                what = f"{written} is {_show(value)}, but {found[key][0]} is {_show(found[key][1])}."
                self.error((*at, written), prefix + key, what, "They mean the same: delete one of the two.")
            found.setdefault(key, (written, value))
        if dashed:
            self.notice(at, prefix + dashed[0], f"The dashes before {', '.join(dashed)} are left out.")
        return found

    def _read(self, rule: Honoured, at: JsonPath, subject: str, value: JsonValue) -> Any | None:
        """The value, or None after collecting why it is not one."""
        try:
            taken = rule.read(value)
        except ValueError as error:
            what = f"{subject} is {_show(value)}; {error} is expected."
            self.error(at, subject, what, "Correct the value, or delete the key to get the default.")
            return None
        if not isinstance(taken, Normalised):
            return taken
        for note in taken.notes:
            self.note(at, subject, note)
        return taken.value

    def _unknown(self, at: JsonPath, subject: str, key: str, table: Mapping[str, Rule]) -> None:
        names = [*table, *(alias for alias, name in ALIASES.items() if name in table)]
        nearest = difflib.get_close_matches(key, names, n=1)
        remedy = f"Did you mean {nearest[0]}?" if nearest else "Delete it, or check its spelling."
        what = f"{key} is not a known key; it has no effect."
        self.error(at, subject, what, remedy, code=IssueCode.KEY_UNKNOWN, severity=Severity.WARNING)

    def _left_out(self, at: JsonPath, subject: str, value: JsonValue, rule: Unused | Refused) -> None:
        if isinstance(rule, Refused):
            what = f"{subject} is {_show(value)}, which cannot be done: {rule.why}."
            self.error(at, subject, what, "Delete the key.", code=IssueCode.KEY_NOT_USED)
            return
        what = f"{subject} is read, but not used here yet" + (f": {rule.why}." if rule.why else ".")
        severity = Severity.WARNING if rule.changes_training else Severity.NOTICE
        self.error(at, subject, what, "", code=IssueCode.KEY_NOT_USED, severity=severity)


def _show(value: JsonValue) -> str:
    """The value as JSON, shortened."""
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= 60 else shown[:57] + "..."
