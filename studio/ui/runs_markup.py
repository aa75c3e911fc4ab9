"""HTML of the room Runs. Names, captions and settings are escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from studio.core.config import RunConfig
from studio.core.errors import StudioError
from studio.core.runlog import RunSnapshot, RunState
from studio.core.train.hub import Upload
from studio.core.train.runs import CheckpointState, Difference, RunFigures, settings_of
from studio.ui.markup import core_text, facts, failure, note
from studio.view.plots import PAGE, figure_svg
from studio.view.progress import progress_line
from studio.view.run_figures import draw_overlay, draw_run
from studio.view.run_rows import RunRow, difference_rows, moment, run_row, size_text, value_text
from studio.view.sheets import Thumbnails
from studio.view.words import Words

_CURVE, _OVERLAY = (6.0, 3.2), (6.0, 3.4)
"""Inches."""


def summary(num_runs: int, folder: Path, w: Words) -> str:
    """How many runs there are, and where."""
    if not num_runs:
        return note(w("runs.head"))
    count = escape(w.count("runs.count", num_runs))
    return f"<div class='summary' role='status'><p>{count}</p><p class='note path'>{escape(str(folder))}</p></div>"


def run_table(
    runs: Sequence[RunFigures], chosen: str | None, ticked: Sequence[str], thumbnails: Thumbnails, w: Words
) -> str:
    """Runs as rows to choose from, each with a box to tick for a comparison."""
    columns = ("run", "steps", "loss", "held_out", "time", "size")
    head = "".join(f"<span>{escape(w(f'runs.{column}'))}</span>" for column in columns)
    rows = "".join(_row(one, one.name == chosen, one.name in ticked, thumbnails, w) for one in runs)
    return (
        f"<div class='runs' role='group' aria-label='{escape(w('tab.runs'))}'>"
        f"<div class='runs-head' aria-hidden='true'><span></span><div class='run-cells'><span></span>{head}</div></div>"
        f"{rows}</div>"
    )


def _row(figures: RunFigures, is_chosen: bool, is_ticked: bool, thumbnails: Thumbnails, w: Words) -> str:
    row, name = run_row(figures, w), escape(figures.name)
    uri = thumbnails.video(figures.sample) if figures.sample else None
    picture = f"<img src='{uri}' alt=''>" if uri else ""
    cells = "".join(
        f"<span class='number' data-name='{escape(w(f'runs.{column}'))}'>{escape(getattr(row, column))}</span>"
        for column in ("steps", "loss", "held_out", "time", "size")
    )
    label = escape(w("runs.tick", name=figures.name))
    return (
        f"<div class='run' data-state='{figures.state.value}'><label class='tick'>"
        f"<input type='checkbox' data-tick='{name}' aria-label='{label}'{' checked' * is_ticked}></label>"
        f"<button type='button' class='run-cells' data-run='{name}' aria-pressed='{str(is_chosen).lower()}'>"
        f"<span class='picture{'' if uri else ' missing'}'>{picture}</span>"
        f"<span class='words'>{state_badge(row)}<b>{escape(row.began)}</b>"
        f"<span class='caption'>{name}</span></span>{cells}</button></div>"
    )


def state_badge(row: RunRow) -> str:
    """Icon and words of a state."""
    return (
        f"<span class='badge kind-{row.tone}'><span class='icon' aria-hidden='true'>{row.icon}</span>"
        f"{escape(row.state)}</span>"
    )


def detail_head(figures: RunFigures, snapshot: RunSnapshot, w: Words) -> str:
    """Which run it is, how far it is, and why it failed."""
    row = run_row(figures, w)
    rows = [
        (w("runs.steps"), progress_line(snapshot, w) or row.steps),
        (w("runs.loss"), row.loss),
        *([(w("runs.held_out"), row.held_out)] if figures.held_out is not None else []),
        (w("runs.time"), row.time),
        (w("runs.size"), row.size),
    ]
    parts = [
        f"<div class='run-head'><h3>{escape(row.began)}</h3><p>{state_badge(row)} "
        f"<span class='note path'>{escape(figures.name)}</span></p></div>",
        facts(rows),
    ]
    if snapshot.failure:
        parts.append(failure(StudioError(snapshot.failure.message, snapshot.failure.remedy), w))
    if snapshot.state is RunState.INTERRUPTED:
        parts.append(note(w("progress.interrupted")))
    return f"<div class='detail'>{''.join(parts)}</div>"


def curve(snapshot: RunSnapshot, w: Words) -> str:
    """The curve of a run; nothing before its first step."""
    if not snapshot.losses:
        return note(w("runs.no_curve"))
    return figure_svg(draw_run(snapshot, w, palette=PAGE, size=_CURVE), w("train.loss"))


def checkpoints(found: Sequence[CheckpointState], w: Words) -> str:
    """How many checkpoints are whole, and what is wrong with the others."""
    if not found:
        return note(w("runs.no_checkpoints"))
    damaged = [one for one in found if one.damage]
    if not damaged:
        return note(w.count("runs.all_whole", len(found)))
    lines = "".join(f"<li {core_text(w)}>{escape(one.damage)}</li>" for one in damaged)
    count = escape(w("runs.some_damaged", damaged=len(damaged), n=len(found)))
    icon = "<span class='icon kind-mend' aria-hidden='true'>!</span>"
    return f"<div class='warning' role='status'><p>{icon}{count}</p><ul class='damages'>{lines}</ul></div>"


def settings(config: RunConfig, w: Words) -> str:
    """Every setting of a run that is set, by its key."""
    shown = {key: value for key, value in settings_of(config).items() if value not in (None, "", [])}
    body = "".join(f"<tr><td>{escape(k)}</td><td>{escape(value_text(v))}</td></tr>" for k, v in shown.items())
    head = "".join(f"<th scope='col'>{escape(w(f'runs.{column}'))}</th>" for column in ("key", "value"))
    return (
        f"<div class='planned settings-of-run'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def upload(last: Upload | None, w: Words) -> str:
    """What became of the last upload of a run; nothing before the first."""
    if last is None:
        return ""
    when = escape(moment(last.time))
    if not last.url:
        return f"<p class='note'>{when}</p>" + failure(StudioError(last.message, last.remedy), w)
    link = escape(last.name)
    # The file that tells it may come from elsewhere, with its run.
    if last.url.startswith(("https://", "http://")):
        link = f"<a href='{escape(last.url)}' target='_blank' rel='noopener noreferrer'>{link}</a>"
    who = escape(w("runs.hub_private" if last.is_private else "runs.hub_public"))
    return f"<p class='note' role='status'>{when} · {link} · {who}</p>"


def doom(figures: RunFigures, num_bytes: int, w: Words) -> str:
    """What will be deleted."""
    text = w("runs.delete_what", name=figures.name, began=moment(figures.began), size=size_text(num_bytes, w))
    return f"<p class='doom'>{escape(text)}</p>"


def overlay(runs: Sequence[tuple[str, RunSnapshot]], w: Words) -> str:
    """The curves of several runs over one another."""
    with_steps = [(name, snapshot) for name, snapshot in runs if snapshot.losses]
    if not with_steps:
        return note(w("runs.no_curve"))
    return figure_svg(draw_overlay(with_steps, w, palette=PAGE, size=_OVERLAY), w("runs.overlay"))


def difference_table(found: tuple[Difference, ...], names: tuple[str, str], w: Words) -> str:
    """The settings in which two runs differ."""
    title = f"<h3 class='heading'>{escape(w('runs.differences'))}</h3>"
    if not found:
        return title + note(w("runs.no_differences"))
    head = "".join(f"<th scope='col'>{escape(text)}</th>" for text in (w("runs.key"), *names))
    body = "".join(
        f"<tr><th scope='row'>{escape(key)}</th><td data-name='{escape(names[0])}'>{escape(first)}</td>"
        f"<td data-name='{escape(names[1])}'>{escape(second)}</td></tr>"
        for key, first, second in difference_rows(found)
    )
    return (
        f"{title}<div class='planned differences'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def compared_heads(runs: Sequence[RunFigures], w: Words) -> str:
    """Both runs, side by side."""
    cells = "".join(
        f"<div><p>{state_badge(row)} <b>{escape(row.began)}</b></p><p class='note path'>{escape(row.name)}</p>"
        f"<p class='note'>{escape(' · '.join((row.steps, row.loss, row.held_out)))}</p></div>"
        for row in (run_row(figures, w) for figures in runs)
    )
    return f"<div class='compared'>{cells}</div>"
