"""The check of a thousand clips beside the time that PyAV alone needs to decode them once. No GPU, no torch."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
from PIL import Image

from studio.view.terminal import write

NUM_CLIPS = 1000
NUM_FRAMES, HEIGHT, WIDTH, FPS = 33, 320, 576, 15
_SQUARE, _PAN = 80, 4
"""Pixels: edge of what crosses the picture, and what the background moves a frame."""
_REPEATS = 3
_POLL_SECONDS = 0.05

_DECODE = """
import sys, av
from pathlib import Path
for path in sorted(Path(sys.argv[1], "data").glob("*.mp4")):
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            pass
"""
_CHECK = """
import sys
from pathlib import Path
from studio.core.data.check import check_project
from studio.core.data.probe_cache import ProbeCache
from studio.core.data.probes import Probes
_, report = check_project(Path(sys.argv[1], "data"), probes=Probes(disk=ProbeCache(Path(sys.argv[1], "cache"))))
sys.exit(not report.is_ok)
"""


@dataclass(frozen=True, slots=True)
class _Run:
    """One process and its children."""

    seconds: float
    peak: float
    """Most memory that they held together, MB; 0 where the system does not tell."""


def compare_check(num_clips: int = NUM_CLIPS) -> None:
    """Draws clips with start frames and captions into a temporary folder, and prints a table.

    Each row is a new process: its start is in its seconds. The quickest of three where nothing is kept from one to
    the next.
    """
    with TemporaryDirectory(prefix="longcat-studio-bench-") as folder:
        root = Path(folder)
        data = root / "data"
        data.mkdir()
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            list(threads.map(lambda index: _draw(data, index), range(num_clips)))
        megabytes = sum(file.stat().st_size for file in data.glob("*.mp4")) / 1e6
        write(
            f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, PyAV {av.__version__}"
        )
        write(
            f"{num_clips} clips of {NUM_FRAMES} frames, {HEIGHT}x{WIDTH}, H.264, {megabytes:.0f} MB, start frames PNG"
        )
        rows = {"PyAV decodes every clip once": _quickest(_DECODE, root), "first check": _run(_CHECK, root)}
        rows["second check, nothing changed"] = _quickest(_CHECK, root)
        _draw(data, num_clips)
        rows["check with one clip added"] = _run(_CHECK, root)
        _write_table(rows)


def _quickest(script: str, root: Path) -> _Run:
    return min((_run(script, root) for _ in range(_REPEATS)), key=lambda run: run.seconds)


def _run(script: str, root: Path) -> _Run:
    started, peak = time.perf_counter(), 0.0
    package = str(Path(__file__).parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    with subprocess.Popen([sys.executable, "-c", script, str(root)], env=environment) as process:
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            time.sleep(_POLL_SECONDS)
    if process.returncode:
        raise RuntimeError(f"a process of the benchmark ended with status {process.returncode}")
    return _Run(time.perf_counter() - started, peak)


def resident(pid: int) -> float:
    """MB that a process and its children hold, shared pages counted in each; 0 where there is no /proc."""
    try:
        children = [int(child) for tasks in Path(f"/proc/{pid}/task").iterdir()
                    for child in (tasks / "children").read_text().split()]  # fmt: skip
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6 + sum(resident(child) for child in children)
    except OSError:
        return 0.0


def _write_table(rows: dict[str, _Run]) -> None:
    decoding, first = (run.seconds for run in list(rows.values())[:2])
    write("\n| what | seconds | of decoding | of the first check | peak MB |\n|---|---|---|---|---|")
    for name, run in rows.items():
        shares = f"{run.seconds / decoding:.2f} | {run.seconds / first:.3f}"
        write(f"| {name} | {run.seconds:.2f} | {shares} | {run.peak:.0f} |")


def _draw(folder: Path, index: int) -> None:
    """A square that crosses a soft background under a slow pan: a clip, its start frame and its caption."""
    dice = np.random.default_rng(index)
    coarse = Image.fromarray(dice.integers(0, 256, (12, 20, 3), np.uint8))
    ground = np.asarray(coarse.resize((WIDTH + NUM_FRAMES * _PAN, HEIGHT), Image.Resampling.BICUBIC), np.int16)
    grain = dice.integers(0, 12, (*ground.shape[:2], 1), np.uint8)
    ground = np.clip(ground + grain, 0, 255).astype(np.uint8)
    top, color = int(dice.integers(0, HEIGHT - _SQUARE)), dice.integers(0, 256, 3)
    with av.open(str(folder / f"{index:04}.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.thread_count, stream.options = 1, {"preset": "superfast"}
        for step in range(NUM_FRAMES):
            picture = ground[:, step * _PAN : step * _PAN + WIDTH].copy()
            left = (WIDTH - _SQUARE) * step // NUM_FRAMES
            picture[top : top + _SQUARE, left : left + _SQUARE] = color
            if step == 0:
                Image.fromarray(picture).save(folder / f"{index:04}.png", compress_level=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    (folder / f"{index:04}.txt").write_text("a square crosses the picture", encoding="utf-8")
