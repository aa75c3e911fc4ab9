"""What happens between two steps of a run: checkpoints, samples, held-out loss, and what someone asks for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from studio.core.config import RunConfig
from studio.core.events import CheckpointSaved, HeldOutLoss, RunContinued, RunPaused, SampleSaved, TrainEvent
from studio.core.model.load import ModelBundle
from studio.core.model.memory import release
from studio.core.model.processes import ALONE, Processes
from studio.core.runlog import RunFolder
from studio.core.train.heldout import HeldOut
from studio.core.train.learner import Learner
from studio.core.train.outcome import save_outcome
from studio.core.train.requests import Request, is_asked, withdraw
from studio.core.train.validate import render_samples
from studio.core.types import Pair

PAUSE_SECONDS = 0.1
"""Between two looks for the end of a pause."""


@dataclass(kw_only=True, slots=True)
class Attempt:
    """A run from where it begins or goes on to where it ends; one of several processes writes."""

    config: RunConfig
    folder: RunFolder
    bundle: ModelBundle
    learner: Learner
    samples: Sequence[Pair]
    """Rendered at intervals and on demand."""
    on_demand: Sequence[Pair]
    """Rendered on demand where there are no `samples`."""
    held_out: HeldOut
    memory: Callable[[], AbstractContextManager[None]]
    """Says what to change when memory runs out inside."""
    should_stop: Callable[[], bool]
    step: int
    saved: int
    """The step of the newest checkpoint; as `step` at the start, where there is nothing to save."""
    processes: Processes = ALONE
    sampled: int = -1
    measured: int = -1

    def after_step(self) -> Iterator[TrainEvent]:
        """What is due after a step."""
        optim, validation = self.config.optim, self.config.validation
        look_interval = (
            validation.step_interval if validation.eval_step_interval is None else validation.eval_step_interval
        )
        if is_due(self.step, optim.checkpoint_step_interval):
            yield from self.save()
        if is_due(self.step, look_interval):
            yield from self.measure()
        if is_due(self.step, validation.step_interval):
            yield from self.sample(self.samples)

    def obey(self) -> Iterator[TrainEvent]:
        """Does what was asked for since the last step; waits while the run is to be paused."""
        yield from self._serve()
        if not self._is_asked(Request.PAUSE) or self.should_stop():
            return
        yield from self.save()
        with self.bundle.lock:
            release()
        yield RunPaused(step=self.step)
        while self._is_asked(Request.PAUSE) and not self.should_stop():
            time.sleep(PAUSE_SECONDS)
            yield from self._serve()
        yield RunContinued(step=self.step)

    def save(self) -> Iterator[CheckpointSaved]:
        """A checkpoint, unless there is one of this step."""
        if self.saved == self.step:
            return
        self.saved = self.step
        if not self.processes.is_main:
            return
        with self.bundle.lock:
            path = self.learner.save(self.folder.path / "checkpoints", self.step)
        yield CheckpointSaved(step=self.step, path=path.relative_to(self.folder.path).as_posix())

    def leave(self) -> str:
        """Writes the LoRA as it stands; returns its path in the run folder."""
        if not self.processes.is_main:
            return ""
        return save_outcome(self.config, self.folder, self.bundle, self.learner, self.step)

    def sample(self, pairs: Sequence[Pair]) -> Iterator[SampleSaved]:
        """The samples, unless they were rendered after this step."""
        if self.sampled == self.step:
            return
        self.sampled = self.step
        yield from render_samples(
            pairs, self.step, self.config, self.folder, self.bundle,
            weights=self.learner.averaged, should_stop=self.should_stop, processes=self.processes,
        )  # fmt: skip

    def measure(self) -> Iterator[HeldOutLoss]:
        """The held-out loss, unless it was measured after this step."""
        if self.measured == self.step:
            return
        self.measured = self.step
        is_fresh = self.step == 0 and self.config.lora.init_from is None
        weights = None if is_fresh else self.learner.averaged
        yield from self.held_out.measure(self.step, weights, self.memory, self.should_stop)

    def _serve(self) -> Iterator[TrainEvent]:
        # A request is there until it is done: whoever watches can tell.
        if self._is_asked(Request.SAVE):
            yield from self.save()
            self._withdraw(Request.SAVE)
        if self._is_asked(Request.SAMPLE):
            yield from self.sample(self.samples or self.on_demand)
            self._withdraw(Request.SAMPLE)

    def _is_asked(self, request: Request) -> bool:
        return self.processes.agree(is_asked(self.folder, request))

    def _withdraw(self, request: Request) -> None:
        if self.processes.is_main:
            withdraw(self.folder, request)


def is_due(step: int, interval: int) -> bool:
    """True every `interval` steps; an interval of 0 means only at the end."""
    return interval > 0 and step % interval == 0
