"""HTML of a run as it is watched: where it stands, its chart, its figures, its clips."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from html import escape

from studio.core.errors import StudioError
from studio.core.runlog import RunSnapshot, RunState
from studio.core.train.requests import Request
from studio.ui.markup import bar, failure, note, warning
from studio.view.plots import PAGE, figure_svg
from studio.view.progress import attention_line, fit_line, progress_line, share
from studio.view.run_figures import ChartView, draw_details, draw_run, shown_range
from studio.view.run_lines import VISITS, clip_losses, figure, held_out_line, overfit_line, run_facts
from studio.view.words import Words

NARROW, WIDE = 4.0, 7.2
"""Inches that a figure is drawn for, on a phone and elsewhere; the page scales it."""
MOST_CLIPS = 10
_ASKED = (Request.STOP, Request.PAUSE, Request.SAVE, Request.SAMPLE)


def run_status(
    name: str,
    snapshot: RunSnapshot,
    w: Words,
    *,
    asked: Collection[Request] = (),
    checkpoints: Sequence[int] = (),
    is_ours: bool = True,
    is_of_other_data: bool = False,
) -> str:
    """State, progress, what it was asked for, what it has learnt, and, if it failed, why and what to do."""
    state = snapshot.state
    far = progress_line(snapshot, w)
    if state is RunState.RUNNING and snapshot.num_steps:
        # The rest is in the line of figures.
        far = w("progress.step", step=snapshot.step, total=snapshot.num_steps)
    parts = [
        f"<div class='run-status state-{state.value}' data-state='{state.value}' data-step='{snapshot.step}'>"
        f"<p class='run-state'><b>{escape(w(f'state.{state.value}'))}</b> <span>{escape(far)}</span></p>"
        f"{bar(share(snapshot))}"
    ]
    if state.is_live:
        pending = [w(f"train.asked_{request}") for request in _ASKED if request in asked]
        if state is RunState.PAUSED:
            pending = [w("train.asked_sample_paused") if Request.SAMPLE in asked else w("train.paused")]
        if pending:
            parts.append(f"<p class='pending' role='status'>{escape(' '.join(pending))}</p>")
    if line := held_out_line(snapshot, w):
        parts.append(f"<p class='held-out'>{escape(line)}</p>")
    if line := overfit_line(snapshot, checkpoints, w):
        parts.append(warning(line, None, w))
    if snapshot.failure:
        parts.append(failure(StudioError(snapshot.failure.message, snapshot.failure.remedy), w))
    if state is RunState.INTERRUPTED:
        parts.append(note(w("progress.interrupted")))
    if is_of_other_data:
        parts.append(note(w("train.other_data")))
    if snapshot.fit and not snapshot.fit.fits and state.is_live:
        parts.append(warning(w("fit.warning"), snapshot.fit.change, w))
    about = [f"{w('train.run')} {name}.", attention_line(snapshot, w), fit_line(snapshot, w)]
    about += snapshot.started.notices if snapshot.started else ()
    if state.is_live and not is_ours:
        about.append(w("train.elsewhere"))
    parts += [note(line) for line in about if line]
    return "".join(parts) + "</div>"


def pulse(snapshot: RunSnapshot | None, w: Words) -> str:
    """A strip that every room shows while a run lives; nothing otherwise."""
    if snapshot is None or not snapshot.state.is_live:
        return ""
    return (
        f"<div class='pulse' role='status'><b>{escape(w(f'state.{snapshot.state.value}'))}</b> "
        f"<span>{escape(progress_line(snapshot, w))}</span>{bar(share(snapshot))}</div>"
    )


def facts_line(snapshot: RunSnapshot, w: Words) -> str:
    """What the last steps say, name over figure."""
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in run_facts(snapshot, w)
    )
    return f"<dl class='run-facts'>{cells}</dl>" if cells else ""


def chart(snapshot: RunSnapshot, view: ChartView, w: Words, *, is_narrow: bool = False) -> str:
    """The curve of a run, for chart.js: the range of its x axis is in `data-range`, its number of steps in
    `data-points`, and its marks are buttons.
    """
    size = (NARROW, 3.2) if is_narrow else (WIDE, 3.4)
    svg = figure_svg(draw_run(snapshot, w, view=view, palette=PAGE, size=size), w("train.loss"))
    low, high = shown_range(snapshot, view)

    def button(match: re.Match[str]) -> str:
        label = escape(w(f"train.marker_{match[1]}", step=match[2]))
        return (
            f'<g id="marker-{match[1]}-{match[2]}" class="marker" tabindex="0" role="button" aria-label="{label}">'
            f"<title>{label}</title>"
        )

    # What is inside of a picture cannot be pressed.
    svg = re.sub(r'<g id="marker-(checkpoint|sample)-(\d+)">', button, svg.replace('role="img"', 'role="group"', 1))
    return (
        f"<div class='chart' data-points='{len(snapshot.losses)}' data-axis='{view.axis.value}' "
        f"data-range='{low!r},{high!r}'>{svg}</div>"
    )


def details(snapshot: RunSnapshot, view: ChartView, w: Words, *, is_narrow: bool = False) -> str:
    """The other curves of a run."""
    drawn = draw_details(snapshot, w, view=view, palette=PAGE, size=(NARROW if is_narrow else WIDE, 1.5))
    return figure_svg(drawn, w("train.more"))


def clip_table(snapshot: RunSnapshot, w: Words) -> str:
    """The clips that are learnt least; a press on a name chooses it."""
    clips = clip_losses(snapshot)[:MOST_CLIPS]
    if not clips:
        return note(w("train.clips_none"))
    heads = "".join(f"<th scope='col'>{escape(w(f'train.clips_{name}'))}</th>" for name in ("clip", "loss", "visits"))
    rows = "".join(
        f"<tr><td><button type='button' data-clip='{escape(clip.clip)}'>{escape(clip.clip)}</button></td>"
        f"<td>{escape(figure(clip.loss, w))}</td><td>{clip.visits}</td></tr>"
        for clip in clips
    )
    return f"<table class='fit clip-losses'><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>" + note(
        w("train.clips_note", visits=VISITS)
    )
