"""Clips that the configuration leaves out are named with the key; they neither block training nor are to mend."""

import pytest

from studio.core.config import DataConfig, DatasetConfig
from studio.core.data.check import check_dataset
from studio.core.types import IssueCode, Severity
from studio.view.verdicts import count_kinds, summary_parts, verdict_of
from studio.view.words import words


@pytest.fixture
def check(tmp_path, add_pair):
    """check(clip settings by name, framerate, **dataset fields): the report."""

    def run(clips, framerate=None, **fields):
        for name, clip in clips.items():
            add_pair(name, **{"height": 64, "width": 64, "num_frames": 9, **clip})
        settings = {"resolution": 64, "num_frames": 9, "conditioning_ids": ("frames",), **fields}
        data = DataConfig(
            datasets=(
                DatasetConfig(id="clips", kind="video", directory=tmp_path / "clips", **settings),
                DatasetConfig(id="frames", kind="conditioning", directory=tmp_path / "start_frames"),
            ),
            framerate=framerate,
        )
        return check_dataset(data)

    return run


CLIPS = {"a": {}, "b": {"num_frames": 13}, "c": {"width": 128}, "d": {"height": 96, "width": 96}}


@pytest.mark.parametrize(
    ("fields", "left_out", "says"),
    [
        ({"min_frames": 13}, ["a", "c", "d"], "it has 9 frames, video.min_frames is 13"),
        ({"max_frames": 12}, ["b"], "it has 13 frames, video.max_frames is 12"),
        ({"max_aspect": 1.5}, ["c"], "its width is 2 times its height, maximum_aspect_ratio is 1.5"),
        ({"min_aspect": 1.5}, ["a", "b", "d"], "its width is 1 times its height, minimum_aspect_ratio is 1.5"),
        ({"min_size": 80}, ["a", "b"], "it measures 64 pixels, minimum_image_size is 80"),
        ({"min_size": 80, "resolution_type": "pixel"}, ["a", "b", "c"], "it measures 64 pixels"),
        (
            {"min_size": 0.009, "resolution_type": "area", "resolution": 0.004},
            ["a", "b", "c"],
            "it measures 0.004096 megapixels, minimum_image_size is 0.009",
        ),
        ({"max_samples": 3}, ["d"], "max_num_samples is 3"),
    ],
)
def test_a_clip_beyond_a_limit_is_left_out_and_the_key_named(check, fields, left_out, says):
    report = check(CLIPS, **fields)
    assert [pair.name for pair in report.pairs if pair.is_left_out] == left_out
    assert [pair.name for pair in report.pairs if pair.is_ready] == [name for name in CLIPS if name not in left_out]
    assert report.is_ok
    (issue,) = next(pair for pair in report.pairs if pair.is_left_out).issues
    assert (issue.code, issue.severity) == (IssueCode.CLIP_LEFT_OUT, Severity.NOTICE)
    assert f"{left_out[0]}.mp4 is left out" in issue.message
    assert says in issue.message


def test_without_limits_nothing_is_left_out(check):
    assert all(pair.is_ready for pair in check(CLIPS).pairs)


def test_limits_of_frames_count_those_of_the_rate_that_is_read(check):
    report = check(
        {"a": {"num_frames": 20, "fps": 30}, "b": {"num_frames": 12, "fps": 15}}, framerate=15, min_frames=11
    )
    assert [pair.name for pair in report.pairs if pair.is_left_out] == ["a"]
    assert "20 frames, 10 at 15 a second" in report.pairs[0].issues[0].message


def test_what_a_clip_that_is_left_out_lacks_need_not_be_mended(check, tmp_path):
    check(CLIPS)
    (tmp_path / "clips" / "b.txt").unlink()
    (tmp_path / "start_frames" / "b.png").unlink()
    assert not check({}).is_ok
    report = check({}, max_frames=12)
    assert report.is_ok
    assert [issue.code for issue in report.pairs[1].issues] == [IssueCode.CLIP_LEFT_OUT]


def test_a_clip_left_out_already_does_not_count_towards_the_number(check):
    report = check(CLIPS, max_frames=12, max_samples=2)
    assert [pair.name for pair in report.pairs if pair.is_ready] == ["a", "c"]


def test_a_dataset_of_which_nothing_remains_is_an_error_that_says_why(check):
    report = check(CLIPS, min_frames=93)
    (issue,) = report.errors
    assert issue.code is IssueCode.NO_CLIPS
    assert "All clips of clips (4) are left out" in issue.message
    assert "a.mp4 is left out, it is not trained on: it has 9 frames, video.min_frames is 93" in issue.message


@pytest.mark.parametrize(
    ("language", "summary", "label"),
    [("en", ["3 ready", "1 left out"], "Left out"), ("es", ["3 listos", "1 excluido"], "Excluido")],
)
def test_the_desk_shows_them_as_a_kind_of_their_own(check, language, summary, label):
    report, w = check(CLIPS, max_frames=12), words(language)
    assert (count_kinds(report)["left_out"], count_kinds(report)["mend"]) == (1, 0)
    assert [text for _, text in summary_parts(report, w)] == summary
    verdict = verdict_of(report.pairs[1], w)
    assert (verdict.kind, verdict.icon) == ("left_out", "–")
    assert verdict.label.startswith(label)


@pytest.mark.parametrize(
    ("fields", "captions"),
    [
        ({}, ("one", "two")),
        ({"split_captions": False}, ("one two",)),
        ({"prepend_instance_prompt": True, "instance_prompt": "sks"}, ("sks one", "sks two")),
        (
            {"prepend_instance_prompt": True, "instance_prompt": "sks", "caption_strategy": "filename"},
            ("sks the clip",),
        ),
        ({"caption_strategy": "instanceprompt", "instance_prompt": "sks"}, ("sks",)),
        ({"caption_strategy": None}, ("",)),
    ],
)
def test_captions_are_what_the_keys_say(check, fields, captions):
    (pair,) = check({"the_clip": {"caption": "one\n\n two \n"}}, **fields).pairs
    assert pair.captions == captions
