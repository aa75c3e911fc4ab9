"""Figures of runs: the loss of one, its details on the same axis, and several over one another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation
from matplotlib.typing import LineStyleType

from studio.core.events import HeldOutLoss
from studio.core.runlog import RunSnapshot
from studio.core.train.overfit import overfitting
from studio.view.curves import (
    WHOLE,
    ChartView,
    Place,
    can_show,
    draw_noisy,
    places_of,
    series_of,
    shown_range,
    thin_within,
)
from studio.view.frame import MARK_ROW, NARROW, TEXT, Axis, fit_y, framed, name_y, set_x
from studio.view.plots import LIGHT, Palette, dress
from studio.view.series import seen, smoothed, thin, with_breaks
from studio.view.words import Words

_MARK_GAP = 12.0
"""Points that lie between two marks of a row at least."""
_MUCH = 30
"""A series whose largest value is this many times its smallest is drawn on a log scale."""
_STYLES: tuple[LineStyleType, ...] = ("solid", (0, (5, 1.6)), (0, (1.4, 1.4)), (0, (6, 1.6, 1.4, 1.6)))
_POINTS = ("o", "s", "^", "D")


def draw_run(
    snapshot: RunSnapshot,
    w: Words,
    *,
    view: ChartView = WHOLE,
    palette: Palette = LIGHT,
    size: tuple[float, float] = (7.2, 3.4),
) -> Figure:
    """The loss of a run: each step faint, smoothed strong, held-out loss with points, checkpoints and samples below.

    `size` is in inches. Losses that are not finite are left out, on a log scale those that are not positive too. Each
    mark is an artist of its own with the id `marker-checkpoint-<step>` or `marker-sample-<step>`; the ground of the
    axes is `plot-area`. Marks that would lie on one another are left out, the earlier ones first.
    """
    low, high = shown_range(snapshot, view)
    place = places_of(snapshot, view.axis)
    marks = [
        (name, glyph, _apart(place(steps), steps, low, high, size[0]))
        for name, glyph, steps in (
            ("checkpoint", "D", sorted(set(snapshot.checkpoints))),
            ("sample", "^", sorted({sample.step for sample in snapshot.samples})),
        )
        if steps
    ]
    looks = [look for look in snapshot.held_out if can_show(look.loss, view.log)]
    learnt_by_heart = overfitting(snapshot.steps, snapshot.held_out)
    hint = next((look for look in looks if learnt_by_heart and look.step == learnt_by_heart.step), None)
    hint = hint if hint and low <= place([hint.step])[0] <= high else None

    handles = _legend_of_run(bool(snapshot.losses), looks, [(name, glyph) for name, glyph, _ in marks], w, palette)
    figure, axes = framed(palette, size, handles, num_mark_rows=len(marks), has_hint=hint is not None)
    axes.patch.set_gid("plot-area")
    name_y(axes, w("train.axis_loss"), palette)
    shown = draw_noisy(axes, *series_of(place, snapshot.losses, log=view.log), low, high, palette.accent)
    if looks:
        shown += _draw_held_out(axes, looks, place, low, high, palette)
        base = looks[-1].base_loss
        if can_show(base, view.log):
            axes.axhline(base, color=palette.second, linewidth=1, linestyle=(0, (5, 3)), zorder=1.5)
            shown += [] if view.span else [base]
    fit_y(axes, shown, w, log=view.log, from_zero=view.span is None)
    set_x(axes, view.axis, low, high, w, palette, pad=4 + MARK_ROW * len(marks), is_narrow=size[0] < NARROW)
    for row, (name, glyph, found) in enumerate(marks):
        _draw_marks(figure, axes, found, glyph, row, f"marker-{name}", palette.muted)
    if hint:
        _draw_hint(axes, float(place([hint.step])[0]), hint, w, palette)
    return figure


def draw_details(
    snapshot: RunSnapshot,
    w: Words,
    *,
    view: ChartView = WHOLE,
    palette: Palette = LIGHT,
    size: tuple[float, float] = (7.2, 1.5),
) -> Figure:
    """Small figures on the x axis of `draw_run`: held-out loss by noise level, learning rate, gradient, time, memory.

    `size` is the width of all and the height of one row, inches: a wide figure has two columns. What is not known of
    the run is left out, and without any of it the figure is empty. A series that spans much is on a log scale.
    """
    panels = _panels(snapshot, w, view.axis)
    width, row_height = size
    is_narrow = width < NARROW
    num_columns = 1 if is_narrow else 2
    wide = [panel for panel in panels if panel.is_wide]
    small = [panel for panel in panels if not panel.is_wide]
    num_rows = len(wide) + math.ceil(len(small) / num_columns)
    legend_height, foot = 0.24, 0.22
    height = num_rows * row_height + len(wide) * legend_height + foot
    figure = Figure(figsize=(width, height))
    figure.set_facecolor(palette.paper or "none")
    low, high = shown_range(snapshot, view)
    top = height
    cells = [(panel, 0, width) for panel in wide]
    cells += [(panel, index % num_columns, width / num_columns) for index, panel in enumerate(small)]
    for index, (panel, column, cell_width) in enumerate(cells):
        is_last_of_column = index >= len(cells) - num_columns or index == len(cells) - 1
        cell_height = row_height + (legend_height if panel.is_wide else 0)
        head = 0.3 + (legend_height if panel.is_wide else 0)
        box = (column * cell_width + 0.62, top - cell_height + 0.28, cell_width - 0.9, cell_height - 0.28 - head)
        axes = figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
        _draw_panel(axes, panel, low, high, w, palette, is_narrow)
        set_x(axes, view.axis, low, high, w, palette, is_narrow=cell_width < NARROW, has_label=is_last_of_column)
        if column == num_columns - 1 or panel.is_wide:
            top -= cell_height
    return figure


def draw_overlay(
    runs: Sequence[tuple[str, RunSnapshot]],
    w: Words,
    *,
    view: ChartView = WHOLE,
    palette: Palette = LIGHT,
    size: tuple[float, float] = (7.2, 3.6),
) -> Figure:
    """The smoothed losses of several runs, (name, run) each, and their held-out losses as points on a thin line.

    Runs differ in colour, dashes and points; the x axis reaches to the longest.
    """
    ranges = [shown_range(run, view) for _, run in runs] or [(0.0, 1.0)]
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    colors = (palette.accent, palette.second, palette.warn, palette.ink)
    looks_of = [[look for look in run.held_out if can_show(look.loss, view.log)] for _, run in runs]
    styles: list[tuple[str, LineStyleType, str]] = [
        (colors[i % 4], _STYLES[(i + i // 4) % 4], _POINTS[(i + i // 4) % 4]) for i in range(len(runs))
    ]
    handles = [
        Line2D(
            [], [], color=color, linestyle=style, linewidth=2, marker=point if looks else "", markersize=5, label=name
        )
        for (name, _), looks, (color, style, point) in zip(runs, looks_of, styles, strict=True)
    ]
    figure, axes = framed(palette, size, handles)
    name_y(axes, w("chart.overlay_held") if any(looks_of) else w("chart.overlay"), palette)
    shown: list[float] = []
    for (_, run), looks, (color, style, point) in zip(runs, looks_of, styles, strict=True):
        place = places_of(run, view.axis)
        x, y = series_of(place, run.losses, log=view.log)
        if len(x):
            x, y = smoothed(x, y, low, high)
            axes.plot(*with_breaks(x, y, high - low), color=color, linestyle=style, linewidth=2)
            shown += seen(x, y, low, high)
        if looks:
            x, y = place([look.step for look in looks]), np.array([look.loss for look in looks])
            every = max(1, len(x) // 40)
            axes.plot(x, y, color=color, linewidth=0.8, marker=point, markersize=4.5, markevery=every)
            shown += seen(x, y, low, high)
    fit_y(axes, shown, w, log=view.log, from_zero=False)
    set_x(axes, view.axis, low, high, w, palette, is_narrow=size[0] < NARROW)
    return figure


def _draw_held_out(
    axes: Axes, looks: Sequence[HeldOutLoss], place: Place, low: float, high: float, palette: Palette
) -> list[float]:
    x, y = place([look.step for look in looks]), np.array([look.loss for look in looks])
    kept = thin(y)
    x, y = x[kept], y[kept]
    axes.plot(
        *with_breaks(x, y, high - low), color=palette.second, linewidth=1.6, marker="o", markersize=4.5,
        markevery=max(1, len(x) // 40), zorder=3,
    )  # fmt: skip
    ends = [float(np.interp(end, x, y)) for end in (low, high) if x[0] <= end <= x[-1]]
    return ends + seen(x, y, low, high)


def _apart(x: np.ndarray, steps: Sequence[int], low: float, high: float, width: float) -> list[tuple[float, int]]:
    """(x, step) of the marks that are seen and lie apart, the last ones first."""
    least = _MARK_GAP / 72 / max(1.0, width - 0.8) * (high - low)
    found: list[tuple[float, int]] = []
    for at, step in sorted(zip(x, steps, strict=True), reverse=True):
        if low <= at <= high and (not found or found[-1][0] - at >= least):
            found.append((float(at), step))
    return found


def _draw_marks(
    figure: Figure, axes: Axes, marks: Sequence[tuple[float, int]], glyph: str, row: int, name: str, color: str
) -> None:
    down = ScaledTranslation(0, -(3 + MARK_ROW * (row + 0.5)) / 72, figure.dpi_scale_trans)
    for x, step in marks:
        mark = Line2D([x], [0], marker=glyph, markersize=5, color=color, linestyle="none", clip_on=False)
        mark.set_transform(axes.get_xaxis_transform() + down)
        mark.set_gid(f"{name}-{step}")
        axes.add_artist(mark)


def _draw_hint(axes: Axes, x: float, look: HeldOutLoss, w: Words, palette: Palette) -> None:
    """A ring where the held-out loss was lowest, and above the picture since when it rises."""
    axes.axvline(x, color=palette.warn, linewidth=1, linestyle=(0, (2, 2)), zorder=2)
    axes.plot(x, look.loss, "o", markersize=10, markerfacecolor="none", color=palette.warn, markeredgewidth=1.8)
    low, high = axes.get_xlim()
    share = (x - low) / (high - low)
    axes.annotate(
        w("chart.overfit", step=look.step), (x, 1), xycoords=axes.get_xaxis_transform(), xytext=(0, 4),
        textcoords="offset points", ha="left" if share < 0.3 else "right" if share > 0.7 else "center", va="bottom",
        color=palette.warn, fontsize=TEXT, annotation_clip=False,
    )  # fmt: skip


def _legend_of_run(
    has_steps: bool, looks: Sequence[HeldOutLoss], marks: Sequence[tuple[str, str]], w: Words, palette: Palette
) -> list[Line2D]:
    handles = []
    if has_steps:
        handles.append(Line2D([], [], color=palette.accent, alpha=0.4, linewidth=1, label=w("train.raw")))
        handles.append(Line2D([], [], color=palette.accent, linewidth=2.2, label=w("train.smooth")))
    if looks:
        held = {"color": palette.second, "linewidth": 1.6}
        handles.append(Line2D([], [], marker="o", markersize=4.5, label=w("chart.held_out"), **held))
        handles.append(
            Line2D([], [], color=palette.second, linewidth=1, linestyle=(0, (5, 3)), label=w("chart.held_out_base"))
        )
    for name, glyph in marks:
        mark = Line2D([], [], marker=glyph, markersize=5, color=palette.muted, linestyle="none")
        mark.set_label(w(f"chart.{name}"))
        handles.append(mark)
    return handles


@dataclass(frozen=True, kw_only=True, slots=True)
class _Panel:
    title: str
    lines: tuple[tuple[str, np.ndarray, np.ndarray], ...]
    """(label, x, y); without a label where there is one line."""
    is_noisy: bool = False
    """Each point faint, smoothed strong."""
    may_log: bool = False
    is_wide: bool = False
    level: float | None = None
    """A value to compare with."""


def _panels(snapshot: RunSnapshot, w: Words, axis: Axis) -> list[_Panel]:
    """What is known of a run beside its loss."""
    place = places_of(snapshot, axis)
    panels = []
    looks = [look for look in snapshot.held_out if look.base_bands and min(look.base_bands) > 0]
    if looks:
        num_bands = len(looks[0].base_bands)
        at = place([look.step for look in looks])
        lines = tuple(
            (
                w("chart.band", low=round(100 * band / num_bands), high=round(100 * (band + 1) / num_bands)),
                at,
                np.array([look.bands[band] / look.base_bands[band] for look in looks]),
            )
            for band in range(num_bands)
        )
        panels.append(_Panel(title=w("chart.bands"), lines=lines, is_wide=True, level=1.0))
    steps = snapshot.steps
    rate = [(step.step, step.learning_rate) for step in steps]
    norm = [(step.step, step.grad_norm) for step in steps]
    pace = [(step.step, step.seconds) for step in steps]
    memory = [(step.step, step.peak_bytes / 2**30) for step in steps if step.peak_bytes is not None]
    for title, points, is_noisy, may_log in (
        (w("chart.learning_rate"), rate, False, False),
        (w("chart.grad_norm"), norm, True, True),
        (w("chart.seconds"), pace, True, True),
        (w("chart.memory"), memory, True, False),
    ):
        x, y = series_of(place, points)
        if len(x):
            panels.append(_Panel(title=title, lines=(("", x, y),), is_noisy=is_noisy, may_log=may_log))
    return panels


def _draw_panel(
    axes: Axes, panel: _Panel, low: float, high: float, w: Words, palette: Palette, is_narrow: bool
) -> None:
    dress(axes, palette)
    axes.tick_params(labelsize=TEXT)
    legend_room = 0.24 * 72 if panel.is_wide else 0
    axes.annotate(
        panel.title, (0, 1), xycoords="axes fraction", xytext=(-36 if is_narrow else 0, 6 + legend_room),
        textcoords="offset points", ha="left", va="bottom", color=palette.ink, fontsize=TEXT, annotation_clip=False,
    )  # fmt: skip
    shown: list[float] = []
    for index, (label, x, y) in enumerate(panel.lines):
        if panel.is_noisy:
            shown += draw_noisy(axes, x, y, low, high, palette.accent)
            continue
        x, y = thin_within(x, y, low, high)
        color = palette.second if panel.is_wide else palette.accent
        axes.plot(
            *with_breaks(x, y, high - low), color=color, linewidth=1.6,
            alpha=(index + 2) / (len(panel.lines) + 1), linestyle=_STYLES[index % 4], label=label,
            marker=_POINTS[index % 4] if len(x) <= 40 and label else "", markersize=3.5,
        )  # fmt: skip
        shown += seen(x, y, low, high)
    if panel.level is not None:
        axes.axhline(panel.level, color=palette.muted, linewidth=1, linestyle=(0, (5, 3)), zorder=1.5)
        shown.append(panel.level)
    is_log = panel.may_log and bool(shown) and min(shown) > 0 and max(shown) > _MUCH * min(shown)
    fit_y(axes, shown, w, log=is_log, from_zero=False)
    if panel.is_wide:
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=len(panel.lines), frameon=False, borderpad=0,
            borderaxespad=0.4, columnspacing=1.2, handlelength=1.8, handletextpad=0.5, fontsize=TEXT - 0.5,
            labelcolor=palette.muted,
        )  # fmt: skip
