"""One video, or what a queue has for them, by several processes, each on its GPU: all render, the first one writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from studio.core.config import ModelConfig
from studio.core.errors import MediaError
from studio.core.events import SampleEvent
from studio.core.model.load import ModelBundle, load_bundle
from studio.core.model.memory import release
from studio.core.model.processes import Processes, joined
from studio.core.model.ulysses import Ulysses
from studio.core.sample.gallery import sample_as
from studio.core.sample.queue import QueueEntry, SampleQueue
from studio.core.sample.request import SampleRequest, resolve_settings
from studio.core.sample.sampler import frames_of, sample
from studio.core.sample.underway import Report


def load_together(model: ModelConfig, processes: Processes) -> ModelBundle:
    """`load_bundle`, for processes that share the work of every forward; one alone does all of it.

    Raises as that, and DeviceError: the attention heads do not divide by the processes.
    """
    bundle = load_bundle(model, processes)
    if processes.count > 1:
        bundle.dit.set_ulysses(Ulysses(processes.rank, processes.count))
    return bundle


def sample_together(
    request: SampleRequest, bundle: ModelBundle, out: Path, *, should_stop: Callable[[], bool] = lambda: False
) -> Iterator[SampleEvent]:
    """`sample` on all of the bundle's processes at once; the first one's wish to stop counts. Raises as `sample`."""
    processes = bundle.processes

    def stopping() -> bool:
        return processes.agree(should_stop())

    if processes.is_main:
        yield from sample(request, bundle, out, should_stop=stopping)
    else:
        with bundle.lock:
            yield from frames_of(request, bundle, should_stop=stopping)


def render_queue(gallery: Path, device: str) -> None:
    """As one of several processes on `device`: renders what runs in the queue of a gallery, and what waits after it for
    the same model and as many GPUs.

    The first process alone knows the queue. What goes wrong in something that all do together ends all: the others may
    wait for one that failed.

    Raises:
        StudioError: a sample could not be rendered; its entry says so too.
    """
    queue = SampleQueue(gallery / "queue")
    with joined(device) as processes:
        first = queue.running() if processes.is_main else None
        model = processes.tell(first and first.model)
        if model is None:
            # It was cancelled meanwhile.
            return
        if first is None:
            _render_beside(load_together(model, processes))
        else:
            processes.outlast_sigterm()
            with processes.telling(queue.fail_running):
                _First(gallery, queue, processes).render(first)


@dataclass(slots=True)
class _First:
    """What the first process does."""

    gallery: Path
    queue: SampleQueue
    processes: Processes
    bundle: ModelBundle | None = None
    failed: list[Exception] = field(default_factory=list)

    def render(self, first: QueueEntry) -> None:
        """The entry, and those after it that ask for the same. Raises StudioError."""
        report = Report(self.queue.folder)

        def load(entry: QueueEntry) -> ModelBundle:
            report.begin(entry.id)
            return self._loaded(entry)

        running = self.queue.run(
            load, self.gallery, first=first, should_stop=lambda: bool(self.failed), render=self._render,
            is_next=lambda entry: (entry.model, entry.gpus) == (first.model, first.gpus),
        )  # fmt: skip
        for _, event in running:
            report.note(event)
        if self.failed:
            raise self.failed[0]
        self.processes.tell(None)

    def _loaded(self, entry: QueueEntry) -> ModelBundle:
        assert entry.model is not None
        if self.bundle is None:
            with self._shared():
                self.bundle = load_together(entry.model, self.processes)
        return self.bundle

    def _render(
        self, request: SampleRequest, bundle: ModelBundle, out: Path, *, should_stop: Callable[[], bool]
    ) -> Iterator[SampleEvent]:
        # What cannot be rendered needs nobody else.
        resolve_settings(request, bundle)
        with self._shared():
            self.processes.tell(replace(request, preview_steps=0))
            yield from sample_as(request, bundle, out, should_stop=lambda: self.processes.agree(should_stop()))

    @contextmanager
    def _shared(self) -> Iterator[None]:
        try:
            yield
        except MediaError:
            # Of the file, which is written without the others.
            raise
        except Exception as error:
            self.failed.append(self.processes.explained(error))
            raise self.failed[0] from error


def _render_beside(bundle: ModelBundle) -> None:
    """What another process does: it renders each request that the first one hands out, until that is None."""
    processes = bundle.processes
    with bundle.lock:
        while (request := processes.tell(None)) is not None:
            for _ in frames_of(request, bundle, should_stop=partial(processes.agree, False)):
                pass
            release()
