"""Whether a run learns its clips by heart, from its events; without torch, so that whoever watches can ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from studio.core.events import HeldOutLoss, StepDone

RISE = 1.01
"""A held-out loss this many times its lowest counts as risen: at fixed noise it hardly wavers."""


@dataclass(frozen=True, slots=True)
class Overfitting:
    """From `step` on the held-out loss rose while the training loss fell."""

    step: int
    """Where the held-out loss was lowest."""
    rise: float
    """Held-out loss now, in shares of its lowest: 1.03 is three per cent more."""


def overfitting(steps: Sequence[StepDone], looks: Sequence[HeldOutLoss]) -> Overfitting | None:
    """Whether a run learns its clips by heart, by a simple rule; None when it does not, or nobody can tell yet.

    The last two held-out losses are both above `RISE` times the lowest one before them, and the mean training loss
    since that lowest one is below the mean over as many steps before it.
    """
    if len(looks) < 3:
        return None
    best = min(looks, key=lambda look: look.loss)
    if best in looks[-2:] or any(look.loss <= RISE * best.loss for look in looks[-2:]):
        return None
    since = [step.loss for step in steps if step.step > best.step]
    before = [step.loss for step in steps if step.step <= best.step][-len(since) :]
    if not since or not before or fmean(since) >= fmean(before):
        return None
    return Overfitting(best.step, looks[-1].loss / best.loss)
