"""Which start frame and captions a clip gets, and what is said when it gets none."""

import unicodedata

import pytest

from studio.core.config import DatasetConfig
from studio.core.data.pair import orphan_frames, pair_files
from studio.core.data.scan import scan_folder
from studio.core.types import IssueCode, Severity


@pytest.fixture
def pair(tmp_path):
    """pair(names, **dataset): pairs of empty files, `c/` for clips and captions, `s/` for start frames."""

    def pair(*names, **fields):
        for folder in ("c", "s"):
            (tmp_path / folder).mkdir(exist_ok=True)
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("it moves" if path.suffix == ".txt" else "")
        dataset = DatasetConfig(
            **{"id": "c", "kind": "video", "directory": tmp_path / "c", "conditioning_ids": ("s",), **fields}
        )
        return pair_files(dataset, scan_folder(tmp_path / "c"), {"s": scan_folder(tmp_path / "s")})

    return pair


def codes(files):
    return [issue.code for issue in files.issues]


def test_a_clip_finds_its_start_frame_and_caption_by_name_in_sub_folders_too(pair, tmp_path):
    first, second = pair("c/a.mp4", "c/a.txt", "s/a.png", "c/x/a.mov", "c/x/a.txt", "s/x/a.webp")
    assert (first.name, first.start_frame, first.captions) == ("a", tmp_path / "s/a.png", ("it moves",))
    assert (second.name, second.start_frame) == ("x/a", tmp_path / "s/x/a.webp")
    assert codes(first) == codes(second) == []


def test_a_clip_without_start_frame_is_an_error_naming_the_expected_file(pair):
    (files,) = pair("c/x/a.mp4", "c/x/a.txt", "s/a.png")
    (issue,) = files.issues
    assert (issue.code, issue.severity) == (IssueCode.START_FRAME_MISSING, Severity.ERROR)
    assert issue.subject == "x/a.mp4"
    assert "x/a.png is expected in s" in issue.message
    assert "first frame" in issue.remedy


def test_a_text_to_video_dataset_needs_no_start_frame(pair):
    (files,) = pair("c/a.mp4", "c/a.txt", is_i2v=False)
    assert codes(files) == []


def test_a_start_frame_without_clip_is_a_warning(pair, tmp_path):
    (files,) = pair("c/a.mp4", "c/a.txt", "s/a.png", "s/b.png")
    (issue,) = orphan_frames(scan_folder(tmp_path / "s"), frozenset(files.claimed), "s")
    assert (issue.code, issue.severity, issue.subject) == (
        IssueCode.START_FRAME_ORPHAN,
        Severity.WARNING,
        "b.png",
    )


def test_two_start_frames_are_an_error_naming_both_and_none_is_chosen(pair):
    (files,) = pair("c/a.mp4", "c/a.txt", "s/a.png", "s/a.jpg")
    (issue,) = files.issues
    assert issue.code is IssueCode.STEM_DUPLICATE
    assert "a.png" in issue.message
    assert "a.jpg" in issue.message
    assert files.start_frame is None
    assert len(files.claimed) == 2


def test_two_clips_of_one_name_are_an_error_naming_both(pair):
    pairs = pair("c/a.mp4", "c/a.MOV", "c/a.txt", "s/a.png")
    assert [codes(files) for files in pairs] == [[IssueCode.STEM_DUPLICATE]] * 2
    assert "a.MOV, a.mp4" in pairs[0].issues[0].message


def test_a_difference_in_case_is_matched_and_reported(pair):
    (files,) = pair("c/Cat.mp4", "c/Cat.txt", "s/cat.PNG")
    (issue,) = files.issues
    assert (issue.code, issue.severity) == (IssueCode.NAME_MATCHED_LOOSELY, Severity.WARNING)
    assert "upper and lower case" in issue.message
    assert files.start_frame.name == "cat.PNG"


def test_a_difference_in_unicode_form_is_matched_and_reported(pair):
    composed, decomposed = (unicodedata.normalize(form, "niño") for form in ("NFC", "NFD"))
    (files,) = pair(f"c/{decomposed}.mp4", f"c/{decomposed}.txt", f"s/{composed}.png")
    assert files.name == composed
    assert codes(files) == [IssueCode.NAME_MATCHED_LOOSELY]
    assert "Unicode form" in files.issues[0].message


def test_an_exact_name_is_never_lent_to_another_clip(pair):
    upper, lower = pair("c/A.mp4", "c/A.txt", "c/a.mp4", "c/a.txt", "s/a.png")
    assert (upper.name, codes(upper)) == ("A", [IssueCode.START_FRAME_MISSING])
    assert codes(lower) == []


@pytest.mark.parametrize(
    ("content", "captions"),
    [
        (b"one\n\n  two \n", ("one", "two")),
        (b"\xef\xbb\xbfone\r\ntwo", ("one", "two")),
        ("corre el niño".encode(), ("corre el niño",)),
    ],
)
def test_each_line_of_a_caption_file_is_a_caption(pair, tmp_path, content, captions):
    pair("c/a.mp4", "s/a.png", "c/a.txt")
    (tmp_path / "c/a.txt").write_bytes(content)
    (files,) = pair()
    assert files.captions == captions


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [
        (None, IssueCode.CAPTION_MISSING, "a.txt is missing"),
        (b" \r\n\t", IssueCode.CAPTION_MISSING, "a.txt is empty"),
        (b"caf\xe9", IssueCode.CAPTION_UNREADABLE, "not UTF-8 at byte 3"),
        ("hi".encode("utf-16"), IssueCode.CAPTION_UNREADABLE, "UTF-16"),
        (b"a\0b", IssueCode.CAPTION_UNREADABLE, "NUL"),
        (b"x" * 200_000, IssueCode.CAPTION_UNREADABLE, "too long"),
    ],
)
def test_a_caption_that_cannot_be_used_is_an_error(pair, tmp_path, content, code, says):
    pair("c/a.mp4", "s/a.png")
    if content is not None:
        (tmp_path / "c/a.txt").write_bytes(content)
    (files,) = pair()
    (issue,) = files.issues
    assert (issue.code, issue.severity, issue.subject) == (code, Severity.ERROR, "a.txt")
    assert says in issue.message
    assert issue.remedy


@pytest.mark.parametrize(
    ("fields", "captions"),
    [
        ({"caption_strategy": None}, ("",)),
        ({"caption_strategy": "filename"}, ("a red ball",)),
        ({"caption_strategy": "instanceprompt", "instance_prompt": "sks"}, ("sks",)),
    ],
)
def test_captions_can_come_from_elsewhere(pair, fields, captions):
    (files,) = pair("c/x/a_red_ball.mp4", "s/x/a_red_ball.png", **fields)
    assert files.captions == captions
    assert codes(files) == []
