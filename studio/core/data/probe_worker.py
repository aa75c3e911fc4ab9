"""Probing in a child process: a decoder that hangs or crashes takes one file with it, and not the check.

`python -m studio.core.data.probe_worker` answers each line of JSON on its standard input with one on its output. Plain
pipes, so that notebooks and scripts need no guard around their main part.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from studio.core.data.decode import read_image
from studio.core.data.match import match_start_frame
from studio.core.data.probe import Look, look_at_clip
from studio.core.data.probe_cache import FileState, Found, NotOfContent, file_state, from_json, is_of_content, to_json
from studio.core.errors import CheckStopped, MediaError
from studio.core.types import Clip, StartFrame, StartFrameMatch

DEADLINE_SECONDS = 30.0
"""Without a sign of life, after which a child is given up: far more than one frame takes on a slow core."""
SECONDS_PER_MEGABYTE = 0.1
"""More for a larger file: decord looks through all of it before its first frame, here from a disk of 10 MB/s."""
_SIGN_SECONDS = 1.0
"""Between two signs of life, which are empty lines."""
_GRACE_SECONDS = 5.0
"""After which a child whose parent is gone ends itself."""

logger = logging.getLogger(__name__)

Held = TypeVar("Held")


class ProbeWorker:
    """One child process, started when something is asked of it, and started again after a file that ended it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False
        self._lock = threading.Lock()

    def clip(self, path: Path) -> Clip:
        """As `probe_clip`; a file that its decoder hangs or crashes on is a MediaError too."""
        return self._ask(path, Clip, {})

    def start_frame(self, path: Path) -> StartFrame:
        """Its size as `read_image` gives it; as `clip`."""
        return self._ask(path, StartFrame, {})

    def match(self, clip: Clip, start_frame: Path) -> StartFrameMatch:
        """As `match_start_frame`, and as `clip`."""
        return self._ask(clip.path, StartFrameMatch, {"clip": to_json(clip), "start_frame": str(start_frame)})

    def close(self) -> None:
        """End the child, whatever it is doing; who waits for its answer gets CheckStopped."""
        with self._lock:
            self._is_closed = True
            process = self._process
        if process is not None:
            _end(process)

    def _ask(self, path: Path, kind: type[Found], request: dict[str, str]) -> Found:
        seconds = DEADLINE_SECONDS + SECONDS_PER_MEGABYTE * file_state(path)[1] / 1e6
        process = self._start(path)
        is_late = threading.Event()
        whole = {**request, "kind": kind.__name__, "path": str(path), "seconds": seconds}
        answer = _exchange(process, whole, seconds, is_late)
        if not answer:
            status = _end(process)
            if self._is_closed:
                raise _stopped(path)
            raise _refusal(path, status, seconds if is_late.is_set() else None) from NotOfContent()
        found = from_json(json.dumps(answer["found"]).encode(), path, kind)
        if not isinstance(found, MediaError):
            return found
        raise found from (None if answer["is_of_content"] else NotOfContent())

    def _start(self, path: Path) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._is_closed:
                raise _stopped(path)
            if self._process is None or self._process.poll() is not None:
                self._process = _start_child()
            return self._process


def _stopped(path: Path) -> CheckStopped:
    return CheckStopped(f"The check was stopped before {path.name}.", "Check again.")


def _refusal(path: Path, status: int, seconds: float | None) -> MediaError:
    """Why a child that had this file ended without an answer: after `seconds`, or by itself."""
    if seconds is not None:
        return MediaError(
            f"{path.name}: its decoder gave no frame for {seconds:.0f} s, so it was given up.",
            "Export it again, or split it into shorter clips.",
        )
    logger.warning("the process that decoded %s ended with status %d", path.name, status)
    return MediaError(f"{path.name} makes its decoder crash (status {status}).", "Export it again, or delete the file.")


def _start_child() -> subprocess.Popen[bytes]:
    """A child of this Python that finds this package, wherever it lies, and nothing of the current folder."""
    root = str(Path(__file__).parents[3])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "studio.core.data.probe_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )


def _end(process: subprocess.Popen[bytes]) -> int:
    """Kill a child unless it has ended, close its pipes, and tell its status."""
    process.kill()
    status = process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # what it was told last it will not read
            if pipe:
                pipe.close()
    return status


def _exchange(
    process: subprocess.Popen[bytes], request: Mapping[str, object], seconds: float, is_late: threading.Event
) -> dict[str, Any]:
    """The child's answer; empty when it ended before it gave one, or was ended after `seconds` without a sign."""
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("a child was started without pipes")
    try:
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        line = b"\n"
        while line == b"\n":
            timer = threading.Timer(seconds, lambda: (is_late.set(), process.kill()))
            timer.start()
            try:
                line = process.stdout.readline()
            finally:
                timer.cancel()
    except (OSError, ValueError):
        return {}
    return json.loads(line) if line.endswith(b"\n") else {}


class _Child:
    """Answers requests. What it read last stays in its hands: the next one is mostly about the same pair."""

    def __init__(self, on_frame: Callable[[], None]) -> None:
        self._on_frame = on_frame
        self._look: tuple[FileState, Look] | None = None
        self._picture: tuple[FileState, np.ndarray] | None = None

    def answer(self, request: Mapping[str, Any]) -> dict[str, object]:
        """What was found, or the error."""
        path = Path(request["path"])
        try:
            found, is_lasting = self._probe(path, request), True
        except MediaError as error:
            found, is_lasting = error, is_of_content(error)
        return {"found": json.loads(to_json(found)), "is_of_content": is_lasting}

    def _probe(self, path: Path, request: Mapping[str, Any]) -> Clip | StartFrame | StartFrameMatch:
        state = file_state(path)
        if request["kind"] == Clip.__name__:
            look = look_at_clip(path, self._on_frame)
            self._look = state, look
            return look.clip
        if request["kind"] == StartFrame.__name__:
            picture = read_image(path)
            self._picture = state, picture
            return StartFrame(path=path, height=picture.shape[0], width=picture.shape[1])
        clip = from_json(request["clip"].encode(), path, Clip)
        if isinstance(clip, MediaError):
            raise clip
        image = Path(request["start_frame"])
        look, picture = _held(self._look, state), _held(self._picture, file_state(image))
        return match_start_frame(clip, image, picture=picture, look=look, on_frame=self._on_frame)


def _held(held: tuple[FileState, Held] | None, state: FileState) -> Held | None:
    return held[1] if held and held[0] == state else None


class _Signs:
    """Tells a parent now and then that there is progress; without any, the child ends itself after a while."""

    def __init__(self, answers: IO[bytes]) -> None:
        self._answers = answers
        self._last = self._seconds = 0.0

    def start(self, seconds: float) -> None:
        """The parent waits `seconds` for a sign."""
        self._last, self._seconds = time.monotonic(), seconds
        faulthandler.dump_traceback_later(seconds + _GRACE_SECONDS, exit=True)

    def give(self) -> None:
        """One more frame is done."""
        if time.monotonic() - self._last >= _SIGN_SECONDS:
            self._answers.write(b"\n")
            self._answers.flush()
            self.start(self._seconds)


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answers until the parent closes the pipe; ends by itself where nothing goes on and nobody is left to end it."""
    signs = _Signs(answers)
    child = _Child(signs.give)
    for line in requests:
        request = json.loads(line)
        signs.start(request["seconds"])
        answer = child.answer(request)
        faulthandler.cancel_dump_traceback_later()
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its children
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    with contextlib.suppress(BrokenPipeError):
        _serve(sys.stdin.buffer, pipe)
