"""What users read: both languages say the same things, and the pages take every word from the tables."""

import ast
import re
import string
from pathlib import Path

import pytest

from studio.core.runlog import RunState
from studio.core.types import IssueCode, Severity
from studio.view import words_en, words_es
from studio.view.words import LANGUAGES, words

ROOT = Path(__file__).parents[2]
FACES = [*sorted((ROOT / "studio/ui").glob("*.py")), *sorted((ROOT / "studio/nb").glob("*.py"))]


def placeholders(text):
    return sorted(name for _, name, _, _ in string.Formatter().parse(text) if name)


def test_both_tables_have_the_same_keys():
    assert words_en.TEXTS.keys() == words_es.TEXTS.keys()


def test_both_tables_have_the_same_placeholders():
    wrong = [k for k, text in words_en.TEXTS.items() if placeholders(text) != placeholders(words_es.TEXTS[k])]
    assert not wrong


def test_every_issue_has_a_verdict_in_both_languages():
    codes = {code.value for code in IssueCode}
    assert words_en.VERDICTS.keys() == words_es.VERDICTS.keys() == words_es.MENDS.keys() == codes
    assert not words_en.MENDS, "in English the issue itself says what to do"


@pytest.mark.parametrize("language", LANGUAGES)
def test_states_and_severities_have_words(language):
    w = words(language)
    assert all(w(f"state.{state.value}") for state in RunState)
    assert all(w(f"severity.{severity.value}") for severity in Severity)


def test_an_unknown_key_or_a_missing_value_is_an_error():
    with pytest.raises(KeyError):
        words("en")("no.such.key")
    with pytest.raises(KeyError):
        words("en")("progress.step", step=1)


@pytest.mark.parametrize(
    ("seconds", "said"), [(8.12, "8,1 s"), (34.4, "34 s"), (150, "2 min 30 s"), (3900, "1 h 5 min")]
)
def test_durations_are_said_in_the_units_that_people_use(seconds, said):
    assert words("es").duration(seconds) == said


def used_keys(file):
    """Literal keys given to `w(...)`, and `w.count(...)` with both of its forms."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
            continue
        called = ast.unparse(node.func)
        if called == "w":
            yield node.args[0].value
        elif called == "w.count":
            yield from (f"{node.args[0].value}.one", f"{node.args[0].value}.many")


@pytest.mark.parametrize("file", [*FACES, *sorted((ROOT / "studio/view").glob("*.py"))], ids=lambda file: file.name)
def test_every_key_in_use_is_in_the_tables(file):
    assert not set(used_keys(file)) - words_en.TEXTS.keys()


def key_patterns(file):
    """Every text of a file that may be a key, as a pattern; what an f-string fills in may be any one word."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = [re.escape(v.value) if isinstance(v, ast.Constant) else r"\w+" for v in node.values]
            yield "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.escape(node.value)


def test_every_key_in_the_tables_is_used():
    tables = {ROOT / "studio/view/words_en.py", ROOT / "studio/view/words_es.py"}
    files = [file for file in sorted((ROOT / "studio").rglob("*.py")) if file not in tables]
    used = {pattern for file in files for pattern in key_patterns(file)}
    # A key begins with a literal word: f"{key}.one" says nothing about which key it is.
    used = re.compile("|".join(sorted(p for p in used if re.match(r"[a-z]+(\\\.|$)", p))))
    keys = {re.sub(r"\.(one|many)$", "", key) for key in words_en.TEXTS}
    unused = sorted(key for key in keys if not used.fullmatch(key))
    assert not unused


SHOWN = {"label", "info", "placeholder", "title"}
"""Arguments of components that users read."""


@pytest.mark.parametrize("file", FACES, ids=lambda file: file.name)
def test_components_show_no_literal_words(file):
    wrong = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        shown = [k.value for k in node.keywords if k.arg in SHOWN]
        if ast.unparse(node.func) in ("gr.Button", "gr.Tab", "gr.Accordion", "gr.DownloadButton", "markup.note"):
            shown += node.args[:1]
        wrong += [f"line {v.lineno}: {v.value!r}" for v in shown if isinstance(v, ast.Constant) and v.value]
    assert not wrong, "\n".join(wrong)
