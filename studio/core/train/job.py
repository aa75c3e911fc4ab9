"""A run as a job: in a background thread, or right here; the run folder tells what happens in either case."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable
from contextlib import closing

from studio.core.config import RunConfig
from studio.core.data.check import check_dataset
from studio.core.errors import DatasetError, JobAlreadyRunning, StudioError
from studio.core.events import RunFailed, TrainEvent
from studio.core.filelock import FileLock
from studio.core.model.load import ModelBundle
from studio.core.model.memory import memory_errors
from studio.core.runlog import RunFolder
from studio.core.train.loop import train
from studio.core.types import DatasetReport

logger = logging.getLogger(__name__)

LOCK_FILE = ".train.lock"
"""In the output folder: one run at a time writes there, whichever process it is in."""

Loader = Callable[[], ModelBundle]
_SHOWN_ERRORS = 3
_LESS_MEMORY = "Set gradient_checkpointing to true, or lower video.num_frames or resolution."


class TrainJob:
    """One run in one background thread. It keeps the thread and the wish to stop; all else is in the run folder."""

    def __init__(
        self,
        config: RunConfig,
        load: Loader,
        *,
        report: DatasetReport | None = None,
        resume: RunFolder | None = None,
    ) -> None:
        """`load` gives the model, in the thread; `report` spares a second check; `resume` goes on with that run."""
        self.folder: RunFolder | None = None
        self._config = config
        self._load = load
        self._report = report
        self._resume = resume
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> RunFolder:
        """Checks the dataset, makes the run folder and starts the thread.

        Raises:
            DatasetError: the dataset has errors; says how many, and the first.
            JobAlreadyRunning: a run is being trained in this output folder, here or in another process.
        """
        lock = _lock_output(self._config)
        try:
            report = _checked(self._config, self._report)
            folder = self._resume or RunFolder.create(self._config.output_dir, self._config)
        except BaseException:
            lock.release()
            raise
        self.folder = folder
        self._thread = threading.Thread(target=self._run, args=(folder, report, lock), name=f"train {folder.name}")
        self._thread.daemon = True
        self._thread.start()
        return folder

    def stop(self) -> None:
        """Asks the run to stop after this step; returns at once."""
        self._stop.set()

    def join(self, timeout: float | None = None) -> None:
        """Waits for the end, at most `timeout` seconds."""
        if self._thread is not None:
            self._thread.join(timeout)

    @property
    def is_alive(self) -> bool:
        """True while the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def _run(self, folder: RunFolder, report: DatasetReport, lock: FileLock) -> None:
        try:
            _drive(
                self._config, folder, self._load, report,
                should_stop=self._stop.is_set, on_event=lambda _: None, resume=self._resume is not None,
            )  # fmt: skip
        finally:
            lock.release()


def run_inline(
    config: RunConfig,
    load: Loader,
    *,
    on_event: Callable[[TrainEvent], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    report: DatasetReport | None = None,
    resume: RunFolder | None = None,
) -> RunFolder:
    """Trains here and now, for the command line and notebooks; `on_event` sees each event after it is written.

    A failure while training is the run's last event, not an exception: ask the folder for its `state()`. A resumed
    run may be given its own configuration, `resume.config()`.

    Raises:
        DatasetError, JobAlreadyRunning: as `TrainJob.start`.
    """
    lock = _lock_output(config)
    try:
        checked = _checked(config, report)
        folder = resume or RunFolder.create(config.output_dir, config)
        _drive(config, folder, load, checked, should_stop=should_stop, on_event=on_event, resume=resume is not None)
    finally:
        lock.release()
    return folder


def _drive(
    config: RunConfig,
    folder: RunFolder,
    load: Loader,
    report: DatasetReport,
    *,
    should_stop: Callable[[], bool],
    on_event: Callable[[TrainEvent], None],
    resume: bool,
) -> None:
    """Runs the loop and writes its events; whatever goes wrong becomes the last of them."""
    step = 0
    with folder.locked():
        try:
            with (
                memory_errors("The device ran out of memory.", lambda: _LESS_MEMORY),
                closing(train(config, folder, load(), report, should_stop=should_stop, resume=resume)) as events,
            ):
                for event in events:
                    step = getattr(event, "step", step)
                    folder.append(event)
                    on_event(event)
        except Exception as error:  # noqa: BLE001 the one boundary: a thread has nobody to raise to
            failed = _failure(error, step)
            if isinstance(error, StudioError):
                logger.warning("run=%s failed after step=%d: %s", folder.name, step, error.message)
            else:
                logger.exception("run=%s failed after step=%d", folder.name, step)
            folder.append(failed)
            on_event(failed)


def _lock_output(config: RunConfig) -> FileLock:
    config.output_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(config.output_dir / LOCK_FILE)
    if not lock.acquire():
        raise JobAlreadyRunning(
            f"A run is being trained in {config.output_dir.name} already.", "Wait until it ends, or stop it."
        )
    return lock


def _checked(config: RunConfig, report: DatasetReport | None) -> DatasetReport:
    report = report or check_dataset(config.data)
    errors = report.errors
    if errors:
        first = " ".join(issue.message for issue in errors[:_SHOWN_ERRORS])
        more = f" And {len(errors) - _SHOWN_ERRORS} more." if len(errors) > _SHOWN_ERRORS else ""
        count = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
        raise DatasetError(f"The dataset has {count}. {first}{more}", "Check the dataset, and mend what it lists.")
    return report


def _failure(error: Exception, step: int) -> RunFailed:
    if isinstance(error, StudioError):
        return RunFailed(step=step, message=error.message, remedy=error.remedy)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        message, remedy = "The disk is full.", "Free some space, then resume the run."
    else:
        message = f"Something unexpected went wrong after step {step} ({type(error).__name__})."
        remedy = "The log has the details. What was saved before is kept; the run can be resumed."
    return RunFailed(step=step, message=message, remedy=remedy)
