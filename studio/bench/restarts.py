"""The app, killed and started again while a run is trained: what it shows then, beside the run's folder.

First another process trains, and the app comes and goes beside it; then the app itself trains, and dies with the run.
"""

from __future__ import annotations

import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from studio.bench.app import App, Page, environment, free_port
from studio.bench.drawn import write_project
from studio.core.events import RunStarted
from studio.core.runlog import RunFolder, RunState, list_runs
from studio.core.train.checkpoint import list_checkpoints
from studio.view.terminal import write

LIMIT_SECONDS = 2.0
"""After the server's first answer; then the page must show the truth. All that a page asks for when it is opened, from
one visitor, is in them."""
_PATIENCE_SECONDS = 10.0
STEPS_A_LIFE = 12
"""That the app trains before it is killed; every fifth has a checkpoint."""
_SECONDS = 120
"""So long a run may take to get on, before it is said to hang."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RestartReport:
    """What became of the restarts."""

    starts: list[float] = field(default_factory=list)
    """Seconds until the server answered."""
    truths: list[float] = field(default_factory=list)
    """Seconds from there until the page showed the truth."""
    lies: list[str] = field(default_factory=list)
    """What it showed in place of it for `_PATIENCE_SECONDS`."""


def restart_beside(folder: Path, times: int, should_stop: Callable[[], bool] = lambda: False) -> RestartReport:
    """A run of a process of its own, in the new `folder`, while the app is killed and started so often."""
    config = write_project(folder, max_train_steps=1_000_000, checkpointing_steps=50)
    report, port = RestartReport(), free_port()
    trainer = subprocess.Popen(
        [sys.executable, "-m", "studio", "train", "--config", str(config)],
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(),
    )  # fmt: skip
    try:
        run = _await_step(folder, 1)
        for _ in range(times):
            if should_stop():
                break
            app = App(folder, port)
            try:
                _compare(app, run, RunState.RUNNING, report)
            finally:
                app.kill()
    finally:
        trainer.send_signal(signal.SIGTERM)
        trainer.wait(_SECONDS)
    return report


def restart_within(folder: Path, times: int, should_stop: Callable[[], bool] = lambda: False) -> RestartReport:
    """A run that the app trains, in the new `folder`: the app is killed, started and told to continue so often.

    Raises RuntimeError when a run does not go on from its newest checkpoint.
    """
    write_project(folder, max_train_steps=1_000_000, checkpointing_steps=5)
    report, port = RestartReport(), free_port()
    app = App(folder, port)
    try:
        page = Page(port)
        page.load()
        page.press("train")
        run = _await_step(folder, STEPS_A_LIFE)
        for _ in range(times):
            if should_stop():
                break
            page.close()
            app.kill()
            app = App(folder, port)
            page = _compare(app, run, RunState.INTERRUPTED, report)
            newest = _newest_checkpoint(run)
            page.press("train")
            _await_step(folder, newest + STEPS_A_LIFE)
            began = [event.from_step for _, event in run.events() if isinstance(event, RunStarted)]
            if began[-1] != newest or len(list_runs(run.path.parent)) != 1:
                raise RuntimeError(f"The run went on from step {began[-1]}; its newest checkpoint was {newest}.")
        page.close()
    finally:
        app.kill()
    return report


def bench_restarts(times: int, should_stop: Callable[[], bool]) -> None:
    """Prints both ways."""
    write(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory(prefix="longcat-studio-bench-") as folder:
        _write_report("another process trains", restart_beside(Path(folder) / "beside", times, should_stop))
        _write_report("the app trains", restart_within(Path(folder) / "within", times, should_stop))


def _write_report(what: str, report: RestartReport) -> None:
    late = sum(seconds > LIMIT_SECONDS for seconds in report.truths)
    write(
        f"\n{what}: {len(report.starts)} restarts after SIGKILL; the page showed the truth {len(report.truths)} times, "
        f"{late} of them after more than {LIMIT_SECONDS:g} s"
    )
    if report.starts:
        write(f"from the start to the first answer {_spread(report.starts)}")
    if report.truths:
        write(f"from there to a page that equals the run's folder {_spread(report.truths)}")
    for lie in report.lies:
        write(lie)


def _spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} s (median), {max(seconds):.2f} s (at most)"


def _compare(app: App, run: RunFolder, state: RunState, report: RestartReport) -> Page:
    """Opens the page of an app that has just answered, until it shows what the folder says: this state, and a step
    that was the last one while it was asked.
    """
    report.starts.append(app.seconds)
    answered = time.monotonic()
    page = Page(app.port)
    while True:
        before = run.snapshot()
        page.load()
        took = time.monotonic() - answered
        shown, after = page.shown(), run.snapshot()
        if shown is not None and shown[0] is after.state is state and before.step <= shown[1] <= after.step + 1:
            report.truths.append(took)
            return page
        if took > _PATIENCE_SECONDS:
            report.lies.append(
                f"after {took:.2f} s: the page shows {shown}, the folder {after.state}, step {before.step}-{after.step}"
            )
            return page
        time.sleep(0.1)


def _await_step(project: Path, step: int) -> RunFolder:
    """The run, once this step is done."""
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        for run in list_runs(project / "runs"):
            if run.snapshot().step >= step:
                return run
        time.sleep(0.1)
    raise RuntimeError(f"The run did not come to step {step}.")


def _newest_checkpoint(run: RunFolder) -> int:
    """The step of the newest checkpoint; 0: there is none."""
    return max((int(path.name[5:]) for path in list_checkpoints(run.path / "checkpoints")), default=0)
