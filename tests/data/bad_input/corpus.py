"""Bad input, made when a test needs it: files, and what the check must say about them. Everything is deterministic."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
from PIL import Image

from studio.core.types import IssueCode, Severity

Said = tuple[IssueCode, Severity, str]
"""Code, severity and subject of an issue."""
PIPE = object()
"""Stands for a named pipe where a file's content is expected."""
FOLDER = object()


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link."""

    target: str


Content = bytes | Link | object


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """Files that belong together, and what a check of their folder says about them."""

    name: str
    files: Mapping[str | bytes, Content]
    """By path relative to the folder."""
    says: frozenset[Said] = frozenset()
    """Errors and warnings, all of them; without an error the clip is ready."""
    words: str = ""
    """What one of the messages has to contain."""
    may_be_whole: bool = False
    """True where damage cannot be foreseen: either `says`' codes are said, or every frame can be read."""


def error(code: IssueCode, subject: str) -> Said:
    """What a case says when it cannot be trained on."""
    return code, Severity.ERROR, subject


def warning(code: IssueCode, subject: str) -> Said:
    """What a case says when it can."""
    return code, Severity.WARNING, subject


def picture(index: int, height: int, width: int) -> np.ndarray:
    """A bright square on a gradient that moves three pixels a frame: uint8 [H,W,3]."""
    rows, columns = np.mgrid[0:height, 0:width]
    drawn = np.stack([rows % 256, columns % 256, (rows + columns) % 256], axis=-1).astype(np.uint8)
    left = 3 * index % max(1, width - 16)
    drawn[height // 4 : height // 2, left : left + 16] = 255
    return drawn


@cache
def good_clip(
    num_frames: int = 9,
    height: int = 64,
    width: int = 96,
    fps: int = 15,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    suffix: str = "mp4",
    movflags: str = "",
) -> bytes:
    """A whole clip in a container of the kind that `suffix` names."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{suffix}"
        with av.open(str(path), "w", options={"movflags": movflags} if movflags else {}) as container:
            stream = container.add_stream(codec, rate=fps)
            stream.width, stream.height, stream.pix_fmt = width, height, pixels
            for index in range(num_frames):
                frame = av.VideoFrame.from_ndarray(picture(index, height, width), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path.read_bytes()


@cache
def good_image(height: int = 64, width: int = 96, kind: str = "PNG") -> bytes:
    """A whole image: the first frame of `good_clip`."""
    return encoded(Image.fromarray(picture(0, height, width)), kind)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The image as a file of that kind."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def case(
    name: str,
    *says: Said,
    clip: Content | None = None,
    suffix: str = ".mp4",
    image: Content | None = None,
    image_suffix: str = ".png",
    caption: Content = b"it moves",
    words: str = "",
    may_be_whole: bool = False,
) -> Case:
    """A clip, its start frame and its caption under one name; what is not given is good."""
    files = {
        f"{name}{suffix}": good_clip() if clip is None else clip,
        f"{name}{image_suffix}": good_image() if image is None else image,
        f"{name}.txt": caption,
    }
    return Case(name=name, files=files, says=frozenset(says), words=words, may_be_whole=may_be_whole)


def place(folder: Path, cases: Iterable[Case]) -> Path:
    """Write the cases' files below `folder`, which is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    for each in cases:
        for name, content in each.files.items():
            _put(os.path.join(os.fsencode(folder), os.fsencode(name)), content)  # noqa: PTH118 - bytes have no Path
    return folder


def _put(path: bytes, content: Content) -> None:
    target = Path(os.fsdecode(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    if content is PIPE:
        os.mkfifo(target)
    elif content is FOLDER:
        target.mkdir()
    elif isinstance(content, Link):
        target.symlink_to(content.target)
    elif isinstance(content, bytes):
        target.write_bytes(content)


def noise(seed: int, length: int) -> bytes:
    """Bytes that mean nothing."""
    return random.Random(seed).randbytes(length)


def captions() -> Iterable[Case]:
    """Family T: caption files."""
    unreadable, missing = IssueCode.CAPTION_UNREADABLE, IssueCode.CAPTION_MISSING

    def bad(name: str, caption: bytes, words: str, code: IssueCode = unreadable) -> Case:
        return case(name, error(code, f"{name}.txt"), caption=caption, words=words)

    yield bad("latin1", b"caf\xe9 au lait", "not UTF-8 at byte 3")
    yield bad("lone_continuation", b"\x80abc", "not UTF-8 at byte 0")
    yield bad("cut_character", "né".encode()[:-1], "not UTF-8 at byte 1")
    yield bad("overlong", b"a\xc0\xaf", "not UTF-8 at byte 1")
    yield bad("surrogate", b"a\xed\xa0\x80", "not UTF-8 at byte 1")
    yield bad("utf16_le", "\ufeffit moves".encode("utf-16-le"), "UTF-16")
    yield bad("utf16_be", "\ufeffit moves".encode("utf-16-be"), "UTF-16")
    yield bad("utf16_unmarked", "it moves".encode("utf-16-le"), "NUL")
    yield bad("utf32", "\ufeffit moves".encode("utf-32-le"), "UTF-16")
    yield bad("nul", b"it\0moves", "NUL")
    yield bad("megabyte", b"word " * 200_000, "too long")
    yield bad("one_byte_too_long", b"a" * 100_001, "too long")
    yield bad("noise", b"\xff" + noise(1, 999), "not UTF-8")
    yield bad("picture", good_image(), "not UTF-8")
    yield bad("empty", b"", "empty", missing)
    yield bad("spaces", b"   \t ", "empty", missing)
    yield bad("blank_lines", b"\r\n\n\r\r\n", "empty", missing)
    yield bad("mark_only", b"\xef\xbb\xbf", "empty", missing)
    yield bad("wide_space", "\u3000\u00a0".encode(), "empty", missing)
    yield case("mark", caption=b"\xef\xbb\xbfit moves")
    yield case("crlf", caption=b"it moves\r\nand stops\r\n")
    yield case("old_mac", caption=b"it moves\rand stops")
    yield case("longest", caption=b"a" * 100_000)
    yield case("emoji", caption="it moves \U0001f680\u200d\U0001f469".encode())
    yield case("right_to_left", caption="\u202e\u05d0\u05d1".encode())
    yield case("markup", caption=b"<script>alert(1)</script><img src=x onerror=alert(2)>")
    yield case("template", caption=b"{0} %s ${HOME} $(reboot) {name!r}")
    yield Case(
        name="no_file",
        files={"no_file.mp4": good_clip(), "no_file.png": good_image()},
        says=frozenset({error(missing, "no_file.txt")}),
    )


def names() -> Iterable[Case]:
    """Family N: names and trees. Each case is a folder of its own."""
    longest = "n" * 251
    for name, stem in {
        "spaces": " a  b ",
        "single_quote": "it's",
        "double_quotes": 'say "a"',
        "leading_dash": "-rf",
        "markup": "<img src=x onerror=alert(1)>",
        "ampersand": "a&lt;b&amp;c",
        "percent": "%2e%2e%2fa %s",
        "glob": "[a]*?{b}",
        "shell": "$(reboot);`ls`|&",
        "backslash": "a\\..\\b",
        "two_dots": "a.b.mp4",
        "composed": "caf\u00e9",
        "decomposed": "cafe\u0301",
        "emoji": "\U0001f680",
        "right_to_left": "\u202e4pm",
        "colon": "file:a",
        "protocol": "concat:a|b",
        "format_string": "a%03d",
        "255_bytes": longest,
        "folder_named_like_a_clip": "a.mp4/b",
        "deep": "/".join(["d"] * 50) + "/a",
    }.items():
        yield Case(name=name, files=_trio(stem))
    skipped, duplicate, loose = IssueCode.FILE_SKIPPED, IssueCode.STEM_DUPLICATE, IssueCode.NAME_MATCHED_LOOSELY

    def odd(name: str, files: Mapping[str | bytes, Content], *says: Said, words: str = "") -> Case:
        return Case(name=name, files=_trio("good") | dict(files), says=frozenset(says), words=words)

    for name, written, shown in (
        ("newline", "a\nb", "a\\nb"),
        ("escape", "a\x1b[31m", "a\\x1b[31m"),
        ("tab", "a\tb", "a\\tb"),
    ):
        yield odd(name, {f"{written}.mp4": good_clip()}, warning(skipped, f"{shown}.mp4"), words="control character")
    yield odd("not_utf8", {b"caf\xe9.mp4": good_clip()}, warning(skipped, "caf\\xe9.mp4"), words="not UTF-8")
    yield odd("folder_not_utf8", {b"caf\xe9/a.mp4": good_clip()}, warning(skipped, "caf\\xe9/a.mp4"), words="not UTF-8")
    yield odd("clip_is_a_folder", {"a.mp4": FOLDER}, warning(skipped, "a.mp4"), words="folder")
    yield odd("image_is_a_folder", {"a.png": FOLDER}, warning(skipped, "a.png"), words="folder")
    yield odd("loop", {"loop": Link(".")}, warning(skipped, "loop"), words="links to folders")
    yield odd("link_to_itself", {"a.mp4": Link("a.mp4")}, warning(skipped, "a.mp4"), words="link")
    yield odd("link_to_nothing", {"a.mp4": Link("gone.mp4")}, warning(skipped, "a.mp4"), words="leads nowhere")
    yield odd("link_to_a_folder", {"etc": Link("/etc")}, warning(skipped, "etc"), words="links to folders")
    yield odd("link_to_a_device", {"a.mp4": Link("/dev/zero")}, warning(skipped, "a.mp4"), words="regular file")
    yield odd("caption_from_a_device", {"a.txt": Link("/dev/zero")}, warning(skipped, "a.txt"), words="regular file")
    yield odd("link_to_a_file", {"linked.mp4": Link("good.mp4"), **_companions("linked")}, _copy("linked.mp4"))
    for suffix in ("mp4", "png", "txt"):
        yield odd(f"pipe_{suffix}", {f"p.{suffix}": PIPE}, warning(skipped, f"p.{suffix}"), words="regular file")
    for suffix in ("avi", "gif", "heic", "TS"):
        yield odd(f"foreign_{suffix}", {f"a.{suffix}": b"?"}, warning(skipped, f"a.{suffix}"), words="not read")
    yield odd("hidden", {".a.mp4": b"", "._good.mp4": b"\0\5\x16\7", ".DS_Store": b"", "Thumbs.db": b""})
    twice = [error(duplicate, f"good.{suffix}") for suffix in ("mp4", "MP4")]
    yield odd("clips_of_two_cases", {"good.MP4": good_clip()}, *twice, _copy("good.mp4"), words="2 clips")
    twice = [error(duplicate, f"good.{suffix}") for suffix in ("mp4", "mkv")]
    yield odd("clips_of_two_kinds", {"good.mkv": good_clip(suffix="mkv")}, *twice, _copy("good.mp4"), words="2 clips")
    second = {"good.jpg": good_image(kind="JPEG")}
    yield odd("two_start_frames", second, error(duplicate, "good.mp4"), words="2 start frames")
    yield odd("two_captions", {"good.TXT": b"other"}, error(duplicate, "good.mp4"), words="2 caption files")
    twins = {f"sub/{name}": content for name, content in _trio("good").items()}
    yield odd("same_stem_in_two_folders", twins, _copy("sub/good.mp4"))
    yield odd("orphan_image", {"z.png": good_image()}, warning(IssueCode.START_FRAME_ORPHAN, "z.png"), words="no clip")
    for name, clip, other in (("case", "Cat", "cat"), ("unicode_form", "caf\u00e9", "cafe\u0301")):
        says = [warning(loose, f"{clip}.mp4"), _copy("good.mp4")]
        yield odd(f"loose_{name}", {f"{clip}.mp4": good_clip(), **_companions(other)}, *says)
    composed, decomposed = _trio("caf\u00e9"), _trio("cafe\u0301")
    says = frozenset({_copy("caf\u00e9.mp4")})
    yield Case(name="unicode_twins", files=composed | decomposed, says=says)
    yield odd(
        "no_start_frame",
        {"a.mp4": good_clip(), "a.txt": b"a"},
        error(IssueCode.START_FRAME_MISSING, "a.mp4"),
        _copy("good.mp4"),
        words="a.png",
    )


def _copy(subject: str) -> Said:
    return warning(IssueCode.NEAR_DUPLICATE, subject)


def _trio(stem: str) -> dict[str | bytes, Content]:
    return {f"{stem}.mp4": good_clip(), **_companions(stem)}


def _companions(stem: str) -> dict[str | bytes, Content]:
    return {f"{stem}.png": good_image(), f"{stem}.txt": b"it moves"}
