"""Every sentence that a user reads, by language and key; the tables are `words_en` and `words_es`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from studio.core.types import Issue, IssueCode
from studio.view import words_en, words_es

Language = Literal["en", "es"]
LANGUAGES: Mapping[Language, str] = {"en": "English", "es": "Español"}
"""Languages by their own names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Words:
    """The words of one language."""

    language: Language
    texts: Mapping[str, str]
    verdicts: Mapping[IssueCode, str]
    """A problem in a few words."""
    mends: Mapping[IssueCode, str]
    """What to do about it; empty in English, where the issue itself says it."""

    def __call__(self, key: str, **values: object) -> str:
        """The text of `key` with its placeholders filled. Raises KeyError for an unknown key or a missing value."""
        return self.texts[key].format_map(values)

    def count(self, key: str, number: int, **values: object) -> str:
        """`key.one` for 1, else `key.many`; both know the placeholder `n`."""
        return self(f"{key}.one" if number == 1 else f"{key}.many", n=number, **values)

    def verdict(self, issue: Issue) -> str:
        """The issue in a few words."""
        return self.verdicts[issue.code]

    def mend(self, issue: Issue) -> str:
        """What to do about the issue."""
        return self.mends[issue.code] if self.mends else issue.remedy

    def duration(self, seconds: float) -> str:
        """`8.1 s`, `34 s`, `2 min 30 s` or `1 h 5 min`."""
        if seconds < 10:
            return self("duration.short", s=self.number(seconds, 1))
        whole = round(seconds)
        if whole < 60:
            return self("duration.s", s=whole)
        if whole < 3600:
            return self("duration.min", m=whole // 60, s=whole % 60)
        return self("duration.h", h=whole // 3600, m=whole % 3600 // 60)

    def number(self, value: float, digits: int) -> str:
        """A decimal with the language's own point."""
        return f"{value:.{digits}f}".replace(".", self.texts["decimal"])


def words(language: Language) -> Words:
    """The words of a language. Raises KeyError for one that has no table."""
    table = {"en": words_en, "es": words_es}[language]
    verdicts = {IssueCode(code): text for code, text in table.VERDICTS.items()}
    mends = {IssueCode(code): text for code, text in table.MENDS.items()}
    return Words(language=language, texts=table.TEXTS, verdicts=verdicts, mends=mends)
