"""What a run has come to, in words and figures: held-out loss, samples, and which clips are learnt least."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from studio.core.events import SampleSaved
from studio.core.runlog import RECENT_STEPS, RunSnapshot
from studio.core.train.overfit import overfitting
from studio.view.progress import gib
from studio.view.words import Words

VISITS = 10
"""The loss of a clip is the mean of this many last steps with it: single ones depend on the noise that was drawn."""
NO_DRIFT = 0.05
"""Grey levels; a sample that differs less from that of the base model is the same to the eye and to the encoder."""


@dataclass(frozen=True, slots=True)
class ClipLoss:
    """A clip, and how well it is learnt."""

    clip: str
    """`<dataset id>/<name>`."""
    loss: float
    """Mean of the last `VISITS`."""
    visits: int
    """Steps in which it was trained on."""


def held_out_line(snapshot: RunSnapshot, w: Words) -> str:
    """`Held-out loss 0.081, 12 % below the base model's.`; empty before it was measured."""
    if not snapshot.held_out:
        return ""
    look = snapshot.held_out[-1]
    loss = figure(look.loss, w)
    if look.base_loss <= 0:
        return w("train.held_out_alone", loss=loss)
    percent = 100 * (look.loss / look.base_loss - 1)
    if abs(percent) < 0.05:
        return w("train.held_out_same", loss=loss)
    key = "train.held_out_below" if percent < 0 else "train.held_out_above"
    return w(key, loss=loss, percent=w.number(abs(percent), 1 if abs(percent) < 10 else 0))


def overfit_line(snapshot: RunSnapshot, checkpoints: Sequence[int], w: Words) -> str:
    """That the run learns its clips by heart, since when, and the checkpoint to take of those there are; empty where
    it does not.
    """
    found = overfitting(snapshot.steps, snapshot.held_out)
    if found is None:
        return ""
    line = w("train.overfit", percent=w.number(100 * (found.rise - 1), 0), step=found.step)
    if not checkpoints:
        return line
    nearest = min(checkpoints, key=lambda step: abs(step - found.step))
    key = "train.overfit_take" if nearest == found.step else "train.overfit_near"
    return f"{line} {w(key, step=nearest)}"


def run_facts(snapshot: RunSnapshot, w: Words) -> list[tuple[str, str]]:
    """(name, value) of what the last steps say, as much of it as is known."""
    if not snapshot.steps:
        return []
    last = snapshot.steps[-1]
    rows = [
        (w("train.fact_loss"), figure(fmean(s.loss for s in snapshot.steps[-RECENT_STEPS:]), w)),
        (w("train.learning_rate"), figure(last.learning_rate, w)),
        (w("train.fact_norm"), figure(last.grad_norm, w)),
    ]
    if snapshot.seconds_per_step is not None:
        rows.append((w("train.fact_pace"), w.duration(snapshot.seconds_per_step)))
    if last.peak_bytes is not None:
        of = f" / {gib(snapshot.fit.capacity_bytes, w)}" if snapshot.fit else ""
        rows.append((w("train.fact_memory"), f"{gib(last.peak_bytes, w)}{of} GiB"))
    if snapshot.seconds_left is not None:
        rows.append((w("train.fact_left"), w.duration(snapshot.seconds_left)))
    return rows


def sample_line(sample: SampleSaved, w: Words) -> str:
    """`step 100 · start frame 34 dB · moves 12 · differs from base 3.1`, as much of it as is known."""
    parts = [w("train.sample_step", step=sample.step)]
    if sample.start_psnr is not None:
        parts.append(w("train.sample_start", psnr=w.number(sample.start_psnr, 0)))
    if sample.is_frozen:
        parts.append(w("train.sample_frozen"))
    elif sample.motion is not None:
        parts.append(w("train.sample_motion", motion=w.number(sample.motion, 0 if sample.motion >= 10 else 1)))
    if sample.drift is not None:
        is_same = sample.drift < NO_DRIFT
        drift = w("train.sample_same") if is_same else w("train.sample_drift", drift=w.number(sample.drift, 1))
        parts.append(drift)
    return " · ".join(parts)


def clip_losses(snapshot: RunSnapshot) -> list[ClipLoss]:
    """Every clip that was trained on, the one that is learnt least first."""
    losses: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=VISITS))
    visits: defaultdict[str, int] = defaultdict(int)
    for step in snapshot.steps:
        for clip, loss in zip(step.clips, step.clip_losses, strict=False):
            losses[clip].append(loss)
            visits[clip] += 1
    found = [ClipLoss(clip, fmean(last), visits[clip]) for clip, last in losses.items()]
    return sorted(found, key=lambda clip: -clip.loss)


def figure(value: float, w: Words) -> str:
    """Three digits that count: `0.0812`, `5.23e-5`, `1e-4`."""
    text = f"{value:.3g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.2e}"
    head, e, power = text.partition("e")
    head = head.rstrip("0").rstrip(".") if "." in head else head
    return head.replace(".", w("decimal")) + (f"e{int(power)}" if e else "")
