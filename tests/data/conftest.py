"""Clips and images drawn when a test needs them."""

import hashlib
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image


def _picture(index, height, width):
    """A bright square on a gradient that moves one step a frame: uint8 [H,W,3]."""
    rows, columns = np.mgrid[0:height, 0:width]
    picture = np.stack([rows % 256, columns % 256, (rows + columns) % 256], axis=-1).astype(np.uint8)
    left = 3 * index % max(1, width - 16)
    picture[height // 4 : height // 2, left : left + 16] = 255
    return picture


@pytest.fixture
def draw_clip():
    """draw_clip(path, num_frames=9, height=64, width=96, fps=15, faststart=False): path."""

    def draw(path, num_frames=9, height=64, width=96, fps=15, *, faststart=False):
        path.parent.mkdir(parents=True, exist_ok=True)
        options = {"movflags": "faststart"} if faststart else {}
        with av.open(str(path), "w", options=options) as container:
            stream = container.add_stream("libvpx-vp9" if path.suffix == ".webm" else "libx264", rate=fps)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p" if width % 2 else "yuv420p"
            for index in range(num_frames):
                frame = av.VideoFrame.from_ndarray(_picture(index, height, width), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return draw


@pytest.fixture
def draw_image():
    """draw_image(path, height=64, width=96): path."""

    def draw(path, height=64, width=96):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_picture(0, height, width)).save(path)
        return path

    return draw


@pytest.fixture
def add_pair(tmp_path, draw_clip, draw_image):
    """add_pair(name, caption="it moves", **clip): a clip, its start frame and its caption below tmp_path."""

    def add(name, caption="it moves", suffix=".mp4", **clip):
        path = draw_clip(tmp_path / "clips" / f"{name}{suffix}", **clip)
        size = {key: clip[key] for key in ("height", "width") if key in clip}
        draw_image(tmp_path / "start_frames" / f"{name}.png", **size)
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
        return path

    return add


@pytest.fixture
def fingerprint():
    """fingerprint(folder): every path below it with kind, content and time of change."""

    def state(path):
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else path.stat().st_mode
        return content, path.lstat().st_mtime_ns

    return lambda folder: {str(path): state(path) for path in sorted(Path(folder).rglob("*"))}
