"""What was found in files, for whoever checks again; several files are probed at a time, each in a child process."""

from __future__ import annotations

import contextlib
import os
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from studio.core.data.probe_cache import FileState, Found, ProbeCache, file_state, is_of_content, user_cache
from studio.core.data.probe_worker import ProbeWorker
from studio.core.errors import CheckStopped, MediaError
from studio.core.types import Clip, StartFrame, StartFrameMatch

Progress = Callable[[int, int], None]
"""Called with (clips done, clips in all)."""

MAX_WORKERS = 8
"""Children at a time, each with 150 MB for its libraries; one for each core where there are fewer."""
_POLL_SECONDS = 0.1

State = TypeVar("State")


@dataclass(slots=True)
class Probes:
    """What was found in files, kept by whoever checks again: unchanged files are not decoded twice.

    Errors that the content did not bring about are not kept: who may read a file, and what hung, is asked again.
    """

    disk: ProbeCache = field(default_factory=user_cache)
    """What other processes found; asked for files that this one has not seen."""
    clips: dict[FileState, Clip | MediaError] = field(default_factory=dict)
    start_frames: dict[FileState, StartFrame | MediaError] = field(default_factory=dict)
    matches: dict[tuple[FileState, FileState], StartFrameMatch | MediaError] = field(default_factory=dict)

    def clip(self, path: Path, probe: Callable[[Path], Clip]) -> Clip | MediaError:
        """The clip, or why there is none."""
        return _known_or(self.clips, file_state(path), lambda: self.disk.get_or_probe(path, Clip, probe))

    def start_frame(self, path: Path, probe: Callable[[Path], StartFrame]) -> StartFrame | MediaError:
        """The start frame, or why there is none."""
        return _known_or(self.start_frames, file_state(path), lambda: self.disk.get_or_probe(path, StartFrame, probe))

    def match(
        self, clip: Clip, start_frame: StartFrame, probe: Callable[[Clip, Path], StartFrameMatch]
    ) -> StartFrameMatch | MediaError:
        """How a start frame fits its clip, or why they cannot be compared."""
        state = file_state(clip.path), file_state(start_frame.path)
        kind, image = StartFrameMatch, start_frame.path
        return _known_or(
            self.matches,
            state,
            lambda: self.disk.get_or_probe(clip.path, kind, lambda _: probe(clip, image), beside=image),
        )


def _known_or(
    known: dict[State, Found | MediaError], state: State, look: Callable[[], Found | MediaError]
) -> Found | MediaError:
    if state in known:
        return known[state]
    found = look()
    if not isinstance(found, MediaError) or is_of_content(found):
        known[state] = found
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What was found in a clip and in its start frame, and in which state the files were."""

    clip: Clip | MediaError
    start_frame: StartFrame | MediaError | None
    match: StartFrameMatch | MediaError | None
    """None where one of the two is none."""
    states: tuple[FileState, ...]
    """Before anything was looked at."""


def probe_all(
    files: Sequence[tuple[Path, Path | None]],
    probes: Probes,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[tuple[Path, Path | None], Findings]:
    """Look at clips, each with its start frame or None; `probes` keeps what is of their content.

    A file that has changed since it was looked at is a MediaError instead of what was found.

    Raises:
        CheckStopped: `should_stop` said so; what was found until then is kept.
    """
    todo = list(dict.fromkeys(files))
    if not todo:
        return {}
    found: dict[tuple[Path, Path | None], Findings] = {}
    workers = [ProbeWorker() for _ in range(min(_num_cores(), MAX_WORKERS, len(todo)))]
    idle: queue.SimpleQueue[ProbeWorker] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def look_at(clip: Path, start_frame: Path | None) -> None:
        worker = idle.get()
        try:
            found[clip, start_frame] = _look_at(clip, start_frame, probes, worker)
        finally:
            idle.put(worker)

    threads = ThreadPoolExecutor(len(workers))
    try:
        ended: queue.SimpleQueue[Future[None]] = queue.SimpleQueue()
        for each in todo:
            threads.submit(look_at, *each).add_done_callback(ended.put)
        done = 0
        while done < len(todo):
            if should_stop and should_stop():
                raise _stopped(done, len(todo))
            with contextlib.suppress(queue.Empty):
                ended.get(timeout=_POLL_SECONDS).result()
                done += 1
                if progress:
                    progress(done, len(todo))
    finally:
        for worker in workers:
            worker.close()
        threads.shutdown(cancel_futures=True)
    return {files: _if_unchanged(findings) for files, findings in found.items()}


def _look_at(clip: Path, start_frame: Path | None, probes: Probes, worker: ProbeWorker) -> Findings:
    states = tuple(file_state(path) for path in (clip, start_frame) if path)
    found = probes.clip(clip, worker.clip)
    image = probes.start_frame(start_frame, worker.start_frame) if start_frame else None
    match = None
    if isinstance(found, Clip) and isinstance(image, StartFrame):
        match = probes.match(found, image, worker.match)
    return Findings(clip=found, start_frame=image, match=match, states=states)


def _if_unchanged(findings: Findings) -> Findings:
    """With an error in place of what was found in a file that is another by now."""
    errors = [
        None
        if file_state(state[0]) == state
        else MediaError(f"{state[0].name} has changed while it was checked.", "Check again.")
        for state in findings.states
    ]
    if not any(errors):
        return findings
    clip, start_frame = errors if len(errors) > 1 else (errors[0], None)
    return Findings(
        clip=clip or findings.clip,
        start_frame=start_frame or findings.start_frame,
        match=None,
        states=findings.states,
    )


def _num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _stopped(done: int, total: int) -> CheckStopped:
    return CheckStopped(
        f"The check was stopped after {done} of {total} clips.", "Check again: what was looked at is remembered."
    )
