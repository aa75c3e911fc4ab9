"""What the pages share: opened datasets, the loaded model, the one training job, and a private folder for previews."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import torch
from PIL import Image

from studio.core.config import ModelConfig, RunConfig
from studio.core.data.check import Probes, Progress, check_project
from studio.core.data.dataset import training_pairs
from studio.core.data.mend import MendKind, offered_mends
from studio.core.errors import ConfigError, JobAlreadyRunning
from studio.core.model.load import ModelBundle, load_bundle
from studio.core.model.memory import release
from studio.core.runlog import RunFolder, RunSnapshot, is_of_data, list_runs
from studio.core.runwatch import RunReader
from studio.core.sample.desk import SampleDesk
from studio.core.settings_text import SettingsText
from studio.core.simpletuner import CONFIG_NAME, DEFAULT_OUTPUT, Project
from studio.core.train.checkpoint_files import newest_whole
from studio.core.train.fit import Fit, fit_of
from studio.core.train.job import TrainJob, open_run
from studio.core.train.launch import Launched, launch
from studio.core.train.onerun import TrainingLock, told_run
from studio.core.train.requests import Request, ask, is_asked, withdraw
from studio.core.types import DatasetReport, Pair
from studio.ui.drawings import Drawings
from studio.ui.settings import AppSettings
from studio.ui.watchers import Watchers
from studio.view.sheets import Thumbnails


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """A dataset that someone opened, as it was when it was checked."""

    path: Path
    project: Project
    report: DatasetReport
    model: ModelConfig
    """The project's, or the app's where the project has no config.json."""

    offer: Mapping[MendKind, tuple[Pair, ...]] = field(default_factory=dict)
    """Mends that would change something, with the clips that they would change."""
    texts: SettingsText | None = None
    """Settings that someone put in the place of its files; None: as the files say."""

    @property
    def output_dir(self) -> Path | None:
        """Where its config.json wants the runs; None where it does not say."""
        wanted = self.project.run.output_dir
        return None if wanted.absolute() == DEFAULT_OUTPUT.absolute() else wanted

    @property
    def num_ready(self) -> int:
        """Pairs that will be trained on."""
        return len(training_pairs(self.report, self.project.run))


def _private_folder() -> Path:
    """A new folder that only this user can read, gone when the app ends."""
    folder = Path(tempfile.mkdtemp(prefix="longcat-studio-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def typed_path(text: str) -> Path:
    """The path that someone typed, `~` for a home folder. Raises ConfigError."""
    try:
        return Path(text.strip()).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{text.strip()} names no home folder of this machine.", "Type the whole path.") from error


@dataclass(slots=True)
class Workshop:
    """One for all pages and visitors of an app; runs themselves live in their folders."""

    settings: AppSettings
    folder: Path = field(default_factory=_private_folder)
    """Previews and finished samples, for the browser to fetch."""
    probes: Probes = field(default_factory=Probes)
    opened: dict[str, Opened] = field(default_factory=dict)
    latest: str | None = None
    """Path of the dataset opened last: a reloaded page shows it again."""
    job: TrainJob | None = None
    launched: Launched | None = None
    """The run on several GPUs that was begun here last."""
    lent: int = 0
    """How many GPUs processes that render a sample have now."""
    checks: dict[str, threading.Event] = field(default_factory=dict)
    """What stops a check, by the visitor who asked for it."""
    thumbnails: Thumbnails = field(default_factory=Thumbnails)
    reader: RunReader = field(default_factory=lambda: RunReader(every=0.5))
    drawings: Drawings = field(default_factory=Drawings)
    watchers: Watchers = field(default_factory=Watchers)
    _bundles: dict[ModelConfig, ModelBundle] = field(default_factory=dict)
    _trained: ModelConfig | None = None
    """The model of `job`."""
    _resumable: dict[tuple[Path, float | None], int] = field(default_factory=dict)
    """Steps of the newest whole checkpoints, by run and time of its last event."""
    _verifying: threading.Lock = field(default_factory=threading.Lock)
    _desks: dict[Path, SampleDesk] = field(default_factory=dict)
    """By gallery."""
    _opening: threading.Lock = field(default_factory=threading.Lock)
    _loading: threading.Lock = field(default_factory=threading.Lock)
    _starting: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, visitor: str | None) -> threading.Event:
        """What stops the check that a visitor starts now; one that still runs for them is stopped."""
        self.stop_check(visitor)
        stop = self.checks[visitor or ""] = threading.Event()
        return stop

    def stop_check(self, visitor: str | None) -> None:
        """Stops the check of a visitor, where one runs."""
        if stop := self.checks.get(visitor or ""):
            stop.set()

    def open(
        self, path: str, progress: Progress | None = None, should_stop: Callable[[], bool] = lambda: False
    ) -> Opened:
        """Checks the dataset at a path and remembers it. Raises ConfigError, or CheckStopped."""
        place = typed_path(path)
        project, report = check_project(place, progress=progress, probes=self.probes, should_stop=should_stop)
        has_config = place.is_file() or (place / CONFIG_NAME).is_file()
        model = project.run.model if has_config else self.settings.model
        offer = offered_mends(project, report)
        return self._remember(Opened(path=place, project=project, report=report, model=model, offer=offer))

    def _remember(self, opened: Opened) -> Opened:
        self.latest = str(opened.path)
        self.opened[self.latest] = opened
        return opened

    @property
    def model(self) -> ModelConfig:
        """The model in use: that of the dataset opened last, else the app's own."""
        return self.opened[self.latest].model if self.latest else self.settings.model

    @property
    def output_dir(self) -> Path:
        """Where runs are looked for: in the folder of the dataset opened last, else in the app's own."""
        return self.output_dir_of(self.opened.get(self.latest or ""))

    def output_dir_of(self, opened: Opened | None) -> Path:
        """Where the runs of a dataset are written; the app's own folder unless its project says otherwise."""
        wanted = opened.output_dir if opened else None
        return wanted or self.settings.output_dir

    def loaded(self, model: ModelConfig) -> ModelBundle | None:
        """The bundle, if it is in memory."""
        return self._bundles.get(model)

    def bundle(self, model: ModelConfig) -> ModelBundle:
        """The loaded checkpoint; one is kept, and that of the live run. Raises CheckpointError or DeviceError."""
        with self._loading:
            if model not in self._bundles:
                training = self._trained if self.is_training else None
                # Before the next one is loaded: the device may have no room for two.
                self._bundles = {known: held for known, held in self._bundles.items() if known == training}
                release()
                self._bundles[model] = load_bundle(model)
            return self._bundles[model]

    def desk(self) -> SampleDesk:
        """The desk of the folder of runs that is in use; what waits there is being rendered from now on."""
        gallery = self.output_dir.absolute() / "samples"
        with self._opening:
            if gallery not in self._desks:
                self._desks[gallery] = SampleDesk(
                    gallery, lambda model: self.bundle(model or self.model), lend=self.lend, take_back=self.take_back
                )
                self._desks[gallery].start()
            return self._desks[gallery]

    def lend(self, gpus: int) -> bool:
        """Lets go of every model, for processes that need the memory of so many GPUs; until `take_back` no other is
        loaded and no run begins. False while a run is trained or a sample is rendered.
        """
        with self._starting:
            told = told_run(self.output_dir)
            is_run = self.is_training or (self.launched is not None and self.launched.is_alive)
            is_run = is_run or (told is not None and self.snapshot(told).state.is_live)
            if is_run or any(bundle.lock.locked() for bundle in self._bundles.values()):
                return False
            if not self._loading.acquire(blocking=False):
                return False
            self._bundles = {}
            release()
            self.lent = gpus
            return True

    def take_back(self) -> None:
        """Ends `lend`."""
        self.lent = 0
        self._loading.release()

    def _refuse_while_lent(self) -> None:
        if self.lent:
            raise JobAlreadyRunning(
                f"A sample is being rendered on {self.lent} GPUs.", "Wait until it is done, or cancel it."
            )

    def current_run(self) -> RunFolder | None:
        """The run of this process while it lives, else that of another process, else the newest on disk."""
        if self.is_training and self.job:
            return self.job.folder
        if self.launched and self.launched.is_alive:
            return self.launched.folder
        told = told_run(self.output_dir)
        if told is not None and self.snapshot(told).state.is_live:
            return told
        return next(iter(list_runs(self.output_dir)), None)

    def pace(self, model: ModelConfig) -> float | None:
        """Seconds that a step of the newest run with this model took, if that is known."""
        run = self.current_run()
        try:
            return self.snapshot(run).seconds_per_step if run and run.config().model == model else None
        except ConfigError:
            return None

    def snapshot(self, run: RunFolder) -> RunSnapshot:
        """What the run's folder says; an unchanged run is not read again."""
        return self.reader.snapshot(run)

    def can_continue(self, run: RunFolder) -> bool:
        """True for a run that stopped half-way, unless it is of other data than what is open."""
        opened = self.opened.get(self.latest or "")
        if not self.snapshot(run).state.can_resume:
            return False
        return is_of_data(run, opened.project.run.data) if opened else True

    def resumable_step(self, run: RunFolder) -> int:
        """The step that a run which ended half-way goes on from: of its newest whole checkpoint; 0: from the start."""
        key = (run.path, self.snapshot(run).updated)
        # Whole files are read: once for all who ask when a run has ended.
        with self._verifying:
            if key not in self._resumable:
                newest = newest_whole(run.path / "checkpoints")
                # Only what is asked for again and again is worth keeping.
                self._resumable = {key: int(newest.name.removeprefix("step-")) if newest else 0}
            return self._resumable[key]

    @property
    def is_training(self) -> bool:
        """True while this process trains."""
        return self.job is not None and self.job.is_alive

    @property
    def num_gpus(self) -> int:
        """That can work together; those of this machine do so over NCCL."""
        if self.settings.num_gpus is not None:
            return self.settings.num_gpus
        return torch.cuda.device_count() if torch.distributed.is_nccl_available() else 0

    def is_starting(self, run: RunFolder) -> int:
        """How many processes are starting to train the run; 0 as soon as its folder tells how it goes."""
        launched = self.launched
        return launched.count if launched and launched.folder == run and launched.is_starting else 0

    def train(self, config: RunConfig, report: DatasetReport) -> RunFolder:
        """Starts a run, on several GPUs as processes of their own. Raises DatasetError or JobAlreadyRunning."""
        if config.num_processes > 1:
            return self._launch(config, None, config.num_processes)
        return self._start(TrainJob(config, lambda: self.bundle(config.model), report=report), config.model)

    def measure(self, config: RunConfig, report: DatasetReport, progress: Progress) -> Fit:
        """What a run would take. Raises StudioError."""
        if self.is_training:
            raise JobAlreadyRunning("A run is being trained already.", "Wait until it ends, or stop it.")
        self._refuse_while_lent()
        return fit_of(config, self.bundle(config.model), report, on_progress=progress)

    def resume(self, run: RunFolder) -> RunFolder:
        """Takes a run up again, with its own configuration, on as many GPUs as it had, or as are here. Raises
        StudioError.
        """
        config = run.config()
        if (count := min(config.num_processes, self.num_gpus)) > 1:
            return self._launch(config, run, count)
        return self._start(TrainJob(config, lambda: self.bundle(config.model), resume=run), config.model)

    def _start(self, job: TrainJob, model: ModelConfig) -> RunFolder:
        with self._starting:
            self._refuse_while_lent()
            if self.is_training and self.job and self.job.folder:
                name = self.job.folder.name
                raise JobAlreadyRunning(f"The run {name} is being trained already.", "Wait until it ends, or stop it.")
            # Before the thread asks for its model: what it loads must be known to be in use.
            self.job, self._trained = job, model
            return job.start()

    def _launch(self, config: RunConfig, resume: RunFolder | None, count: int) -> RunFolder:
        with self._starting:
            self._refuse_while_lent()
            if self.launched and self.launched.is_alive:
                name = self.launched.folder.name
                raise JobAlreadyRunning(f"The run {name} is being trained already.", "Wait until it ends, or stop it.")
            # Refused here where another run is going on; the processes then hold it themselves.
            TrainingLock(config).release()
            config, folder = open_run(config, resume)
            with self._loading:
                # They need the memory of all GPUs.
                self._bundles = {}
                release()
            self.launched = launch(folder, count, is_sharded=config.is_sharded)
            return folder

    def stop(self, run: RunFolder) -> None:
        """Asks a run, whichever process trains it, to stop after its step. Raises ConfigError."""
        if self.job and self.job.folder == run:
            # Needs no room on the disk.
            self.job.stop()
            with suppress(OSError):
                ask(run, Request.STOP)
        else:
            self._ask(run, Request.STOP)

    def pause(self, run: RunFolder) -> None:
        """Asks a run to wait after its step, with the device free. Raises ConfigError."""
        self._ask(run, Request.PAUSE)

    def go_on(self, run: RunFolder) -> None:
        """Ends the pause, or the wish for one. Raises ConfigError."""
        try:
            withdraw(run, Request.PAUSE)
        except OSError as error:
            raise _no_request(run, error) from error

    def save_now(self, run: RunFolder) -> None:
        """Asks a run for a checkpoint after its step. Raises ConfigError."""
        self._ask(run, Request.SAVE)

    def sample_now(self, run: RunFolder) -> None:
        """Asks a run for the validation samples after its step. Raises ConfigError."""
        self._ask(run, Request.SAMPLE)

    def asked(self, run: RunFolder) -> frozenset[Request]:
        """What the run was asked for and has not done yet."""
        return frozenset(request for request in Request if is_asked(run, request))

    def _ask(self, run: RunFolder, request: Request) -> None:
        try:
            ask(run, request)
        except OSError as error:
            raise _no_request(run, error) from error

    @property
    def no_picture(self) -> str:
        """A picture that stands for a sample that is not there."""
        file = self.folder / "no-picture.png"
        if not file.exists():
            Image.new("RGBA", (64, 64), (128, 128, 128, 48)).save(file)
        return str(file)

    def shown(self, file: Path, name: str | None = None) -> str:
        """A copy of the file in the private folder, for the browser; made once for each state of the file."""
        state = file.stat()
        target = self.folder / f"{state.st_mtime_ns}-{state.st_size}" / (name or file.name)
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            # Another visitor must not be given half of it.
            unfinished = target.with_name(f".{uuid4().hex}")
            shutil.copyfile(file, unfinished)
            unfinished.replace(target)
        return str(target)


def _no_request(run: RunFolder, error: OSError) -> ConfigError:
    return ConfigError(
        f"The run {run.name} cannot be asked: {error.strerror}.", "Check that its folder is there and may be written."
    )
