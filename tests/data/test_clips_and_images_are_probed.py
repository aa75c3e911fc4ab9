"""What is found in a clip or an image by decoding it, and which reader takes its frames."""

import builtins
import errno
import io
import os
import struct
import subprocess
import zlib

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from studio.core.data.decode import read_frames, read_image, resize_frames
from studio.core.data.probe import probe_clip
from studio.core.data.probe_cache import is_of_content
from studio.core.errors import DamagedClipError, MediaError


def ffmpeg(*arguments):
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)], check=True)


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.m4v", "a.mkv", "a.webm", "A clip ñ 'x'.MP4"])
def test_frames_rate_and_size_are_counted(tmp_path, draw_clip, name):
    source = draw_clip(tmp_path / f"source{'.webm' if name.endswith('webm') else '.mp4'}", num_frames=12)
    ffmpeg("-i", source, "-c", "copy", tmp_path / name)
    clip = probe_clip(tmp_path / name)
    assert (clip.num_frames, clip.height, clip.width) == (12, 64, 96)
    assert clip.fps == pytest.approx(15, rel=0.02)
    assert clip.reader_reason


def test_the_reader_of_a_plain_clip_agrees_with_pyav(tmp_path, draw_clip):
    pytest.importorskip("decord")
    clip = probe_clip(draw_clip(tmp_path / "a.mp4"))
    assert clip.reader == "decord"
    assert read_frames(clip, 5).shape == (5, 64, 96, 3)


def test_a_rotated_clip_is_measured_and_read_upright(tmp_path, draw_clip):
    draw_clip(tmp_path / "flat.mp4")
    ffmpeg("-display_rotation", "90", "-i", tmp_path / "flat.mp4", "-c", "copy", tmp_path / "turned.mp4")
    flat, turned = probe_clip(tmp_path / "flat.mp4"), probe_clip(tmp_path / "turned.mp4")
    assert (turned.height, turned.width, turned.reader) == (96, 64, "pyav")
    assert "rotated" in turned.reader_reason
    ffmpeg("-i", tmp_path / "turned.mp4", "-frames:v", "1", tmp_path / "shown.png")
    shown = np.asarray(Image.open(tmp_path / "shown.png").convert("RGB")).astype(int)
    assert np.abs(read_frames(turned, 1)[0] - shown).mean() < 3
    assert np.array_equal(read_frames(turned, 1)[0], np.rot90(read_frames(flat, 1)[0]))


def test_a_clip_cut_by_an_edit_list_starts_at_its_first_shown_frame(tmp_path, draw_clip):
    source = draw_clip(tmp_path / "long.mp4", num_frames=40)
    ffmpeg("-ss", "1.03", "-i", source, "-c", "copy", tmp_path / "cut.mp4")
    clip = probe_clip(tmp_path / "cut.mp4")
    assert clip.num_frames < 30
    assert clip.reader == "pyav"
    long = read_frames(probe_clip(source), 40)
    assert np.array_equal(read_frames(clip, 1)[0], long[40 - clip.num_frames])


def test_a_file_with_its_index_in_front_is_readable_up_to_a_frame_that_is_named(tmp_path, draw_clip):
    whole = draw_clip(tmp_path / "a.mp4", num_frames=60, height=128, width=192, faststart=True).read_bytes()
    (tmp_path / "a.mp4").write_bytes(whole[: len(whole) * 6 // 10])
    with pytest.raises(DamagedClipError, match=r"a\.mp4 .* readable up to frame \d+ of 60"):
        probe_clip(tmp_path / "a.mp4")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_file_cut_before_its_index_says_that_it_was_cut_off(tmp_path, draw_clip, share):
    whole = draw_clip(tmp_path / "a.mp4", num_frames=30).read_bytes()
    (tmp_path / "a.mp4").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(MediaError, match=r"a\.mp4 .*cut off"):
        probe_clip(tmp_path / "a.mp4")


def test_a_matroska_file_that_ends_early_is_damaged(tmp_path, draw_clip):
    ffmpeg("-i", draw_clip(tmp_path / "a.mp4", num_frames=60), "-c", "copy", tmp_path / "a.mkv")
    whole = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DamagedClipError, match=r"readable up to frame \d+ of 60"):
        probe_clip(tmp_path / "a.mkv")


def test_flipped_bits_are_never_silent(tmp_path, draw_clip):
    path = draw_clip(tmp_path / "a.mp4", num_frames=60, height=128, width=192, faststart=True)
    content = bytearray(path.read_bytes())
    for position in range(len(content) // 2, len(content), len(content) // 20):
        content[position] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DamagedClipError):
        probe_clip(path)


def test_sound_without_pictures_is_no_clip(tmp_path):
    ffmpeg("-f", "lavfi", "-i", "anullsrc", "-t", "0.2", tmp_path / "a.mp4")
    with pytest.raises(MediaError, match="no video frames"):
        probe_clip(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "empty"), (b"just text", "not a video"), (b"\x89PNG\r\n\x1a\n", "not a video")],
)
def test_what_is_no_video_is_refused_by_its_signature(tmp_path, content, says):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(MediaError, match=rf"a\.mp4 .*{says}"):
        probe_clip(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    "playlist",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{}'\n",
    ],
)
def test_a_playlist_named_mp4_makes_nobody_open_the_file_it_names(tmp_path, draw_clip, playlist):
    secret = draw_clip(tmp_path / "secret.mp4")
    (tmp_path / "a.mp4").write_text(playlist.format(secret))
    os.utime(secret, ns=(1, secret.stat().st_mtime_ns))  # so old that reading it would renew it
    with pytest.raises(MediaError, match="not a video"):
        probe_clip(tmp_path / "a.mp4")
    assert secret.stat().st_atime_ns == 1


def test_more_frames_than_there_are_cannot_be_read(tmp_path, draw_clip):
    clip = probe_clip(draw_clip(tmp_path / "a.mp4", num_frames=9))
    with pytest.raises(MediaError, match="9 frames; 10"):
        read_frames(clip, 10)


def test_a_clip_swapped_after_the_check_is_noticed(tmp_path, draw_clip):
    clip = probe_clip(draw_clip(tmp_path / "a.mp4"))
    draw_clip(tmp_path / "a.mp4", height=128)
    with pytest.raises(MediaError, match="changed since it was checked"):
        read_frames(clip, 5)


def png_header(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("edge", [50_000, 10_000, 8_100])
def test_an_image_that_claims_to_be_huge_is_refused_from_its_header(tmp_path, edge):
    (tmp_path / "a.png").write_bytes(png_header(edge, edge))
    with pytest.raises(MediaError, match=r"a\.png has more than 64 million pixels"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize(("content", "says"), [(b"", "empty"), (b"<html>", "not a PNG"), (b"GIF89a", "not a PNG")])
def test_what_is_no_image_is_named(tmp_path, content, says):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(MediaError, match=rf"a\.png is {says}"):
        read_image(tmp_path / "a.png")


def test_a_folder_named_like_an_image_is_no_image(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(MediaError, match=r"There is no image .*a\.png"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.png", "a.mp4"])
def test_what_may_not_be_read_says_so_and_is_asked_again_next_time(tmp_path, draw_image, draw_clip, monkeypatch, name):
    path = (draw_image if name == "a.png" else draw_clip)(tmp_path / name)
    probe = read_image if name == "a.png" else probe_clip
    opened = io.open

    def locked(file, *arguments, **options):
        if str(file) == str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(file, *arguments, **options)

    for module in (builtins, io):  # as the system answers anybody but root
        monkeypatch.setattr(module, "open", locked)
    with pytest.raises(MediaError) as caught:
        probe(path)
    assert caught.value.message == f"{name} cannot be read: Permission denied."
    assert "permissions" in caught.value.remedy
    assert not is_of_content(caught.value)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_a_truncated_image_is_named(tmp_path, draw_image, name):
    whole = draw_image(tmp_path / name, 256, 256).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MediaError, match="a.* damaged or cut off"):
        read_image(tmp_path / name)


def test_a_photo_is_measured_and_read_as_its_camera_held_it(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (96, 64)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (96, 64, 3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"])
def test_every_kind_of_png_becomes_rgb(tmp_path, mode):
    Image.new(mode, (8, 4), 1 if mode == "1" else None).save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png")
    assert (pixels.shape, pixels.dtype) == ((4, 8, 3), np.uint8)


def test_sixteen_bits_become_eight_and_transparency_white(tmp_path):
    Image.fromarray(np.full((4, 8), 0x8000, np.uint16)).save(tmp_path / "deep.png")
    assert (read_image(tmp_path / "deep.png") == 0x80).all()
    Image.new("RGBA", (8, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (read_image(tmp_path / "clear.png") == 255).all()


def test_frames_and_start_frame_go_through_one_geometry(tmp_path, draw_clip):
    frames = read_frames(probe_clip(draw_clip(tmp_path / "a.mp4", height=96, width=160)), 5)
    resized = resize_frames(frames, 64, 64)
    assert resized.shape == (5, 64, 64, 3)
    assert np.array_equal(resize_frames(frames[0], 64, 64), resized[0])
    middle = resize_frames(frames[:, :, 32:128], 64, 64)
    assert np.abs(resized.astype(int) - middle).mean() < 2


def test_frames_of_the_right_size_pass_unchanged():
    frames = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), np.uint8)
    assert np.array_equal(resize_frames(frames, 64, 96), frames)
