"""One video by several processes, each on its GPU: all render it, and the first one writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from studio.core.events import SampleEvent
from studio.core.model.load import ModelBundle
from studio.core.model.ulysses import Ulysses
from studio.core.sample.request import SampleRequest
from studio.core.sample.sampler import frames_of, sample


def spread(bundle: ModelBundle) -> None:
    """From now on the bundle's processes share the work of every forward; nothing for one alone.

    Raises:
        DeviceError: the attention heads do not divide by the processes.
    """
    processes = bundle.processes
    if processes.count > 1:
        bundle.dit.set_ulysses(Ulysses(processes.rank, processes.count))


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
