"""What was found in files, for whoever checks again; several files are probed at a time, each in a child process."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from studio.core.data.match import match_start_frame
from studio.core.data.probe import probe_clip, probe_start_frame
from studio.core.data.probe_cache import FileState, ProbeCache, file_state, user_cache
from studio.core.data.probe_worker import ProbeWorker
from studio.core.errors import CheckStopped, MediaError
from studio.core.types import Clip, StartFrame, StartFrameMatch

Progress = Callable[[int, int], None]
"""Called with (clips done, clips in all)."""

MAX_WORKERS = 8
"""Children at a time, each with 150 MB for its libraries; one for each core where there are fewer."""
_POLL_SECONDS = 0.1


@dataclass(slots=True)
class Probes:
    """What was found in files, kept by whoever checks again: unchanged files are not decoded twice."""

    disk: ProbeCache = field(default_factory=user_cache)
    """What other processes found; asked for files that this one has not seen."""
    clips: dict[FileState, Clip | MediaError] = field(default_factory=dict)
    start_frames: dict[FileState, StartFrame | MediaError] = field(default_factory=dict)
    matches: dict[tuple[FileState, FileState], StartFrameMatch | MediaError] = field(default_factory=dict)

    def clip(self, path: Path, probe: Callable[[Path], Clip] = probe_clip) -> Clip | MediaError:
        """The clip, or why there is none."""
        state = file_state(path)
        if state not in self.clips:
            self.clips[state] = self.disk.get_or_probe(path, Clip, probe)
        return self.clips[state]

    def start_frame(
        self, path: Path, probe: Callable[[Path], StartFrame] = probe_start_frame
    ) -> StartFrame | MediaError:
        """The start frame, or why there is none."""
        state = file_state(path)
        if state not in self.start_frames:
            self.start_frames[state] = self.disk.get_or_probe(path, StartFrame, probe)
        return self.start_frames[state]

    def match(
        self,
        clip: Clip,
        start_frame: StartFrame,
        probe: Callable[[Clip, Path], StartFrameMatch] = match_start_frame,
    ) -> StartFrameMatch | MediaError:
        """How a start frame fits its clip, or why they cannot be compared."""
        state = file_state(clip.path), file_state(start_frame.path)
        if state not in self.matches:
            self.matches[state] = self.disk.get_or_probe(
                clip.path, StartFrameMatch, lambda _: probe(clip, start_frame.path), beside=start_frame.path
            )
        return self.matches[state]


def probe_all(
    files: Sequence[tuple[Path, Path | None]],
    probes: Probes,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> None:
    """Look at clips, each with its start frame or None, so that `probes` knows them.

    Raises:
        CheckStopped: `should_stop` said so; what was found until then is kept.
    """
    todo = list(dict.fromkeys(files))
    if not todo:
        return
    workers = [ProbeWorker() for _ in range(min(_num_cores(), MAX_WORKERS, len(todo)))]
    idle: queue.SimpleQueue[ProbeWorker] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def look_at(clip: Path, start_frame: Path | None) -> None:
        worker = idle.get()
        try:
            _look_at(clip, start_frame, probes, worker)
        finally:
            idle.put(worker)

    threads = ThreadPoolExecutor(len(workers))
    try:
        waiting = {threads.submit(look_at, *each) for each in todo}
        while waiting:
            if should_stop and should_stop():
                raise _stopped(len(todo) - len(waiting), len(todo))
            done, waiting = wait(waiting, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            for index, future in enumerate(done):
                future.result()
                if progress:
                    progress(len(todo) - len(waiting) - len(done) + index + 1, len(todo))
    finally:
        for worker in workers:
            worker.close()
        threads.shutdown(cancel_futures=True)


def _look_at(clip: Path, start_frame: Path | None, probes: Probes, worker: ProbeWorker) -> None:
    found = probes.clip(clip, worker.clip)
    image = probes.start_frame(start_frame, worker.start_frame) if start_frame else None
    if isinstance(found, Clip) and isinstance(image, StartFrame):
        probes.match(found, image, worker.match)


def _num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _stopped(done: int, total: int) -> CheckStopped:
    return CheckStopped(
        f"The check was stopped after {done} of {total} clips.", "Check again: what was looked at is remembered."
    )
