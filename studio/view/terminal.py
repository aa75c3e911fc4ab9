"""What a terminal shows: the report of a check, the plan of mends, and bars for what takes long."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from studio.core.events import (
    CacheProgress,
    CheckpointSaved,
    DenoiseStep,
    FitPredicted,
    FitProgress,
    HeldOutLoss,
    RunContinued,
    RunFailed,
    RunFinished,
    RunPaused,
    RunStarted,
    RunStopped,
    SampleDone,
    SampleEvent,
    SampleSaved,
    StepDone,
    TrainEvent,
)
from studio.core.runlog import RunFolder
from studio.core.train.checkpoint_files import list_checkpoints
from studio.core.types import DatasetReport, Issue, Pair, Severity
from studio.view.plan import plan_rows
from studio.view.progress import fit_rows, fit_verdict, prediction, reality
from studio.view.run_lines import overfit_line, sample_line
from studio.view.verdicts import summary_parts, verdict_of
from studio.view.words import Words, words

if TYPE_CHECKING:
    from studio.core.data.mend.types import MendKind, MendPlan, PlannedClip
    from studio.core.train.fit import Fit
    from studio.core.train.preflight import Preflight

MEND_OPTIONS = {
    "start_frames": "--start-frames",
    "replace_start_frames": "--replace-start-frames",
    "split_scenes": "--split-scenes",
    "frame_rate": "--frame-rate",
    "trim": "--trim",
    "crop": "--crop",
    "pad": "--pad",
    "captions": "--captions TEMPLATE",
    "config": "--config-only",
}
"""Options of `mend`, by what they mend."""
UNITS = {"latents": "clip", "measuring": "size", "training": "step"}
"""What the bar of a run counts, by its label."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters but tabs and line breaks; captions may hold them."""
SIGNS = {Severity.ERROR: "x", Severity.WARNING: "!", Severity.NOTICE: "i"}


def write(line: str = "") -> None:
    """A line to standard output, at once; what would give orders to a terminal is left out, and bytes of a name that
    are no UTF-8 are written out.
    """
    sys.stdout.write(_plain(line) + "\n")
    sys.stdout.flush()


def _plain(line: str) -> str:
    return _CONTROL.sub("", line).encode("utf-8", "backslashreplace").decode()


def print_report(report: DatasetReport) -> None:
    """The verdict on every clip, then what belongs to no clip, then the sum."""
    w = words("en")
    width = max((len(pair.name) for pair in report.pairs), default=0)
    for pair in report.pairs:
        verdict = verdict_of(pair, w)
        caption = pair.captions[0] if pair.captions else ""
        write(f"{verdict.icon} {pair.name:<{width}}  {str(pair.bucket or '-'):<13}  {verdict.label:<20}  {caption}")
        for issue in verdict.issues:
            _print_issue(issue)
    for issue in report.issues:
        _print_issue(issue)
    print_sum(report)


def print_sum(report: DatasetReport) -> None:
    """How many clips are ready, to mend and unreadable."""
    write(", ".join(text for _, text in summary_parts(report, words("en"))))


def print_problems(report: DatasetReport) -> None:
    """Errors and warnings alone, in a line each."""
    for issue in report.all_issues:
        if issue.severity is not Severity.NOTICE:
            _print_issue(issue)


def _print_issue(issue: Issue) -> None:
    write(f"    {SIGNS[issue.severity]} {issue.message} {issue.remedy}".rstrip())


def print_fit(fit: Fit) -> None:
    """The table of a fit, its verdict, and the change that makes it fit."""
    w = words("en")
    rows = fit_rows(fit, w)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        numbers = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        write("  ".join((row[0].ljust(widths[0]), *numbers)))
    write(f"{fit_verdict(fit, w)} {fit.change or ''}".rstrip())


def print_preflight(plan: Preflight) -> None:
    """What a run takes and does, in two columns, and what is wrong with its settings."""
    w = words("en")
    rows = plan_rows(plan, w)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        write(f"{name:<{width}}  {value}")
    if plan.attention:
        write(f"{'':<{width}}  {plan.attention.reason}")
    for issue in plan.issues:
        _print_issue(issue)


def print_offer(offered: Mapping[MendKind, Sequence[Pair]]) -> None:
    """What can be mended, with the option for it and the number of clips that it would change."""
    w = words("en")
    width = max(map(len, MEND_OPTIONS.values()))
    if not offered:
        write(w("mend.none_offered"))
    for kind, pairs in offered.items():
        write(f"{MEND_OPTIONS[kind]:<{width}}  {len(pairs):>5}  {w(f'mend.kind_{kind.value}')}")


def print_plan(plan: MendPlan) -> None:
    """A row for each clip that changes, what is left out and why, and how much it all takes."""
    w = words("en")
    changed = [clip for clip in plan.clips if clip.changes]
    columns = ("clip", "frames", "rate", "size", "start_frame", "caption")
    _print_table([tuple(w(f"mend.{column}") for column in columns), *(_plan_row(clip, w) for clip in changed)])
    if plan.left_out:
        write(w.count("mend.left_out", len(plan.left_out)))
    for pair, reason in plan.left_out:
        write(f"    {pair.name}: {reason}")
    parts = [w.count("mend.changed", len(changed))] if changed else []
    parts += [w.count("mend.copied", len(plan.clips) - len(changed))] if len(changed) < len(plan.clips) else []
    parts += [w("mend.bytes", megabytes=w.number(plan.num_bytes / 1e6, 1)) if plan.clips else w("mend.config_only")]
    write(", ".join(parts))


def _plan_row(planned: PlannedClip, w: Words) -> tuple[str, ...]:
    pair, start_frame = planned.pair, planned.start_frame
    image = w("mend.frame", n=start_frame + 1) if isinstance(start_frame, int) else w("dataset.no_start_frame")
    num_frames = pair.clip.num_frames if pair.clip else planned.num_frames
    return (
        _change(pair.name, planned.name),
        _change(str(num_frames), str(planned.new_num_frames)),
        _change(f"{planned.fps:.4g}", f"{planned.new_fps:.4g}"),
        _change(*("{}x{}".format(*size) for size in (planned.size, planned.new_size))),
        start_frame.name if isinstance(start_frame, Path) else image,
        " / ".join(planned.captions) or w("dataset.no_caption"),
    )


def _change(old: str, new: str) -> str:
    return new if old == new else f"{old} -> {new}"


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Columns as wide as their widest cell, the last one aside."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        write("  ".join((*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1])))


class CountBar:
    """Shows how many of a known number are done, on standard error."""

    def __init__(self, label: str, unit: str, *, only_for_people: bool = False) -> None:
        """`only_for_people`: nothing is shown where standard error is no terminal."""
        self._bar = tqdm(desc=label, unit=unit, disable=None if only_for_people else False)

    def show(self, done: int, total: int) -> None:
        """Moves the bar."""
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()


class TrainBar:
    """Shows the events of a run as they come."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def show(self, event: TrainEvent) -> None:
        """Prints the event, or moves the bar."""
        match event:
            case RunStarted():
                write(
                    f"{event.num_pairs} clips, {event.num_steps} steps on {event.device} in {event.dtype}; "
                    f"{event.attention} attention ({event.attention_reason})"
                )
                for notice in event.notices:
                    write(notice)
                if event.from_step:
                    write(f"The run goes on from the checkpoint of step {event.from_step}.")
            case CacheProgress():
                self._move("latents", event.done, event.total)
            case FitProgress():
                self._move("measuring", event.done, event.total)
            case FitPredicted():
                self._close()
                write(prediction(event, words("en")))
                if not event.fits:
                    write(f"{words('en')('fit.warning')} {event.change or ''}".rstrip())
            case StepDone():
                self._move("training", event.step, event.num_steps, loss=f"{event.loss:.4f}")
            case HeldOutLoss():
                self._note(f"held-out loss after step {event.step}: {_held_out(event)}")
            case SampleSaved():
                self._note(f"sample after {sample_line(event, words('en'))}: {event.path}")
            case CheckpointSaved():
                self._note(f"checkpoint after step {event.step}: {event.path}")
            case RunPaused():
                self._note(f"paused after step {event.step}; the device is free")
            case RunContinued():
                self._note(f"continued after step {event.step}")
            case RunFinished() | RunStopped():
                self._close()
                write(f"LoRA after step {event.step}: {event.lora}")
                if actual := reality(event.peak_bytes, event.seconds_per_step, words("en")):
                    write(actual)
            case RunFailed():
                self._close()
                write(f"Failed after step {event.step}: {event.message} {event.remedy}")

    def _move(self, label: str, done: int, total: int, **figures: str) -> None:
        if self._bar is None or self._bar.desc != label:
            self._close()
            self._bar = tqdm(desc=label, unit=UNITS[label])
        self._bar.total = total
        self._bar.set_postfix(figures, refresh=False)
        self._bar.update(done - self._bar.n)

    def _note(self, line: str) -> None:
        tqdm.write(_plain(line)) if self._bar is not None else write(line)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _held_out(look: HeldOutLoss) -> str:
    """`0.1234, 87 % of the base model's`."""
    share = f", {look.loss / look.base_loss:.0%} of the base model's" if look.base_loss else ""
    return f"{look.loss:.4f}{share}"


def print_hint(run: RunFolder) -> None:
    """Says when a run has learnt its clips by heart, and which checkpoint is the better one."""
    steps = [int(path.name[5:]) for path in list_checkpoints(run.path / "checkpoints")]
    if line := overfit_line(run.snapshot(), steps, words("en")):
        write(line)


class SampleBar:
    """Shows the events of a sample as they come."""

    def __init__(self, label: str = "sampling", *, is_silent: bool = False) -> None:
        """A silent one is that of a process beside another that speaks."""
        self._label = label
        self._is_silent = is_silent
        self._bar: tqdm | None = None

    def show(self, event: SampleEvent) -> None:
        """Moves the bar, or says where the video is."""
        if self._is_silent:
            return
        if isinstance(event, DenoiseStep):
            if self._bar is None:
                self._bar = tqdm(total=event.num_steps, desc=self._label, unit="step")
            self._bar.update(event.step - self._bar.n)
        if not isinstance(event, SampleDone):
            return
        if self._bar is not None:
            self._bar.close()
        write(f"{event.path} in {event.seconds:.1f} s, {event.attention} attention ({event.attention_reason})")
        if not event.is_batched:
            write(words("en")("sample.done_one_by_one"))
