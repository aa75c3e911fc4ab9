"""How often a page asks how a run goes on: the more pages there are, the seldomer each."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

SECONDS_A_PAGE = 0.1
"""Between two questions, for each page that asks: while an answer takes 10 to 30 ms, most of an interpreter is left to
the run.
"""
_MISSED = 3
"""Questions that a page may leave out before it is taken to be closed."""


class Watchers:
    """The pages that watch, for any number of threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._asked: dict[str, float] = {}
        self._lock = threading.Lock()

    def interval(self, visitor: str, usual: float) -> float:
        """Seconds until this visitor, who asks now, should ask again: `usual`, or more where there are many."""
        with self._lock:
            now = self._clock()
            self._asked[visitor] = now
            patience = _MISSED * max(usual, self._share())
            self._asked = {who: asked for who, asked in self._asked.items() if now - asked <= patience}
            return max(usual, self._share())

    def _share(self) -> float:
        """In whole seconds, so that one page that comes or goes changes little."""
        return float(math.floor(SECONDS_A_PAGE * len(self._asked)))
