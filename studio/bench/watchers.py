"""Many pages that watch a run which the app trains: how long their polls take, and what that costs the run."""

from __future__ import annotations

import http.client
import os
import platform
import random
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from studio.bench.app import App, Page, running_app
from studio.bench.check import resident
from studio.bench.drawn import write_project
from studio.core.runlog import RunFolder, list_runs
from studio.view.terminal import write

ALONE_SECONDS = 60.0
"""So long the run is timed without watchers, before and after; less where the watch is shorter."""
_OPENERS = 4
"""Pages that are opened at a time."""
_SECONDS = 120
"""So long a run may take to begin."""


@dataclass(slots=True)
class _Polls:
    """What the pages saw; lists grow from many threads."""

    answers: list[tuple[float, int]] = field(default_factory=list)
    """(seconds, bytes) of each poll."""
    errors: list[str] = field(default_factory=list)


def bench_watchers(clients: int, minutes: float, should_stop: Callable[[], bool]) -> None:
    """Prints a row a minute, then what the watchers cost. Raises RuntimeError when the run does not begin."""
    write(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory(prefix="longcat-studio-bench-") as folder:
        project = write_project(Path(folder) / "project", max_train_steps=1_000_000, checkpointing_steps=500).parent
        with running_app(project) as app:
            _watch(app, project, clients, 60 * minutes, should_stop)


def _watch(app: App, project: Path, clients: int, seconds: float, should_stop: Callable[[], bool]) -> None:
    page = Page(app.port)
    page.load()
    page.press("train")
    run = _begun(project)
    alone = min(ALONE_SECONDS, seconds)
    before, megabytes = _pace_over(run, alone, should_stop), resident(app.pid)
    opening = time.monotonic()
    with ThreadPoolExecutor(_OPENERS) as pool:
        pages = list(pool.map(_open, [app.port] * clients))
    opening = (time.monotonic() - opening) / clients
    polls, end = _Polls(), threading.Event()
    threads = [threading.Thread(target=_visit, args=(app.port, page, polls, end)) for page in pages]
    for thread in threads:
        thread.start()
    write(
        f"{clients} pages, each asks as often as the app tells it to, while the app trains: {before:.3f} s a step "
        f"without them; opened in {opening:.2f} s each, {_OPENERS} at a time, with everything that a page then asks for"
    )
    write("\n| minute | polls | errors | p50 ms | p95 ms | max ms | KB a poll | server MB | s a step |")
    write("|---|---|---|---|---|---|---|---|---|")
    seen, started = 0, time.monotonic()
    try:
        while time.monotonic() - started < seconds and not should_stop():
            pace = _pace_over(run, min(60, seconds), should_stop)
            now = len(polls.answers)
            row = _row(polls.answers[seen:now], len(polls.errors), resident(app.pid), pace)
            write(f"| {(time.monotonic() - started) / 60:.1f} | {row}")
            seen = now
    finally:
        end.set()
    for thread in threads:
        thread.join()
    watched = _pace_between(run, started, time.monotonic())
    write(f"| all | {_row(polls.answers, len(polls.errors), resident(app.pid), watched)}")
    after = _pace_over(run, alone, should_stop)
    write("")
    write(f"Server memory: {megabytes:.0f} MB before the pages, {resident(app.pid):.0f} MB after them.")
    write(f"Seconds a step: {before:.3f} before, {watched:.3f} with the pages, {after:.3f} after.")
    for error, count in Counter(polls.errors).most_common(3):
        write(f"{count} x {error}")
    page.close()


def _open(port: int) -> Page:
    page = Page(port)
    page.load()
    return page


def _visit(port: int, page: Page | None, polls: _Polls, end: threading.Event) -> None:
    """One visitor: polls the page at its timer's pace until the end, and opens it anew after an error."""
    end.wait(random.random() * (page.interval if page is not None else 1))
    while not end.is_set():
        started = time.monotonic()
        try:
            if page is None:
                page = _open(port)
            else:
                came = page.num_bytes
                page.poll()
                polls.answers.append((time.monotonic() - started, page.num_bytes - came))
        except (OSError, http.client.HTTPException, RuntimeError) as error:
            polls.errors.append(f"{type(error).__name__}: {error}"[:200])
            page = None
        # A page that is still waiting for an answer leaves the next tick out.
        every = page.interval if page is not None else 1.0
        end.wait(every - (time.monotonic() - started) % every)
    if page is not None:
        page.close()


def _row(answers: Sequence[tuple[float, int]], errors: int, megabytes: float, pace: float) -> str:
    seconds = sorted(seconds for seconds, _ in answers) or [float("nan")]
    p50, p95, longest = (1000 * seconds[int(share * (len(seconds) - 1))] for share in (0.5, 0.95, 1))
    kilobytes = statistics.fmean(num_bytes for _, num_bytes in answers) / 1e3 if answers else 0
    return (
        f"{len(answers)} | {errors} | {p50:.0f} | {p95:.0f} | {longest:.0f} | {kilobytes:.1f} | {megabytes:.0f} | "
        f"{pace:.3f} |"
    )


def _begun(project: Path) -> RunFolder:
    """The run, once its first steps are over."""
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        for run in list_runs(project / "runs"):
            if run.snapshot().step >= 10:
                return run
        time.sleep(0.5)
    raise RuntimeError("The run did not begin.")


def _pace_over(run: RunFolder, seconds: float, should_stop: Callable[[], bool]) -> float:
    """Seconds of the clock a step, over so many of them."""
    started = time.monotonic()
    while time.monotonic() - started < seconds and not should_stop():
        time.sleep(0.2)
    return _pace_between(run, started, time.monotonic())


def _pace_between(run: RunFolder, started: float, ended: float) -> float:
    """Seconds of the clock a step, between two times of `time.monotonic`."""
    since = time.time() - time.monotonic()
    times = [when for when in run.snapshot().times if started + since <= when <= ended + since]
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else float("nan")
