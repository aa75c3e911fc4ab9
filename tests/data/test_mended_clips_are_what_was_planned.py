"""Scenes, start frames, formats, names, captions and keys: each comes out of a mend as the plan said."""

import json
import subprocess
import unicodedata
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from studio.core.data.check import check_project
from studio.core.data.decode import read_frames, read_image
from studio.core.data.mend import MendChoice, MendKind, offered_mends, plan_mends, write_mends
from studio.core.errors import ConfigError, DatasetError
from studio.core.types import IssueCode, Severity

FFMPEG = (imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y")
EVERY_KIND = frozenset(MendKind) - {MendKind.PAD}


def scene(seed, index, height, width):
    """Coloured blocks with a bright square that moves to and fro: uint8 [H,W,3]."""
    blocks = np.random.default_rng(seed).integers(30, 200, (6, 6, 3), np.uint8)
    picture = np.array(Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST))
    left = abs((4 * index) % (2 * (width - 16)) - (width - 16))
    picture[height // 3 : height // 3 + 16, left : left + 16] = 255
    return picture


def draw_scenes(path, *lengths, height=64, width=64, fps=15, seed=0):
    """A clip of hard cuts; scenes have these lengths."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "12"})
        stream.height, stream.width = height, width
        stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
        for number, length in enumerate(lengths):
            for index in range(length):
                picture = scene(10 * seed + number, index, height, width)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def mend(folder, into, *kinds, **choice):
    """The plan, and the check of the mended dataset."""
    plan = plan_mends(*check_project(folder), MendChoice(kinds=frozenset(kinds), **choice))
    return plan, check_project(write_mends(plan, into))


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def first_frame(pair):
    return read_frames(pair.clip, 1)[0]


def unmended(project, report):
    """What is offered again, but for what cannot be: still clips and clips alike stay as they are."""
    return set(offered_mends(project, report))


def test_every_scene_becomes_a_clip_with_its_first_frame_and_the_captions(tmp_path):
    clip = draw_scenes(tmp_path / "d" / "clips" / "a.mp4", 9, 4, 13)
    clip.with_suffix(".txt").write_text("one\ntwo\n", encoding="utf-8")
    other = draw_scenes(clip.with_name("a-1.mp4"), 9, seed=1)
    other.with_suffix(".txt").write_text("whole", encoding="utf-8")
    plan, (project, report) = mend(tmp_path / "d", tmp_path / "m", MendKind.SPLIT_SCENES, MendKind.START_FRAMES)
    assert [(planned.name, planned.first_frame, planned.new_num_frames) for planned in plan.clips] == [
        ("a-1", 0, 9), ("a-1-2", 0, 9), ("a-3", 13, 13),
    ]  # fmt: skip
    assert [reason for _, reason in plan.left_out] == ["Scene 2 of a has 4 frames; at least 5 are needed."]
    pieces = {pair.name: pair for pair in report.pairs}
    assert {name: pair.clip.num_frames for name, pair in pieces.items()} == {"a-1": 9, "a-1-2": 9, "a-3": 13}
    assert [pieces[name].captions for name in ("a-1", "a-1-2", "a-3")] == [("whole",), ("one", "two"), ("one", "two")]
    source = read_frames(plan.clips[-1].pair.clip, 14)
    assert np.array_equal(read_image(pieces["a-1-2"].start_frame.path), source[0])
    assert np.array_equal(read_image(pieces["a-3"].start_frame.path), source[13])
    assert not unmended(project, report) & {MendKind.SPLIT_SCENES, MendKind.START_FRAMES}
    assert report.is_ok


def test_a_wrong_a_blank_and_a_distorted_start_frame_become_the_first_frame(tmp_path):
    folder = tmp_path / "d"
    wrong = {
        "other": scene(99, 0, 64, 64),
        "blank": np.zeros((64, 64, 3), np.uint8),
        "wide": scene(0, 0, 64, 128),
        "sound": None,
    }
    for seed, (name, picture) in enumerate(wrong.items()):
        clip = draw_scenes(folder / "clips" / f"{name}.mp4", 9, seed=seed)
        clip.with_suffix(".txt").write_text(name)
        (folder / "start_frames").mkdir(exist_ok=True)
        picture = scene(10 * seed, 0, 64, 64) if picture is None else picture
        Image.fromarray(picture).save(folder / "start_frames" / f"{name}.png")
    assert {pair.name for pair in offered_mends(*check_project(folder))[MendKind.REPLACE_START_FRAMES]} == {
        "other", "blank", "wide",
    }  # fmt: skip
    _, (project, report) = mend(folder, tmp_path / "m", MendKind.REPLACE_START_FRAMES)
    assert not {issue.code for issue in report.all_issues} & {
        IssueCode.START_FRAME_DIFFERS, IssueCode.START_FRAME_BLANK, IssueCode.ASPECT_MISMATCH,
    }  # fmt: skip
    assert MendKind.REPLACE_START_FRAMES not in unmended(project, report)
    for pair in report.pairs:
        kept = (folder / "start_frames" / f"{pair.name}.png").read_bytes() == pair.start_frame.path.read_bytes()
        assert kept == (pair.name == "sound")
        assert (pair.clip.path.read_bytes()) == (folder / "clips" / f"{pair.name}.mp4").read_bytes()
        assert kept or np.array_equal(read_image(pair.start_frame.path), first_frame(pair))


SOURCES = {
    "rotated.mp4": ("-display_rotation", "90", "-i", None, "-c", "copy"),
    "varying.mp4": ("-i", None, "-vf", "select=not(between(n\\,5\\,9))", "-fps_mode", "vfr", "-c:v", "libx264"),
    "odd.mp4": ("-i", None, "-vf", "crop=95:63:0:0:exact=1", "-c:v", "libx264", "-pix_fmt", "yuv444p"),
    "ten_bit.mp4": ("-i", None, "-c:v", "libx264", "-pix_fmt", "yuv420p10le"),
    "av1.webm": ("-i", None, "-c:v", "libsvtav1", "-preset", "12"),
    "full_range.mp4": ("-i", None, "-vf", "scale=out_range=full", "-c:v", "libx264", "-color_range", "pc"),
    "bt709.mp4": ("-i", None, "-vf", "scale=out_color_matrix=bt709", "-c:v", "libx264", "-colorspace", "bt709"),
    "hd.mp4": ("-i", None, "-vf", "scale=1280:96", "-c:v", "libx264"),
}


@pytest.fixture(scope="module")
def formats(tmp_path_factory):
    """A folder of clips in other formats than those that mends write, 24 frames at 30 a second."""
    folder = tmp_path_factory.mktemp("formats")
    source = draw_scenes(folder / "source.mp4", 24, height=64, width=96, fps=30)
    (folder / "d").mkdir()
    for name, options in SOURCES.items():
        given = (str(source) if option is None else option for option in options)
        subprocess.run([*FFMPEG, *given, str(folder / "d" / name)], check=True, capture_output=True)
    return folder / "d"


def test_clips_of_every_format_are_recoded_with_the_same_pictures_and_tagged_colours(formats, tmp_path, fingerprint):
    before = fingerprint(formats)
    project, report = check_project(formats)
    choice = MendChoice(kinds=frozenset({MendKind.TRIM, MendKind.FRAME_RATE, MendKind.START_FRAMES}))
    plan = plan_mends(project, report, choice)
    after = check_project(write_mends(plan, tmp_path / "m"))[1]
    assert not plan.left_out
    assert len(after.pairs) == len(SOURCES)
    for pair, planned in zip(after.pairs, plan.clips, strict=True):
        clip = pair.clip
        assert (clip.fps, clip.slowest_fps, clip.num_frames) == (15, clip.fastest_fps, planned.new_num_frames)
        assert (clip.height, clip.width) == planned.new_size
        assert clip.num_frames % 4 == 1
        source = read_frames(planned.pair.clip, planned.frames[-1] + 1)[list(planned.frames)]
        shown = read_frames(clip, clip.num_frames)
        height, width = (min(side) for side in zip(planned.size, planned.new_size, strict=True))
        wanted = source[:, :height, :width].astype(float)
        # yuv420p alone costs 4 levels here; with the wrong matrix or range it would be 7 and more.
        assert np.abs(shown[:, :height, :width] - wanted).mean() < 5, pair.name
        with av.open(str(clip.path)) as container:
            frame = next(container.decode(video=0))
        assert (frame.colorspace, frame.color_range, frame.color_primaries) == (1 if "hd" in pair.name else 6, 1, 1)
    assert fingerprint(formats) == before


@pytest.mark.parametrize("size", [MendKind.CROP, MendKind.PAD])
def test_all_mends_together_leave_nothing_to_mend(tmp_path, fingerprint, size):
    folder = tmp_path / "d"
    draw_scenes(folder / "cuts.mp4", 14, 22, height=62, width=96, fps=30)
    draw_scenes(folder / "sub" / "slow.mp4", 9, height=90, width=64, fps=10, seed=1)
    before = fingerprint(folder)
    _, (project, report) = mend(folder, tmp_path / "m", *EVERY_KIND - {MendKind.CROP}, size)
    assert not unmended(project, report)
    assert report.is_ok
    assert fingerprint(folder) == before


def test_a_chosen_rate_stays_and_holds_for_clips_that_come_later(tmp_path):
    draw_scenes(tmp_path / "d" / "a.mp4", 30, fps=30)
    draw_scenes(tmp_path / "d" / "b.mp4", 30, fps=24, seed=1)
    plan, (project, report) = mend(tmp_path / "d", tmp_path / "m", MendKind.FRAME_RATE, frame_rate=24)
    assert [clip.is_copied for clip in plan.clips] == [False, True]
    assert project.run.data.framerate == 24
    assert [(pair.clip.fps, pair.frame_indices) for pair in report.pairs] == [(24, ()), (24, ())]
    assert MendKind.FRAME_RATE not in unmended(project, report)


def write_project(folder, config, datasets):
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "multidatabackend.json").write_text(json.dumps(datasets), encoding="utf-8")
    return folder


def dataset_of_clips(name, **more):
    return {
        "id": name, "type": "local", "dataset_type": "video", "instance_data_dir": f"in/{name}",
        "caption_strategy": "textfile", "resolution": 64, "resolution_type": "pixel",
        "video": {"num_frames": 9, "is_i2v": True}, "repeats": 3, **more,
    }  # fmt: skip


def dataset_of_images(name):
    return {
        "id": name, "type": "local", "dataset_type": "conditioning", "conditioning_type": "reference_strict",
        "instance_data_dir": f"in/{name}",
    }  # fmt: skip


@pytest.mark.parametrize("images", [("s", "s"), ("s", "t"), (None, "t")])
def test_two_datasets_keep_their_keys_and_get_start_frames_of_their_own(tmp_path, images):
    folder = tmp_path / "d"
    for seed, name in enumerate("xy"):
        draw_scenes(folder / "in" / name / "a.mp4", 12, seed=seed).with_suffix(".txt").write_text(name)
    datasets = [
        dataset_of_clips(name, **({"conditioning_data": image} if image else {}))
        for name, image in zip("xy", images, strict=True)
    ]
    for image in {*images} - {None}:
        (folder / "in" / image).mkdir()
        datasets.append(dataset_of_images(image))
    config = {"--lora_rank": 7, "learning_rate": 2e-4, "output_dir": "out", "model_family": "longcat_video",
              "data_backend_config": "multidatabackend.json", "aspect_bucket_alignment": 64}  # fmt: skip
    write_project(folder, config, datasets)
    project, before = check_project(folder)
    plan, (mended, report) = mend(folder, tmp_path / "m", MendKind.START_FRAMES, MendKind.TRIM)
    assert report.is_ok
    assert not unmended(mended, report) & {MendKind.START_FRAMES, MendKind.TRIM}
    assert {issue.code for issue in report.issues} <= {issue.code for issue in before.issues}
    assert mended.run.lora == project.run.lora
    assert mended.run.output_dir == project.run.output_dir
    assert mended.run.optim == project.run.optim
    by_id, old = mended.run.data.by_id, project.run.data.by_id
    assert [by_id[name].repeats for name in "xy"] == [old[name].repeats for name in "xy"]
    assert len({by_id[name].conditioning_ids for name in "xy"}) == 2
    for pair, planned in zip(report.pairs, plan.clips, strict=True):
        assert pair.captions == (pair.dataset_id,)
        assert np.array_equal(read_image(pair.start_frame.path), first_frame(planned.pair))


def test_names_stay_apart_readable_and_below_their_folder(tmp_path):
    folder = tmp_path / "d"
    accent = "caf\u00e9"
    names = ["..a", ".hidden/b", "a..b", "x" * 200, "x" * 199 + "\u00e9", 'q"<1>', accent,
             unicodedata.normalize("NFD", accent), "CAFE", "cafe"]  # fmt: skip
    clip = draw_scenes(tmp_path / "one.mp4", 9)
    for name in names:
        target = folder / "clips" / f"{name}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(clip.read_bytes())
        target.with_name(target.name[:-4] + ".txt").write_text("it moves")
    found = len(check_project(folder)[1].pairs)
    plan, (_, report) = mend(folder, tmp_path / "m", MendKind.START_FRAMES)
    assert len(plan.clips) + len(plan.left_out) == found
    assert report.is_ok
    assert len(report.pairs) == len(plan.clips) > len(names) // 2
    forms = {unicodedata.normalize("NFC", pair.name).casefold() for pair in report.pairs}
    assert len(forms) == len(report.pairs)
    assert not any(part.startswith(".") for name in files(tmp_path / "m") for part in name.split("/"))
    assert {path.name for path in tmp_path.iterdir()} == {"d", "m", "one.mp4"}


def test_captions_of_a_template_are_one_line_of_text(tmp_path):
    draw_scenes(tmp_path / "d" / "a__b{name}.mp4", 9)
    plan, (_, report) = mend(
        tmp_path / "d", tmp_path / "m", MendKind.CAPTIONS, caption_template=" {{so}}:\n{name}  in {folder}"
    )
    assert plan.clips[0].captions == report.pairs[0].captions == ("{so}: a b{name} in d",)
    with pytest.raises(ConfigError, match="no text"):
        mend(tmp_path / "d", tmp_path / "m2", MendKind.CAPTIONS, caption_template="a\0b")


def test_what_needs_no_mend_is_refused_and_what_would_leave_nothing_too(tmp_path):
    draw_scenes(tmp_path / "d" / "a.mp4", 4, 4)
    with pytest.raises(DatasetError, match="No clip would be left"):
        mend(tmp_path / "d", tmp_path / "m", MendKind.SPLIT_SCENES)
    draw_scenes(tmp_path / "e" / "a.mp4", 9)
    with pytest.raises(DatasetError, match="No clip needs"):
        mend(tmp_path / "e", tmp_path / "m", MendKind.SPLIT_SCENES)
    assert not (tmp_path / "m").exists()


def test_only_what_a_mend_does_is_in_its_record(tmp_path):
    draw_scenes(tmp_path / "d" / "a.mp4", 12)
    mend(tmp_path / "d", tmp_path / "m", MendKind.TRIM)
    record = json.loads((tmp_path / "m" / "mends.json").read_text(encoding="utf-8"))
    (clip,) = record["clips"]
    assert (clip["changes"], clip["num_frames"], clip["new_num_frames"]) == (["trim"], 9, 9)
    assert Path(clip["source"]) == tmp_path / "d" / "a.mp4"
    assert (tmp_path / "m" / clip["file"]).is_file()
    severe = [issue for issue in check_project(tmp_path / "m")[1].all_issues if issue.severity is Severity.ERROR]
    assert {issue.code for issue in severe} <= {IssueCode.START_FRAME_MISSING, IssueCode.CAPTION_MISSING}


def test_the_recorded_rate_is_the_one_that_was_used(formats, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "varying.mp4").write_bytes((formats / "varying.mp4").read_bytes())
    (tmp_path / "d" / "config.json").write_text('{"framerate": 15}', encoding="utf-8")
    dataset = {**dataset_of_clips("x"), "instance_data_dir": ".", "caption_strategy": "filename"}
    (tmp_path / "d" / "multidatabackend.json").write_text(json.dumps([dataset]), encoding="utf-8")
    plan, _ = mend(tmp_path / "d", tmp_path / "m", MendKind.FRAME_RATE, frame_rate=24)
    record = json.loads((tmp_path / "m" / "mends.json").read_text(encoding="utf-8"))
    assert [clip.new_fps for clip in plan.clips] == [15]
    assert record["frame_rate"] == record["clips"][0]["new_fps"] == 15
