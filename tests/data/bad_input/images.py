"""Family I: start frames that are cut, huge, turned, of odd kinds, or no images at all."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable

import numpy as np
from PIL import Image

from studio.core.types import IssueCode
from tests.data.bad_input.corpus import Case, Said, case, encoded, error, good_clip, good_image, noise, picture, warning


def images() -> Iterable[Case]:
    """All cases."""
    yield from _not_images()
    yield from _cut_or_damaged()
    yield from _huge()
    yield from _odd_but_good()


def _bad(name: str, image: bytes, words: str, suffix: str = ".png") -> Case:
    wrong = error(IssueCode.IMAGE_UNREADABLE, f"{name}{suffix}")
    return case(name, wrong, image=image, image_suffix=suffix, words=words)


def _drawn() -> Image.Image:
    return Image.fromarray(picture(0, 64, 96))


def _not_images() -> Iterable[Case]:
    yield _bad("empty", b"", "empty")
    yield _bad("text", b"not an image", "not a PNG")
    yield _bad("html", b"<!DOCTYPE html><title>404</title>", "not a PNG")
    yield _bad("json", b'{"error": "not found"}', "not a PNG")
    yield _bad("svg", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "not a PNG")
    yield _bad("noise", b"\0" + noise(2, 4000), "not a PNG")
    yield _bad("clip", good_clip(), "not a PNG")
    yield _bad("signature", b"\x89PNG\r\n\x1a\n", "")
    yield _bad("gif", encoded(_drawn(), "GIF"), "not a PNG")
    yield _bad("bmp", encoded(_drawn(), "BMP"), "not a PNG")
    yield _bad("tiff", encoded(_drawn(), "TIFF"), "not a PNG")
    yield _bad("postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 96 64\n", "not a PNG")
    yield _bad("fits", b"SIMPLE  =                    T".ljust(2880), "not a PNG")
    yield _bad("jpeg_is_text", b"not an image", "not a PNG", ".jpg")
    yield _bad("webp_is_text", b"RIFF\x10\0\0\0WEBPnothing", "", ".webp")


def _cut_or_damaged() -> Iterable[Case]:
    whole = {
        ".png": good_image(256, 384),
        ".jpg": good_image(256, 384, "JPEG"),
        ".webp": good_image(256, 384, "WEBP"),
    }
    for suffix, content in whole.items():
        for percent in (10, 50, 90):
            cut = content[: len(content) * percent // 100]
            yield _bad(f"cut_{suffix[1:]}_{percent}", cut, "", suffix)
    png = whole[".png"]
    middle = len(png) // 2
    yield _bad("hole", png[:middle] + bytes(200) + png[middle + 200 :], "damaged")
    yield _bad("flipped", png[:middle] + bytes(b ^ 0xFF for b in png[middle : middle + 20]) + png[middle + 20 :], "")
    yield _bad("no_pixels", _png(96, 64, b""), "damaged")
    yield _bad("zero_wide", _png(0, 64, b""), "")


def _png(width: int, height: int, pixels: bytes) -> bytes:
    """A PNG of 8 bit RGB that claims a size, whatever its pixels are."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b""))
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _huge() -> Iterable[Case]:
    for edge in (50_000, 13_000, 8_100):
        yield _bad(f"huge_{edge}", _png(edge, edge, b""), "64 million pixels")
    yield _bad("huge_wide", _png(2_000_000_000, 1, b""), "64 million pixels")
    jpeg = bytearray(good_image(kind="JPEG"))
    frame = jpeg.index(b"\xff\xc0") + 5
    jpeg[frame : frame + 4] = struct.pack(">HH", 60_000, 60_000)
    yield _bad("huge_jpeg", bytes(jpeg), "64 million pixels", ".jpg")


_STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How a camera stores what its EXIF orientation turns upright."""


def _differs(name: str) -> Said:
    return warning(IssueCode.START_FRAME_DIFFERS, f"{name}.mp4")


def _odd_but_good() -> Iterable[Case]:
    drawn = _drawn()
    for mode in ("L", "LA", "RGBA"):
        yield case(f"mode_{mode}", image=encoded(drawn.convert(mode)))
    for mode in ("P", "1"):
        yield case(f"mode_{mode}", _differs(f"mode_{mode}"), image=encoded(drawn.convert(mode)), words="dB")
    blank = warning(IssueCode.START_FRAME_BLANK, "mode_16_bit.mp4")
    yield case("mode_16_bit", blank, image=encoded(Image.fromarray(np.full((64, 96), 0x8000, np.uint16))))
    yield case("palette_clear", _differs("palette_clear"), image=encoded(drawn.convert("P"), transparency=0))
    yield case("cmyk", image=encoded(drawn.convert("CMYK"), "JPEG"), image_suffix=".jpg")
    yield case("grey_jpeg", image=encoded(drawn.convert("L"), "JPEG"), image_suffix=".jpeg")
    yield case("progressive", image=encoded(drawn, "JPEG", progressive=True), image_suffix=".jpg")
    yield case("interlaced_name", image=good_image(), image_suffix=".PNG")
    yield case("jpeg_named_png", image=good_image(kind="JPEG"))
    yield case("png_named_jpg", image=good_image(), image_suffix=".jpg")
    yield case("animated_png", image=_animated("PNG"))
    yield case("animated_webp", image=_animated("WEBP"), image_suffix=".webp")
    yield case("trailing_bytes", image=good_image() + noise(3, 500))
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        as_stored = drawn.transpose(_STORED[turn]) if turn in _STORED else drawn
        turned = encoded(as_stored, "JPEG", exif=exif, quality=95)
        yield case(f"exif_{turn}", image=turned, image_suffix=".jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways = warning(IssueCode.ASPECT_MISMATCH, "exif_sideways.mp4")
    yield case(
        "exif_sideways",
        sideways,
        _differs("exif_sideways"),
        image=encoded(drawn, "JPEG", exif=exif),
        image_suffix=".jpg",
    )
    square = warning(IssueCode.ASPECT_MISMATCH, "square.mp4")
    yield case("square", square, _differs("square"), image=good_image(96, 96), words="96x96")
    sliver = [warning(code, "one_pixel_high.mp4") for code in (IssueCode.ASPECT_MISMATCH, IssueCode.START_FRAME_BLANK)]
    yield case("one_pixel_high", *sliver, image=good_image(1, 96))
    yield _bad("text_bomb", _with_text(drawn), "damaged")


def _animated(kind: str) -> bytes:
    file = io.BytesIO()
    first, second = (Image.fromarray(picture(index, 64, 96)) for index in (0, 5))
    first.save(file, kind, save_all=True, append_images=[second])
    return file.getvalue()


def _with_text(image: Image.Image) -> bytes:
    """A PNG whose compressed comment unpacks to far more than Pillow takes."""
    data = b"Comment\0\0" + zlib.compress(bytes(80_000_000), 9)
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))
    whole = encoded(image)
    return whole[:33] + chunk + whole[33:]
