"""Pages that watch a run must not slow it down: the more there are, the seldomer each asks."""

from studio.ui.watchers import Watchers


def test_few_pages_ask_as_usual():
    watchers = Watchers()
    assert [watchers.interval(f"page {number}", 1.0) for number in range(10)] == [1.0] * 10


def test_a_hundred_pages_ask_every_ten_seconds():
    watchers = Watchers()
    for number in range(100):
        seconds = watchers.interval(f"page {number}", 1.0)
    assert seconds == 10.0
    assert watchers.interval("page 0", 2.0) == 10.0, "one that asks again is no other page"
    assert watchers.interval("page 0", 12.0) == 12.0


def test_pages_that_were_closed_are_forgotten():
    now = 0.0
    watchers = Watchers(clock=lambda: now)
    for number in range(100):
        watchers.interval(f"page {number}", 1.0)
    now = 25.0
    assert watchers.interval("page 0", 1.0) == 10.0, "the others may have missed two"
    now = 31.0
    assert watchers.interval("page 1", 1.0) == 1.0
