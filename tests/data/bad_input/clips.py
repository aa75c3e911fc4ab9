"""Family V: clips that are cut, damaged, odd, or no clips at all."""

from __future__ import annotations

import io
import random
import struct
import subprocess
from collections.abc import Iterable
from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import imageio_ffmpeg
import numpy as np
from PIL import Image

from studio.core.types import IssueCode
from tests.data.bad_input.corpus import Case, case, encoded, error, good_clip, good_image, noise, picture, warning

DAMAGED, UNREADABLE = IssueCode.CLIP_DAMAGED, IssueCode.CLIP_UNREADABLE
NUM_MUTANTS = 60


@cache
def long_clip(index_in_front: bool) -> bytes:
    """30 frames of 128x192, with the index (moov) before or after the pictures (mdat)."""
    return good_clip(num_frames=30, height=128, width=192, movflags="faststart" if index_in_front else "")


def clips() -> Iterable[Case]:
    """All cases but the playlists."""
    yield from _cut()
    yield from _mutants()
    yield from _not_clips()
    yield from _holes()
    yield from _odd()


def _bad(name: str, clip: bytes, words: str = "", code: IssueCode = UNREADABLE, suffix: str = ".mp4") -> Case:
    return case(name, error(code, f"{name}{suffix}"), clip=clip, words=words, suffix=suffix)


def _cut() -> Iterable[Case]:
    for index_in_front in (True, False):
        whole = long_clip(index_in_front)
        pictures = whole.index(b"mdat") if index_in_front else len(whole)
        for percent in (1, 5, 10, 20, 30, 50, 70, 90, 95, 99):
            end = len(whole) * percent // 100
            name = f"cut_{'front' if index_in_front else 'end'}_{percent}"
            is_readable = end > pictures
            if percent == 99 and not index_in_front:
                yield _unforeseen(name, whole[:end])  # only notes behind the index are lost
                continue
            words = "readable up to frame" if is_readable else ""
            yield _bad(name, whole[:end], words, DAMAGED if is_readable else UNREADABLE)
    matroska = good_clip(num_frames=30, height=128, width=192, suffix="mkv")
    for percent in (10, 50, 90):
        cut = matroska[: len(matroska) * percent // 100]
        yield _bad(f"cut_mkv_{percent}", cut, "", DAMAGED if percent == 90 else UNREADABLE, ".mkv")


def _mutants() -> Iterable[Case]:
    """Whole files with some bytes changed: what that does cannot be foreseen, but nobody may be fooled."""
    kinds = (_flip_index, _flip_pictures, _wrong_size, _without_a_part)
    for seed in range(NUM_MUTANTS):
        mutate = kinds[seed % len(kinds)]
        content = bytearray(long_clip(index_in_front=seed % 8 < 4))
        mutate(content, random.Random(seed))
        yield _unforeseen(f"mutant{mutate.__name__}_{seed}", bytes(content))


def _unforeseen(name: str, clip: bytes) -> Case:
    said = (error(code, f"{name}.mp4") for code in (DAMAGED, UNREADABLE))
    return case(name, *said, clip=clip, may_be_whole=True)


def _box(content: bytes, kind: bytes) -> tuple[int, int]:
    """Where a box of an MP4 begins and ends."""
    start = content.index(kind) - 4
    return start, start + struct.unpack(">I", content[start : start + 4])[0]


def _flip_index(content: bytearray, dice: random.Random) -> None:
    start, end = _box(content, b"moov")
    for _ in range(8):
        content[dice.randrange(start + 8, end)] = dice.randrange(256)


def _flip_pictures(content: bytearray, dice: random.Random) -> None:
    start, end = _box(content, b"mdat")
    for _ in range(20):
        content[dice.randrange(start + 8, end)] ^= 1 << dice.randrange(8)


def _wrong_size(content: bytearray, dice: random.Random) -> None:
    kind = dice.choice([b"ftyp", b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"stsz", b"stco", b"mdat"])
    start, _ = _box(content, kind)
    content[start : start + 4] = dice.choice([b"\xff" * 4, b"\x7f\xff\xff\xff", bytes(4), b"\x80\0\0\0", b"\0\0\0\1"])


def _without_a_part(content: bytearray, dice: random.Random) -> None:
    start = dice.randrange(32, len(content) - 300)
    del content[start : start + dice.randrange(1, 200)]


def _not_clips() -> Iterable[Case]:
    yield _bad("empty", b"", "empty")
    for name, content in {
        "text": b"not a video",
        "noise": b"\0" + noise(4, 4000),
        "png": good_image(),
        "jpeg": good_image(kind="JPEG"),
        "html": b"<!DOCTYPE html><title>404</title>",
        "json": b'{"error": "not found"}',
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
        "zip": b"PK\3\4" + noise(5, 200),
        "pickle": b"\x80\4\x95\x1b\0\0\0\0\0\0\0\x8c\5posix\x94\x8c\6system\x94\x93\x94\x8c\2id\x94\x85\x94R\x94.",
        "program": b"\x7fELF" + noise(6, 200),
        "avi": b"RIFF\x24\0\0\0AVI LIST",
        "zeros": bytes(4096),
        "short": b"\0\0\0",
        "git_lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n",
    }.items():
        yield _bad(name, content, "not a video")
    yield _bad("signature_only", b"\0\0\0\x18ftypisom\0\0\2\0isommp42", "cannot be opened")
    yield _bad("signature_and_noise", b"\0\0\0\x18ftypisom\0\0\2\0isommp42" + noise(7, 5000), "")
    yield _bad("signature_and_playlist", b"\0\0\0\x18ftypisom\0\0\2\0isommp42#EXTM3U\n#EXTINF:9,\n/etc/passwd\n", "")
    yield _bad("matroska_signature", b"\x1aE\xdf\xa3", "")
    yield _bad("matroska_noise", b"\x1aE\xdf\xa3" + noise(8, 5000), "")
    yield _bad("heif", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + noise(9, 500), "")


def _holes() -> Iterable[Case]:
    whole = long_clip(index_in_front=True)
    start, end = _box(whole, b"mdat")
    middle = (start + end) // 2
    yield _bad("half_zeros", whole[:middle] + bytes(end - middle), "", DAMAGED)
    yield _bad("all_zeros", whole[: start + 8] + bytes(end - start - 8), "", DAMAGED)
    yield _bad("half_noise", whole[:middle] + noise(10, end - middle), "", DAMAGED)
    yield _bad("many_flips", whole[:middle] + bytes(b ^ 0x55 for b in whole[middle:]), "", DAMAGED)
    claims = bytearray(whole)
    claims[start : start + 4] = b"\x7f\xff\xff\xff"
    yield case("mdat_claims_2_gb", clip=bytes(claims), image=good_image(128, 192))
    claims = bytearray(long_clip(index_in_front=False))
    start, _ = _box(claims, b"mdat")
    claims[start : start + 4] = b"\x7f\xff\xff\xff"
    yield _bad("mdat_swallows_the_index", bytes(claims), "cannot be opened")
    size = whole.index(b"avc1") + 28
    yield _unforeseen("claims_65535_square", whole[:size] + b"\xff\xff\xff\xff" + whole[size + 4 :])
    count = whole.index(b"stsz") + 12
    yield _unforeseen("claims_4_billion_frames", whole[:count] + b"\xff" * 4 + whole[count + 4 :])
    table = whole.index(b"stco") + 8
    yield _unforeseen("offset_beyond_the_end", whole[:table] + b"\x7f\xff\xff\xff" + whole[table + 4 :])
    yield case("trailing_noise", clip=whole + noise(11, 500), image=good_image(128, 192))


def _odd() -> Iterable[Case]:
    too_short, other_rate = IssueCode.CLIP_TOO_SHORT, IssueCode.FRAME_RATE_OTHER
    for num_frames in (1, 3, 4):
        name = f"frames_{num_frames}"
        yield case(name, error(too_short, f"{name}.mp4"), clip=good_clip(num_frames), words="at least 5")
    yield case("frames_5", clip=good_clip(5))
    for fps in (1, 240):
        yield case(f"fps_{fps}", warning(other_rate, f"fps_{fps}.mp4"), clip=good_clip(fps=fps))
    for name, arguments in {
        "hevc_10_bit": {"codec": "libx265", "pixels": "yuv420p10le"},
        "mpeg4": {"codec": "mpeg4"},
        "h264_444": {"pixels": "yuv444p"},
        "h264_10_bit": {"pixels": "yuv420p10le"},
        "index_in_front": {"movflags": "faststart"},
    }.items():
        yield case(name, clip=good_clip(**arguments))
    yield case("prores", clip=good_clip(codec="prores_ks", pixels="yuv422p10le", suffix="mov"), suffix=".mov")
    yield case("mjpeg", clip=good_clip(codec="mjpeg", pixels="yuvj420p", suffix="mov"), suffix=".mov")
    yield case("lossless", clip=good_clip(codec="ffv1", suffix="mkv"), suffix=".mkv")
    yield case("vp9", clip=good_clip(codec="libvpx-vp9", suffix="webm"), suffix=".webm")
    # By a process of its own: as root, SVT-AV1 gives the one that it encodes in real-time priority over all others.
    yield case("av1", clip=_ffmpeg("-i", "long.mp4", "-c:v", "libsvtav1", "-preset", "12"), image=good_image(128, 192))
    yield case("webm_named_mp4", clip=good_clip(codec="libvpx-vp9", suffix="webm"))
    yield case("mp4_named_mkv", clip=good_clip(), suffix=".mkv")
    odd = warning(IssueCode.SIZE_NOT_LEGAL, "odd_size.mp4")
    clip = good_clip(height=63, width=95, pixels="yuv444p")
    yield case("odd_size", odd, clip=clip, image=good_image(63, 95), words="63x95")
    tiny = error(IssueCode.SIZE_NOT_LEGAL, "two_pixels_high.mp4")
    yield case("two_pixels_high", tiny, clip=good_clip(height=2, width=96), image=good_image(2, 96))
    yield _bad("no_frames", _with_streams(pictures=0), "no video frames")
    yield _bad("sound_only", _with_streams(pictures=0, sound=True), "no video frames")
    yield case("sound_too", clip=_with_streams(sound=True))
    yield case("two_videos", clip=_with_streams(videos=2))
    varying = _with_streams(times=[0, 1, 2, 3, 4, 7, 10, 13, 16])
    says = [warning(code, "variable_rate.mp4") for code in (other_rate, IssueCode.FRAME_RATE_VARIES)]
    yield case("variable_rate", *says, clip=varying, words="from 5 to 15 frames a second")
    yield from _remuxed()


def _with_streams(*, pictures: int = 9, sound: bool = False, videos: int = 1, times: list[int] | None = None) -> bytes:
    """An MP4 of 15 frames a second with other streams than a plain one; `times` are in fifteenths of a second."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        streams = [container.add_stream("libx264", rate=15) for _ in range(videos if pictures else 0)]
        audio = container.add_stream("aac", rate=48_000) if sound or not pictures else None
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
            stream.codec_context.time_base = Fraction(1, 15)
        for index in range(pictures):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(picture(index, 64, 96), format="rgb24")
                frame.pts, frame.time_base = times[index] if times else index, Fraction(1, 15)
                container.mux(stream.encode(frame))
        if audio:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.sample_rate, silence.pts = 48_000, 0
            audio.codec_context.layout = "mono"
            container.mux(audio.encode(silence))
        for stream in [*streams, *([audio] if audio else [])]:
            container.mux(stream.encode())
    return file.getvalue()


def _remuxed() -> Iterable[Case]:
    """What FFmpeg's program makes of the long clip without coding it again."""
    for angle in (90, 180, 270):
        turned = _ffmpeg("-display_rotation", angle, "-i", "long.mp4", "-c", "copy")
        shown = Image.fromarray(picture(0, 128, 192)).rotate(angle, expand=True)
        yield case(f"turned_{angle}", clip=turned, image=encoded(shown))
    first = good_image(128, 192)
    later = warning(IssueCode.START_FRAME_DIFFERS, "edit_list.mp4")
    yield case("edit_list", later, clip=_ffmpeg("-ss", "0.53", "-i", "long.mp4", "-c", "copy"), image=first)
    yield case("edit_list_before_the_end", clip=_ffmpeg("-i", "long.mp4", "-t", "1.0", "-c", "copy"), image=first)
    for name, flags in {
        "fragmented": "frag_keyframe+empty_moov",
        "fragmented_every_frame": "frag_every_frame+empty_moov+default_base_moof",
        "dash_segments": "dash",
    }.items():
        yield case(name, clip=_ffmpeg("-i", "long.mp4", "-c", "copy", "-movflags", flags), image=first)
    whole = _ffmpeg("-i", "long.mp4", "-c:v", "libx264", "-g", "6", "-movflags", "frag_keyframe+empty_moov")
    start = whole.index(b"moof", len(whole) // 2) - 4
    end = start + struct.unpack(">I", whole[start : start + 4])[0]
    for name, place in {"half": len(whole) // 2, "in_a_head": start + 20, "after_a_head": end}.items():
        yield _bad(f"fragmented_cut_{name}", whole[:place], "readable up to frame", DAMAGED)
    yield case("long_after_an_offset", clip=_ffmpeg("-itsoffset", "3", "-i", "long.mp4", "-c", "copy"), image=first)
    yield case("matroska_in_mp4_name", clip=_ffmpeg("-i", "long.mp4", "-c", "copy", kind="mkv"), image=first)


def _ffmpeg(*arguments: object, kind: str = "mp4") -> bytes:
    with TemporaryDirectory() as folder:
        (Path(folder) / "long.mp4").write_bytes(long_clip(index_in_front=False))
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *map(str, arguments), f"out.{kind}"]
        subprocess.run(command, check=True, cwd=folder)
        return (Path(folder) / f"out.{kind}").read_bytes()


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n",
    "hls_master": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{}\n",
    "hls_key": '#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{0}"\n#EXTINF:9,\n{0}\n#EXT-X-ENDLIST\n',
    "ffconcat": "ffconcat version 1.0\nfile '{}'\n",
    "concat": "file '{}'\n",
    "dash": "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011' profiles='urn:mpeg:dash:profile:"
    "isoff-on-demand:2011' type='static'><Period><AdaptationSet><Representation id='0' bandwidth='1'>"
    "<BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\na=control:{}\nm=video 9 RTP/AVP 96\n",
    "smil": "<smil><body><video src='{}'/></body></smil>",
}


def playlists(secret: Path, address: str) -> Iterable[Case]:
    """Playlists named like clips: they name `secret`, which lies in the folder above, and a web address."""
    places = {"absolute": str(secret), "relative": f"../{secret.name}", "file": f"file:{secret}", "http": address}
    for kind, text in PLAYLISTS.items():
        for place, target in places.items():
            for suffix in (".mp4", ".mkv") if kind == "hls" else (".mp4",):
                name = f"{kind}_{place}{suffix[1:]}"
                yield _bad(name, text.format(target).encode(), "not a video", suffix=suffix)
