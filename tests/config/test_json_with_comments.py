"""What users write into JSON, and where exactly it is broken."""

import pytest

from studio.core.errors import ConfigError
from studio.core.jsonc import parse_jsonc, read_jsonc


def value(text):
    return parse_jsonc(text, name="config.json").value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1, // why\n "b": [1, 2,],}', {"a": 1, "b": [1, 2]}),
        ('/* all\n of it */ {"a": "http://x /* no */"}', {"a": "http://x /* no */"}),
        ("[-0.5e-3, true, null]", [-0.5e-3, True, None]),
        (r'["\u00e9\n\"\\"]', ['é\n"\\']),
        ("{}", {}),
    ],
)
def test_comments_and_trailing_commas_are_accepted(text, expected):
    assert value(text) == expected


def test_whole_numbers_stay_whole():
    assert [type(item) for item in value("[1, 1.0, -3]")] == [int, float, int]


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ('{\n "a": 1\n "b": 2\n}', 3, 2),
        ('{"a" 1}', 1, 6),
        ('{\n "a": NaN}', 2, 7),
        ("{'a': 1}", 1, 2),
        ('{"a": 1e999}', 1, 7),
        ('{"a": "x\n"}', 1, 7),
        (r'{"a": "C:\data"}', 1, 10),
        ('{"a": "\\u0000"}', 1, 7),
        ('{"a": "\\ud800"}', 1, 7),
        ("[1, 2", 1, 6),
        ("[1] [2]", 1, 5),
        ("/* never closed", 1, 1),
        ("", 1, 1),
        ("[01]", 1, 3),
        ("[" * 100, 1, 66),
        ("9" * 5000, 1, 1),
    ],
)
def test_a_mistake_is_named_with_file_line_and_column(text, line, column):
    with pytest.raises(ConfigError, match=rf"config\.json, line {line}, column {column}:") as caught:
        value(text)
    assert caught.value.remedy


def test_the_bracket_left_open_is_named_when_the_file_just_ends():
    with pytest.raises(ConfigError, match="opened on line 2"):
        value('[\n{"a": 1,\n"b": 2')


def test_a_byte_order_mark_is_accepted(tmp_path):
    (tmp_path / "c.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_jsonc(tmp_path / "c.json").value == {"a": 1}


@pytest.mark.parametrize(
    ("content", "says"),
    [(b'{"a": "\xff"}', "not UTF-8 at byte 7"), (b" " * 1_000_001, "larger than 1 MB")],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path, content, says):
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        read_jsonc(tmp_path / "c.json")


def test_a_folder_is_not_a_file(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        read_jsonc(tmp_path)
