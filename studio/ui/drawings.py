"""Drawings that all visitors share: each is made once for what it shows, and that of a live run now and then."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

EVERY = 2.0
"""Seconds for which a drawing of a live run is good enough."""
KEPT = 48


@dataclass(frozen=True, slots=True)
class Drawing:
    """HTML, and what it was made of; a page that has this very object need not be sent it again."""

    html: str
    state: Hashable
    time: float
    """Of the monotonic clock."""


class Drawings:
    """The newest drawing of each kind; one is made at a time."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, Drawing] = OrderedDict()
        self._drawing = threading.Lock()

    def get(self, what: Hashable, state: Hashable, draw: Callable[[], str], *, is_live: bool) -> Drawing:
        """The drawing of `what` as it is in this `state`; of what is live an older one while it is good enough, or
        while another drawing is being made.
        """
        if (known := self._good(what, state, is_live)) is not None:
            return known
        old = self._kept.get(what) if is_live else None
        if not self._drawing.acquire(blocking=old is None):
            assert old is not None
            return old
        try:
            if (known := self._good(what, state, is_live)) is not None:
                return known
            made = Drawing(draw(), state, time.monotonic())
            self._kept[what] = made
            self._kept.move_to_end(what)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return made
        finally:
            self._drawing.release()

    def _good(self, what: Hashable, state: Hashable, is_live: bool) -> Drawing | None:
        known = self._kept.get(what)
        if known is None or (known.state != state and not (is_live and time.monotonic() - known.time < EVERY)):
            return None
        return known
