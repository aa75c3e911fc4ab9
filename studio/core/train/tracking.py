"""The series of a run in TensorBoard and trackio, written as they come: `report_to`.

One listener to the events of a run. A run that is resumed goes on with the series that it has.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Protocol

from studio.core.config import RunConfig, Tracker
from studio.core.config_json import run_config_to_json
from studio.core.errors import ConfigError
from studio.core.events import HeldOutLoss, RunStarted, StepDone, TrainEvent
from studio.core.runlog import RunFolder

logger = logging.getLogger(__name__)

TENSORBOARD_FOLDER = "tensorboard"
"""In the run folder; `tensorboard --logdir` of all runs then shows each."""
TRACKIO_PROJECT = "longcat-studio"

_Measured = StepDone | HeldOutLoss


class _Writer(Protocol):
    """Takes the numbers of an event."""

    def write(self, event: _Measured) -> None: ...

    def close(self) -> None: ...


def require_trackers(config: RunConfig) -> None:
    """Raises ConfigError for a tracker of `report_to` that is not installed."""
    missing = [tracker for tracker in config.sharing.report_to if find_spec(tracker) is None]
    if missing:
        raise ConfigError(
            f"report_to names {' and '.join(missing)}, not installed here.",
            f"Install it: pip install {' '.join(missing)}; or set report_to to none.",
        )


class Listener:
    """Hands the numbers of events to the trackers of a run; a tracker that fails is left out from then on."""

    def __init__(self, config: RunConfig, run: RunFolder) -> None:
        self._config = config
        self._run = run
        self._writers: dict[Tracker, _Writer] = {}

    def __call__(self, event: TrainEvent) -> None:
        """Takes an event of the run, which is in the folder already."""
        if isinstance(event, RunStarted):
            self._start(event.from_step)
        elif isinstance(event, _Measured):
            self._write(event)

    def close(self) -> None:
        """Ends the series; what is on its way is written."""
        for tracker, writer in list(self._writers.items()):
            self._try(tracker, writer.close)
        self._writers.clear()

    def _start(self, from_step: int) -> None:
        events = [event for _, event in self._run.events()]
        earlier = [event for event in events if isinstance(event, _Measured)]
        # A run that begins with steps has them from another one, which its trackers do not know.
        is_first_attempt = sum(isinstance(event, RunStarted) for event in events) == 1
        seen = frozenset() if is_first_attempt else frozenset((type(event), event.step) for event in earlier)
        for tracker in self._config.sharing.report_to:
            self._try(tracker, lambda tracker=tracker: self._open(tracker, from_step, seen))
        for event in earlier if is_first_attempt else ():
            self._write(event)

    def _open(self, tracker: Tracker, from_step: int, seen: frozenset[tuple[type, int]]) -> None:
        self._writers[tracker] = (
            _TensorBoard(self._run, from_step) if tracker == "tensorboard" else _Trackio(self._config, self._run, seen)
        )

    def _write(self, event: _Measured) -> None:
        for tracker, writer in list(self._writers.items()):
            self._try(tracker, lambda writer=writer: writer.write(event))

    def _try(self, tracker: Tracker, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 whatever a tracker does, the run goes on
            logger.warning("run=%s is not reported to %s any more: %s", self._run.name, tracker, error)
            self._writers.pop(tracker, None)


@contextmanager
def listening(config: RunConfig, run: RunFolder) -> Iterator[Listener]:
    """A listener for one attempt of a run."""
    listener = Listener(config, run)
    try:
        yield listener
    finally:
        listener.close()


def scalars_of(event: StepDone | HeldOutLoss) -> dict[str, float]:
    """The numbers of a step or of a look at the held-out clips, by the names of their series."""
    if isinstance(event, HeldOutLoss):
        bands = {f"held_out/band_{number}": loss for number, loss in enumerate(event.bands)}
        return {"held_out/loss": event.loss, "held_out/base_loss": event.base_loss, **bands}
    values = {
        "train/loss": event.loss,
        "train/learning_rate": event.learning_rate,
        "train/grad_norm": event.grad_norm,
        "train/seconds": event.seconds,
    }
    return values | ({} if event.peak_bytes is None else {"train/peak_gib": event.peak_bytes / 2**30})


class _TensorBoard:
    """Event files in the run folder; what was written after the step that a run goes on from does not count."""

    def __init__(self, run: RunFolder, from_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.path / TENSORBOARD_FOLDER), purge_step=from_step + 1 if from_step else 0)

    def write(self, event: _Measured) -> None:
        for name, value in scalars_of(event).items():
            self._writer.add_scalar(name, value, event.step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Trackio:
    """A run of trackio's local project. What is done again after a resume gives the same numbers and is written once:
    `seen` are the kinds and steps of what was written.
    """

    def __init__(self, config: RunConfig, run: RunFolder, seen: frozenset[tuple[type, int]]) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self._seen = seen
        self._run = trackio.init(
            project=TRACKIO_PROJECT, name=run.name, config=run_config_to_json(config), resume="allow", embed=False,
            auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip

    def write(self, event: _Measured) -> None:
        if (type(event), event.step) not in self._seen:
            self._run.log(scalars_of(event), step=event.step)

    def close(self) -> None:
        self._run.finish()
