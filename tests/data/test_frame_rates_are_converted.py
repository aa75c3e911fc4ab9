"""Read at another rate, a clip gives the frame that is shown at each moment."""

from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest

from studio.core.config import DataConfig, DatasetConfig
from studio.core.data.check import check_dataset
from studio.core.data.decode import frames_as_trained, read_frames
from studio.core.data.frame_rate import converted_frames, frame_times
from studio.core.data.probe import probe_clip
from studio.core.errors import MediaError
from studio.core.types import IssueCode, Severity


@pytest.fixture
def draw_at_times(tmp_path):
    """draw_at_times(milliseconds, name="a.mkv"): a clip whose frames are shown at these times, each brighter."""

    def draw(times, name="a.mkv"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=15)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
            for index, time in enumerate(times):
                frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 20 * index, np.uint8), format="rgb24")
                frame.pts, frame.time_base = time, Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return draw


@pytest.fixture
def clip_of(draw_clip, tmp_path):
    return lambda num_frames, fps: replace(
        probe_clip(draw_clip(tmp_path / "a.mp4", num_frames=num_frames, fps=15)), fps=fps
    )


@pytest.mark.parametrize(
    ("num_frames", "fps", "to", "frames"),
    [
        (9, 30.0, 15, [0, 2, 4, 6, 8]),
        (10, 30.0, 15, [0, 2, 4, 6, 8]),
        (9, 30000 / 1001, 15, [0, 2, 4, 6, 8]),
        (10, 25.0, 15, [0, 1, 3, 5, 6, 8]),
        (5, 60.0, 15, [0, 4]),
        (5, 7.5, 15, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]),
        (4, 10.0, 15, [0, 0, 1, 2, 2, 3]),
        (6, 15.0, 15, [0, 1, 2, 3, 4, 5]),
        (1, 60.0, 1, [0]),
    ],
)
def test_a_clip_of_one_rate_is_read_by_its_index(clip_of, num_frames, fps, to, frames):
    assert converted_frames(clip_of(num_frames, fps), to).tolist() == frames


def test_timestamps_decide_for_a_clip_of_a_variable_rate(draw_at_times):
    path = draw_at_times([0, 67, 133, 200, 600, 667, 700])
    clip = replace(probe_clip(path), slowest_fps=2.5, fastest_fps=30)
    assert frame_times(clip).tolist() == pytest.approx([0, 0.067, 0.133, 0.2, 0.6, 0.667, 0.7], abs=1e-3)
    assert converted_frames(clip, 15).tolist()[:12] == [0, 1, 2, 3, 3, 3, 3, 3, 3, 4, 5, 6]
    assert [int(frame.mean() / 20 + 0.5) for frame in read_frames(clip, 7)] == list(range(7))


def test_times_that_are_not_those_of_the_frames_are_an_error(draw_at_times):
    clip = replace(probe_clip(draw_at_times([0, 67, 133])), num_frames=9, slowest_fps=2.5, fastest_fps=30)
    with pytest.raises(MediaError, match="9 frames, but times for 3"):
        converted_frames(clip, 15)


def test_the_check_converts_a_clip_whose_rate_only_on_average_is_the_one_asked_for(draw_at_times, tmp_path):
    times = [0, 20, 40, 300, 333, 400, 420, 440, 600]
    draw_at_times(times, "clips/a.mkv")
    dataset = DatasetConfig(
        id="clips", kind="video", directory=tmp_path / "clips", is_i2v=False, caption_strategy=None, resolution=64
    )
    (pair,) = check_dataset(DataConfig(datasets=(dataset,), framerate=15)).pairs
    assert pair.clip.fastest_fps > pair.clip.slowest_fps
    assert pair.clip.fps == pytest.approx(15, rel=0.2)
    assert pair.fps == 15
    expected = [max(i for i, time in enumerate(times) if time <= 1000 * shown / 15 + 17) for shown in range(9)]
    assert pair.frame_indices == tuple(expected)
    grey = [int(frame.mean() / 20 + 0.5) for frame in frames_as_trained(pair)]
    assert grey == expected


@pytest.fixture
def check(tmp_path, add_pair):
    """check(framerate, clip settings): the only pair of the dataset and its issues by code."""

    def run(framerate, **clip):
        add_pair("a", height=64, width=64, **clip)
        clips = DatasetConfig(
            id="clips", kind="video", directory=tmp_path / "clips", conditioning_ids=("frames",), resolution=64
        )
        frames = DatasetConfig(id="frames", kind="conditioning", directory=tmp_path / "start_frames")
        (pair,) = check_dataset(DataConfig(datasets=(clips, frames), framerate=framerate)).pairs
        return pair, {issue.code: issue for issue in pair.issues}

    return run


def test_without_a_frame_rate_the_frames_are_as_they_are_and_the_remedy_names_the_key(check):
    pair, issues = check(None, num_frames=20, fps=30)
    assert (pair.fps, pair.frame_indices, pair.bucket.num_frames) == (None, (), 17)
    assert "0.5 times its speed" in issues[IssueCode.FRAME_RATE_OTHER].message
    assert "Set framerate to 15" in issues[IssueCode.FRAME_RATE_OTHER].remedy


def test_every_rule_counts_the_frames_after_the_conversion(check):
    pair, issues = check(15, num_frames=20, fps=30)
    assert (pair.fps, pair.frame_indices) == (15, (0, 2, 4, 6, 8, 10, 12, 14, 16))
    assert pair.bucket.num_frames == 9
    assert "20 frames, 10 at 15 a second" in issues[IssueCode.FRAMES_TRIMMED].message
    assert IssueCode.FRAME_RATE_OTHER not in issues


def test_a_clip_may_be_too_short_only_after_the_conversion(check):
    pair, issues = check(15, num_frames=8, fps=30)
    assert pair.bucket is None
    assert "8 frames, 4 at 15 a second" in issues[IssueCode.CLIP_TOO_SHORT].message


def test_frames_that_come_again_are_a_warning(check):
    pair, issues = check(15, num_frames=9, fps=10)
    assert pair.is_ready
    assert issues[IssueCode.FRAME_RATE_OTHER].severity is Severity.WARNING
    assert "frames come more than once" in issues[IssueCode.FRAME_RATE_OTHER].message


def test_a_clip_of_that_rate_is_left_alone(check):
    pair, issues = check(15, num_frames=9, fps=15)
    assert (pair.fps, pair.frame_indices) == (None, ())
    assert IssueCode.FRAME_RATE_OTHER not in issues


def test_a_rate_that_the_model_does_not_play_says_at_which_speed_it_plays(check):
    pair, issues = check(30, num_frames=40, fps=60)
    assert pair.fps == 30
    assert "is read at 30, so it plays at 0.5 times its speed" in issues[IssueCode.FRAME_RATE_OTHER].message
