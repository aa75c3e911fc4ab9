"""Long work in a thread of its own, followed from a page: how far it is, and a way to stop it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

from studio.core.data.check import Progress
from studio.view.words import Words

EVERY = 0.25
"""Seconds between two looks."""

Result = TypeVar("Result")
Shown = TypeVar("Shown")


@dataclass(frozen=True, slots=True)
class Step:
    """How far the work is."""

    done: int
    total: int
    """0 before that is known."""
    seconds: float
    """Since it began."""

    @property
    def share(self) -> float:
        """0 to 1."""
        return self.done / max(1, self.total)

    def left(self, w: Words) -> str:
        """`2 min 30 s left`, once a guess is worth saying; else nothing."""
        if self.seconds < 1 or not 0 < self.done < self.total:
            return ""
        return w("progress.left", time=w.duration(self.seconds / self.done * (self.total - self.done)))


def follow(
    work: Callable[[Progress], Result], stop: threading.Event, say: Callable[[Step], Shown]
) -> Generator[Shown, None, Result]:
    """What `say` makes of the steps of `work` while it runs; returns its value, or raises its error.

    Whoever closes the generator before its end sets `stop`, which the work must ask for, and waits for the work.
    """
    began = time.monotonic()
    last = (0, 0)

    def tell(done: int, total: int) -> None:
        nonlocal last
        last = (done, total)

    pool = ThreadPoolExecutor(1)
    future = pool.submit(work, tell)
    try:
        while not wait([future], EVERY).done:
            yield say(Step(*last, time.monotonic() - began))
    finally:
        if not future.done():
            stop.set()
        pool.shutdown()
    return future.result()
