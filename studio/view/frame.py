"""The frame of a figure of runs: fixed margins, a legend above the data, plain numbers and readable times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from studio.view.plots import Palette, dress
from studio.view.words import Words


class Axis(StrEnum):
    """What a figure's x axis counts."""

    STEP = "step"
    CLOCK = "clock"
    """Time since the first step, pauses and interruptions included."""


NARROW = 5.0
"""Inches; a figure below that is for a phone: fewer ticks, one column."""
_INCH = 100
"""Pixels of axes while nothing is drawn: matplotlib's own measure."""
TEXT = 9.0
MARK_ROW = 9.0
"""Points, a row of marks below the axis."""
_TICK_SECONDS = (
    0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 4 * 3600, 6 * 3600, 12 * 3600,
    86400, 2 * 86400, 7 * 86400,
)  # fmt: skip


def framed(
    palette: Palette,
    size: tuple[float, float],
    handles: Sequence[Line2D],
    *,
    num_mark_rows: int = 0,
    has_hint: bool = False,
) -> tuple[Figure, Axes]:
    """Axes under a legend that lies above them. The margins are fixed: laying them out draws twice."""
    width, height = size
    figure = Figure(figsize=size)
    figure.set_facecolor(palette.paper or "none")
    left, right = 0.62, 0.28
    legend_left = left if width >= NARROW else 0.12
    num_columns = _legend_columns([str(handle.get_label()) for handle in handles], width - legend_left - 0.1)
    num_rows = math.ceil(len(handles) / num_columns)
    top = 0.14 + 0.18 * num_rows + (0.08 if num_rows else 0) + (0.2 if has_hint else 0)
    bottom = 0.5 + MARK_ROW * num_mark_rows / 72
    axes = figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    )
    dress(axes, palette)
    if handles:
        figure.legend(
            handles=handles, loc="upper left", bbox_to_anchor=(legend_left / width, 1 - 0.08 / height),
            ncols=num_columns, frameon=False, labelcolor=palette.muted, fontsize=TEXT, borderpad=0,
            borderaxespad=0, columnspacing=1.4, handlelength=1.6, handletextpad=0.6, labelspacing=0.35,
        )  # fmt: skip
    return figure, axes


def _legend_columns(labels: Sequence[str], width: float) -> int:
    """As many as fit into so many inches, told from the number of letters."""
    for columns in range(len(labels), 1, -1):
        rows = math.ceil(len(labels) / columns)
        parts = [labels[start : start + rows] for start in range(0, len(labels), rows)]
        if sum(max(map(len, part)) * 0.56 + 3.6 for part in parts) * TEXT / 72 <= width:
            return math.ceil(len(labels) / rows)
    return 1


def name_y(axes: Axes, text: str, palette: Palette) -> None:
    """Names the y axis, at a fixed place: else every number beside it is measured for each drawing."""
    axes.set_ylabel(text, color=palette.muted, fontsize=TEXT + 1)
    axes.yaxis.set_label_coords(-0.43 * _INCH / axes.bbox.width, 0.5)


def fit_y(axes: Axes, seen: Sequence[float], w: Words, *, log: bool, from_zero: bool) -> None:
    """Limits around what is seen, and ticks in plain numbers."""
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value, w)))
    if not seen:
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_locator(NullLocator())
        return
    num_ticks = max(3, round(axes.bbox.height / _INCH / 0.42))
    low, high = min(seen), max(seen)
    if log:
        room = max(0.03, 0.06 * math.log10(high / low))
        low, high = low / 10**room, high * 10**room
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(FixedLocator(_log_ticks(low, high, num_ticks)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value, w)))
    else:
        room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
        low = 0.0 if from_zero and low >= 0 else low - room
        high += room
        axes.yaxis.set_major_locator(MaxNLocator(nbins=num_ticks))
    axes.set_ylim(low, high)


def _log_ticks(low: float, high: float, num_ticks: int) -> list[float]:
    """At most so many round numbers, as many as there are."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [tick for tick in MaxNLocator(nbins=num_ticks).tick_values(low, high) if low <= tick <= high]
    for every, heads in ((1, (1, 2, 5)), (1, (1, 3)), (1, (1,)), (2, (1,)), (3, (1,)), (5, (1,)), (10, (1,))):
        ticks = [head * 10.0**decade for decade in decades if decade % every == 0 for head in heads]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) < 2:
            break
        if len(ticks) <= num_ticks:
            return ticks
    return found


def _plain(value: float, w: Words) -> str:
    """`0.25`, `12000`, `3e-5`."""
    text = f"{value:.0f}" if abs(value) >= 1000 else f"{value:.6g}"
    if 0 < abs(value) < 1e-3:
        head, _, power = f"{value:.2e}".partition("e")
        text = f"{float(head):g}e{int(power)}"
    return text.replace(".", w("decimal"))


def set_x(
    axes: Axes,
    axis: Axis,
    low: float,
    high: float,
    w: Words,
    palette: Palette,
    *,
    pad: float = 4,
    is_narrow: bool = False,
    has_label: bool = True,
) -> None:
    """Limits, ticks and label of the x axis."""
    axes.set_xlim(low, high)
    axes.tick_params(axis="x", pad=pad)
    num_ticks = 4 if is_narrow else 8
    if axis is Axis.STEP:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=num_ticks, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value, w)))
        label = w("train.axis_step")
    else:
        ticks, texts, unit = _clock_ticks(low, high, num_ticks, w)
        axes.set_xticks(ticks, texts)
        label = w("chart.axis_clock", unit=unit)
    if has_label:
        axes.set_xlabel(label, color=palette.muted, fontsize=TEXT + 1)
        axes.xaxis.set_label_coords(0.5, -(pad + 13) / 72 * _INCH / axes.bbox.height)


def _clock_ticks(low: float, high: float, num_ticks: int, w: Words) -> tuple[list[float], list[str], str]:
    """Places in seconds, their texts, and the unit: by the length, and finer where a part of it is looked at."""
    longest = _TICK_SECONDS[-1]
    many = longest * math.ceil((high - low) / longest / num_ticks)  # a clock may jump by years
    every = next((t for t in _TICK_SECONDS if (high - low) / t <= num_ticks), many)
    every = every if high < 120 else max(1, every)
    ticks = [every * n for n in range(math.ceil(low / every), math.floor(high / every) + 1)]
    if high < 120:
        return ticks, [_plain(tick, w) for tick in ticks], "s"
    if high < 7200:
        if every % 60 == 0:
            return ticks, [f"{tick / 60:.0f}" for tick in ticks], "min"
        return ticks, [f"{tick // 60:.0f}:{tick % 60:02.0f}" for tick in ticks], "min:s"
    if every % 3600 == 0:
        return ticks, [f"{tick / 3600:.0f}" for tick in ticks], "h"
    hours = [f"{tick // 3600:.0f}:{tick % 3600 // 60:02.0f}" for tick in ticks]
    if every % 60 == 0:
        return ticks, hours, "h:min"
    return ticks, [f"{hour}:{tick % 60:02.0f}" for hour, tick in zip(hours, ticks, strict=True)], "h:min:s"
