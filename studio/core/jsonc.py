"""JSON with comments: what SimpleTuner's users write, read strictly and with line numbers."""

from __future__ import annotations

import bisect
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studio.core.errors import ConfigError

MAX_BYTES = 1_000_000
"""A configuration is a few kilobytes; more is a wrong file, or an attack."""
MAX_DEPTH = 64
"""Nested lists and objects; the recursion stays far below Python's own limit."""

JsonValue = None | bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"]
JsonPath = tuple[str | int, ...]
"""Keys and list positions from the top of a document to a value."""

_SPACE = re.compile(r"(?:[ \t\r\n]+|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"')
_WORD = re.compile(r"\w+|.", re.DOTALL)
_CONSTANTS: Mapping[str, bool | None] = {"true": True, "false": False, "null": None}
_MAX_DIGITS = 400
"""Python refuses to convert far longer integers; no double has more digits than about 309."""


@dataclass(frozen=True, slots=True)
class DuplicateKey:
    """A key written twice in one object; the later value was kept."""

    path: JsonPath
    first_line: int
    line: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A parsed file, with the line of everything in it."""

    name: str
    """File name, for messages."""
    value: JsonValue
    lines: Mapping[JsonPath, int] = field(default_factory=dict)
    """Line, counted from 1, at which a key (or a list entry) stands."""
    duplicates: tuple[DuplicateKey, ...] = ()
    text: str = ""
    """What was parsed."""
    spans: Mapping[JsonPath, tuple[int, int]] = field(default_factory=dict)
    """Where in `text` each value begins and ends."""


def read_jsonc(path: Path) -> Document:
    """The document in a UTF-8 file (a byte order mark is accepted).

    Raises:
        ConfigError: no such file, larger than 1 MB, not UTF-8, or not JSON; names file, line and column.
    """
    try:
        if not path.is_file():
            raise ConfigError(f"{path.name}: there is no such file.", f"Check the path: {path}")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path.name} cannot be read: {error.strerror}.", "Check the file's permissions.") from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(
            f"{path.name} is larger than 1 MB, which no configuration is.",
            "Check that this is the right file.",
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path.name} is not UTF-8 at byte {error.start}.", "Save the file as UTF-8.") from error
    return parse_jsonc(text, name=path.name)


def parse_jsonc(text: str, *, name: str) -> Document:
    """The document in `text`: JSON plus `//` and `/* */` comments and trailing commas.

    Raises:
        ConfigError: not JSON, nested deeper than 64, or a number that no double holds; names line and column.
    """
    parser = _Parser(text, name)
    value = parser.value((), parser.skip(0), depth=0)
    end = parser.skip(parser.end)
    if end < len(text):
        raise parser.error(end, "there is more text after the end")
    return Document(
        name=name, value=value, lines=parser.lines, duplicates=tuple(parser.duplicates), text=text, spans=parser.spans
    )


def with_value(document: Document, path: JsonPath, value: JsonValue) -> str:
    """The text of a document with another value at `path`, all else, comments among it, as it was written.

    A key that is not there is added behind the others of its object, objects that it lies in as well.

    Raises KeyError or IndexError: the path leads through something that is neither object nor list, or beyond a list.
    """
    here: JsonPath = ()
    for place, part in enumerate(path):
        if (*here, part) not in document.spans:
            return _with_member(document, here, part, path[place + 1 :], value)
        here = (*here, part)
    start, end = document.spans[path]
    return document.text[:start] + _written(value) + document.text[end:]


def _with_member(document: Document, at: JsonPath, key: str | int, inner: JsonPath, value: JsonValue) -> str:
    """The text with a new member in the object at `at`."""
    members: Any = document.value
    for part in at:
        members = members[part]
    if not isinstance(members, dict):
        raise KeyError(key)
    for part in reversed(inner):
        value = {str(part): value}
    start, end = document.spans[at]
    line = document.text[document.text.rfind("\n", 0, start) + 1 : start]
    indent = line[: len(line) - len(line.lstrip())]
    written = f"\n{indent}  {json.dumps(key)}: {_written(value)}"
    after = max((document.spans[(*at, known)][1] for known in members), default=start + 1)
    follows = _SPACE.match(document.text, after)
    comma = "" if not members or (follows and document.text.startswith(",", follows.end())) else ","
    rest = document.text[after : end - 1].rstrip()
    return f"{document.text[:after]}{comma}{rest}{written}\n{indent}{document.text[end - 1 :]}"


def _written(value: JsonValue) -> str:
    return json.dumps(value, ensure_ascii=False)


class _Parser:
    """Recursive descent over one text; `end` is the position after the last value read."""

    def __init__(self, text: str, name: str) -> None:
        self.text = text
        self.name = name
        self.end = 0
        self.lines: dict[JsonPath, int] = {}
        self.duplicates: list[DuplicateKey] = []
        self.spans: dict[JsonPath, tuple[int, int]] = {}
        self._newlines = [match.start() for match in re.finditer("\n", text)]

    def value(self, path: JsonPath, at: int, *, depth: int) -> JsonValue:
        """The value that starts at `at`."""
        if depth > MAX_DEPTH:
            raise self.error(at, f"it is nested deeper than {MAX_DEPTH} levels")
        value = self._value(path, at, depth)
        self.spans[path] = (at, self.end)
        return value

    def _value(self, path: JsonPath, at: int, depth: int) -> JsonValue:
        char = self.text[at : at + 1]
        if char == "{":
            return self._object(path, at, depth)
        if char == "[":
            return self._list(path, at, depth)
        if char == '"':
            return self._string(at)
        return self._scalar(at)

    def _object(self, path: JsonPath, start: int, depth: int) -> dict[str, JsonValue]:
        members: dict[str, JsonValue] = {}
        at = self.skip(start + 1)
        while self.text[at : at + 1] != "}":
            if self.text[at : at + 1] != '"':
                raise self.error(at, 'a key in double quotes, or "}", was expected', opened=start)
            key = self._string(at)
            here = (*path, key)
            if key in members:
                self.duplicates.append(DuplicateKey(here, self.lines[here], self.line(at)))
            self.lines[here] = self.line(at)
            at = self.skip(self.end)
            if self.text[at : at + 1] != ":":
                raise self.error(at, f'":" was expected after "{key}"')
            members[key] = self.value(here, self.skip(at + 1), depth=depth + 1)
            at = self._after_item("}", start)
        self.end = at + 1
        return members

    def _list(self, path: JsonPath, start: int, depth: int) -> list[JsonValue]:
        items: list[JsonValue] = []
        at = self.skip(start + 1)
        while self.text[at : at + 1] != "]":
            here = (*path, len(items))
            self.lines[here] = self.line(at)
            items.append(self.value(here, at, depth=depth + 1))
            at = self._after_item("]", start)
        self.end = at + 1
        return items

    def _after_item(self, closing: str, opened: int) -> int:
        """Position of the next item or of the closing bracket; a trailing comma is accepted."""
        at = self.skip(self.end)
        if self.text[at : at + 1] == ",":
            return self.skip(at + 1)
        if self.text[at : at + 1] != closing:
            raise self.error(at, f'"," or "{closing}" was expected', opened=opened)
        return at

    def _string(self, at: int) -> str:
        token = _STRING.match(self.text, at)
        if token is None:
            raise self.error(at, "a string is not closed on its line, or holds a control character")
        try:
            string = json.loads(token.group())
        except json.JSONDecodeError as error:
            what = "a string holds a wrong escape (a backslash itself is written twice)"
            raise self.error(at + error.pos, what) from error
        if "\0" in string or any("\ud800" <= char <= "\udfff" for char in string):
            raise self.error(at, "a string holds what no text has (a NUL, or half a surrogate pair)")
        self.end = token.end()
        return string

    def _scalar(self, at: int) -> JsonValue:
        number = _NUMBER.match(self.text, at)
        if number:
            self.end = number.end()
            if number.end() - at > _MAX_DIGITS or not math.isfinite(float(number.group())):
                raise self.error(at, "the number is too large")
            return int(number.group()) if number.group().lstrip("-").isdigit() else float(number.group())
        word = _WORD.match(self.text, at)
        if word and word.group() in _CONSTANTS:
            self.end = word.end()
            return _CONSTANTS[word.group()]
        raise self.error(at, "a value was expected" + (f", not {word.group()[:40]!r}" if word else ""))

    def skip(self, at: int) -> int:
        """Position after blanks and comments."""
        match = _SPACE.match(self.text, at)
        end = match.end() if match else at
        if self.text.startswith("/*", end):
            raise self.error(end, "a /* comment is not closed")
        return end

    def line(self, at: int) -> int:
        """Line of a position, counted from 1."""
        return bisect.bisect_left(self._newlines, at) + 1

    def error(self, at: int, what: str, *, opened: int | None = None) -> ConfigError:
        """The error at a position; a file that just ends names the bracket left open."""
        line = self.line(at)
        column = at - (self._newlines[line - 2] + 1 if line > 1 else 0) + 1
        where = f"{self.name}, line {line}, column {column}"
        if at >= len(self.text):
            what = f"the file ends here; {what}"
            if opened is not None:
                what += f" (the bracket was opened on line {self.line(opened)})"
        return ConfigError(f"{where}: {what}.", "Correct this place in the file.")
