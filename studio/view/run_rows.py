"""Runs in a table and in lines, the same in the app and in the terminal."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from studio.core.runlog import RunState
from studio.core.train.runs import CheckpointState, Difference, RunFigures
from studio.view.words import Words

STATE_ICONS: dict[RunState, str] = {
    RunState.NEW: "…",
    RunState.CACHING: "…",
    RunState.MEASURING: "…",
    RunState.RUNNING: "▶",
    RunState.PAUSED: "‖",
    RunState.STOPPED: "■",
    RunState.FINISHED: "✓",
    RunState.FAILED: "✕",
    RunState.INTERRUPTED: "!",
}
"""Beside the words, never instead of them."""

Tone = Literal["ready", "note", "mend", "unreadable", "left_out"]
_TONES: dict[RunState, Tone] = {
    RunState.FINISHED: "ready",
    RunState.FAILED: "unreadable",
    RunState.INTERRUPTED: "mend",
    RunState.STOPPED: "left_out",
}
_NOTHING = "–"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRow:
    """A run in words."""

    name: str
    icon: str
    tone: Tone
    """Its colour, one of the verdicts'."""
    state: str
    began: str
    steps: str
    loss: str
    held_out: str
    """Of the base model's, in percent."""
    time: str
    size: str


def run_row(figures: RunFigures, w: Words) -> RunRow:
    """The row of a run; a dash stands for what is not known."""
    share = figures.held_out_of_base
    return RunRow(
        name=figures.name,
        icon=STATE_ICONS[figures.state],
        tone=_TONES.get(figures.state, "note"),
        state=w(f"state.{figures.state.value}"),
        began=moment(figures.began),
        steps=_steps(figures, w),
        loss=_NOTHING if figures.loss is None else w.number(figures.loss, 4),
        held_out=_NOTHING if share is None else f"{w.number(100 * share, 1)} %",
        time=w.duration(figures.seconds) if figures.seconds else _NOTHING,
        size=size_text(figures.num_bytes, w),
    )


def _steps(figures: RunFigures, w: Words) -> str:
    if figures.num_steps:
        return w("runs.of", done=figures.step, total=figures.num_steps)
    return str(figures.step) if figures.step else _NOTHING


def moment(time: float) -> str:
    """`2026-11-28 11:24`, by the clock of this machine."""
    return f"{datetime.fromtimestamp(time):%Y-%m-%d %H:%M}"


def size_text(num_bytes: float, w: Words) -> str:
    """`3.4 MB` or `1.2 GB`."""
    return f"{w.number(num_bytes / 1e9, 1)} GB" if num_bytes >= 1e9 else f"{w.number(num_bytes / 1e6, 1)} MB"


def checkpoint_line(checkpoint: CheckpointState, w: Words) -> str:
    """`step 100 · whole · 3.4 MB`."""
    state = w("runs.damaged") if checkpoint.damage else w("runs.whole")
    return f"{w('train.sample_step', step=checkpoint.step)} · {state} · {size_text(checkpoint.num_bytes, w)}"


def value_text(value: Any) -> str:
    """A setting as JSON, of a path only its end where it is long; a dash for what is not set."""
    if value is None or value == "":
        return _NOTHING
    if isinstance(value, str):
        return f"…/{Path(value).name}" if len(value) > 60 and Path(value).is_absolute() else value
    return json.dumps(value, ensure_ascii=False)


def difference_rows(found: tuple[Difference, ...]) -> list[tuple[str, str, str]]:
    """Key and both values of each difference."""
    return [(one.key, value_text(one.first), value_text(one.second)) for one in found]
