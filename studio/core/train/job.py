"""A run as a job: in a background thread, or right here; the run folder tells what happens in either case."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from studio.core.config import RunConfig
from studio.core.data.check import check_dataset
from studio.core.errors import ConfigError, DatasetError, StudioError
from studio.core.events import RunFailed, RunResumed, RunStarted, TrainEvent
from studio.core.model.load import ModelBundle
from studio.core.model.lora import read_lora_shape
from studio.core.model.memory import memory_errors
from studio.core.model.processes import ALONE, Processes
from studio.core.runlog import RunFolder
from studio.core.train.checkpoint import remove_leftovers
from studio.core.train.failure import failure_of
from studio.core.train.hub import upload_finished
from studio.core.train.loop import train
from studio.core.train.onerun import TrainingLock
from studio.core.train.requests import Request, ask, forget, withdraw
from studio.core.train.tracking import listening, require_trackers
from studio.core.types import DatasetReport

logger = logging.getLogger(__name__)

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
        self._ended: threading.Event | None = None
        """None before the start. Not asked of the thread: up to Python 3.12 a join that Ctrl-C ends takes it for ended.
        """

    def start(self) -> RunFolder:
        """Checks the dataset, makes the run folder and starts the thread.

        Raises:
            AdapterError: the LoRA to begin with cannot be read.
            ConfigError: a tracker of `report_to` is not installed, or no folder can be made.
            DatasetError: the dataset has errors; says how many, and the first.
            JobAlreadyRunning: a run is being trained in this output folder or on this GPU, here or in another
                process; says which.
        """
        lock = TrainingLock(self._config)
        try:
            report = _checked(self._config, self._report)
            self._config, folder = open_run(self._config, self._resume)
            lock.tell(folder)
        except BaseException:
            lock.release()
            raise
        self.folder = folder
        ended = self._ended = threading.Event()
        arguments = (folder, report, lock, ended)
        threading.Thread(target=self._run, args=arguments, name=f"train {folder.name}", daemon=True).start()
        return folder

    def stop(self) -> None:
        """Asks the run to stop after this step; returns at once."""
        self._stop.set()

    def pause(self) -> None:
        """Asks the run to wait after this step, with the device free."""
        self._ask(Request.PAUSE)

    def go_on(self) -> None:
        """Ends the pause."""
        if self.folder is not None:
            withdraw(self.folder, Request.PAUSE)

    def save_now(self) -> None:
        """Asks for a checkpoint after this step."""
        self._ask(Request.SAVE)

    def sample_now(self) -> None:
        """Asks for the validation samples after this step."""
        self._ask(Request.SAMPLE)

    def join(self, timeout: float | None = None) -> None:
        """Waits for the end, at most `timeout` seconds."""
        if self._ended is not None:
            self._ended.wait(timeout)

    @property
    def is_alive(self) -> bool:
        """True from the start to the end."""
        return self._ended is not None and not self._ended.is_set()

    def _ask(self, request: Request) -> None:
        if self.folder is not None:
            ask(self.folder, request)

    def _run(self, folder: RunFolder, report: DatasetReport, lock: TrainingLock, ended: threading.Event) -> None:
        try:
            _drive(
                self._config, folder, self._load, report,
                should_stop=self._stop.is_set, on_event=lambda _: None, resume=self._resume is not None,
            )  # fmt: skip
        finally:
            lock.release()
            ended.set()
        if self._config.sharing.push_to_hub:
            # Not part of the run, whose thread ends here, with the device free for the next one.
            threading.Thread(target=upload_finished, args=(folder,), name=f"upload {folder.name}", daemon=True).start()


def run_inline(
    config: RunConfig,
    load: Loader,
    *,
    on_event: Callable[[TrainEvent], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    report: DatasetReport | None = None,
    resume: RunFolder | None = None,
    processes: Processes = ALONE,
) -> RunFolder:
    """Trains here and now, for the command line and notebooks; `on_event` sees each event after it is written.

    A failure while training is the run's last event, not an exception: ask the folder for its `state()`. A resumed
    run may be given its own configuration, `resume.config()`. Of several `processes` all call this, and the first one
    writes; for the others a failure is an exception.

    Raises:
        AdapterError, ConfigError, DatasetError, JobAlreadyRunning: as `TrainJob.start`.
        ProcessLost: another process has ended.
    """
    lock = TrainingLock(config, is_main=processes.is_main)
    try:
        checked = _checked(config, report)
        if not processes.is_main:
            config, folder = _begun(config, resume), RunFolder(Path(processes.tell("")))
            _follow(config, folder, load, checked, resume=resume is not None, processes=processes)
            return folder
        config, folder = open_run(config, resume)
        lock.tell(folder)
        processes.tell(str(folder.path))
        _drive(
            config, folder, load, checked,
            should_stop=should_stop, on_event=on_event, resume=resume is not None, processes=processes,
        )  # fmt: skip
    finally:
        lock.release()
    if config.sharing.push_to_hub:
        upload_finished(folder)
    return folder


def _follow(
    config: RunConfig, folder: RunFolder, load: Loader, report: DatasetReport, *, resume: bool, processes: Processes
) -> None:
    """Runs the loop beside the process that writes. Raises StudioError."""
    step = 0
    try:
        with (
            memory_errors("The device ran out of memory.", lambda: _LESS_MEMORY),
            closing(train(config, folder, load(), report, resume=resume, processes=processes)) as events,
        ):
            for event in events:
                step = getattr(event, "step", step)
    except Exception as error:
        if isinstance(explained := processes.explained(error), StudioError):
            raise explained from error
        logger.exception("process=%d failed after step=%d", processes.rank, step)
        failed = failure_of(error, step, folder)
        raise StudioError(failed.message, failed.remedy) from error


def _drive(
    config: RunConfig,
    folder: RunFolder,
    load: Loader,
    report: DatasetReport,
    *,
    should_stop: Callable[[], bool],
    on_event: Callable[[TrainEvent], None],
    resume: bool,
    processes: Processes = ALONE,
) -> None:
    """Runs the loop and writes its events; whatever goes wrong becomes the last of them."""
    step = 0

    def tell_lost(error: StudioError) -> None:
        failed = failure_of(error, step, folder)
        _tell_failure(folder, failed)
        on_event(failed)

    with folder.locked(), listening(config, folder) as report_to_trackers, processes.telling(tell_lost):
        try:
            if resume:
                folder.append(RunResumed())
            remove_leftovers(folder.path / "checkpoints")
            with (
                memory_errors("The device ran out of memory.", lambda: _LESS_MEMORY),
                closing(
                    train(
                        config,
                        folder,
                        load(),
                        report,
                        should_stop=should_stop,
                        resume=resume,
                        processes=processes,
                    )
                ) as events,
            ):
                for event in events:
                    step = event.from_step if isinstance(event, RunStarted) else getattr(event, "step", step)
                    folder.append(event)
                    report_to_trackers(event)
                    on_event(event)
        except Exception as raised:  # noqa: BLE001 the one boundary: a thread has nobody to raise to
            error = processes.explained(raised)
            failed = failure_of(error, step, folder)
            if isinstance(error, StudioError):
                logger.warning("run=%s failed after step=%d: %s", folder.name, step, error.message)
            else:
                logger.error("run=%s failed after step=%d", folder.name, step, exc_info=raised)
            _tell_failure(folder, failed)
            processes.fail(error if isinstance(error, StudioError) else StudioError(failed.message, failed.remedy))
            on_event(failed)


def _tell_failure(folder: RunFolder, failed: RunFailed) -> None:
    """Writes the last event; on a disk that is full to the last byte the run is told to be interrupted."""
    try:
        folder.append(failed)
    except OSError as error:
        logger.warning("run=%s cannot be told to have failed: %s", folder.name, error)


def open_run(config: RunConfig, resume: RunFolder | None) -> tuple[RunConfig, RunFolder]:
    """The folder of a new run, or that of `resume`; a LoRA to begin with gives rank and alpha.

    Raises:
        AdapterError: that LoRA cannot be read.
        ConfigError: a tracker of `report_to` is not installed, or no folder can be made.
    """
    require_trackers(config)
    config = _begun(config, resume)
    if resume is None:
        try:
            return config, RunFolder.create(config.output_dir, config)
        except OSError as error:
            raise ConfigError(
                f"No run can be made in {config.output_dir}: {error.strerror}.",
                "Choose another output_dir, or free some space.",
            ) from error
    forget(resume)
    return config, resume


def _begun(config: RunConfig, resume: RunFolder | None) -> RunConfig:
    """With rank and alpha of the LoRA that the run begins, or began, from. Raises AdapterError."""
    if config.lora.init_from is None:
        return config
    begun = read_lora_shape(config.lora.init_from) if resume is None else resume.config().lora
    return replace(config, lora=replace(config.lora, rank=begun.rank, alpha=begun.alpha))


def _checked(config: RunConfig, report: DatasetReport | None) -> DatasetReport:
    report = report or check_dataset(config.data, eval_dataset_id=config.validation.eval_dataset_id)
    errors = report.errors
    if errors:
        first = " ".join(issue.message for issue in errors[:_SHOWN_ERRORS])
        more = f" And {len(errors) - _SHOWN_ERRORS} more." if len(errors) > _SHOWN_ERRORS else ""
        count = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
        raise DatasetError(f"The dataset has {count}. {first}{more}", "Check the dataset, and mend what it lists.")
    return report
