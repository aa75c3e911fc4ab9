"""Figures of block-sparse attention: what it keeps, what that costs in error, and what it saves in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from studio.view.plots import LIGHT, Palette, dress
from studio.view.words import Words


@dataclass(frozen=True, kw_only=True, slots=True)
class DialPoint:
    """A video with sparse attention, beside the dense one of the same seed."""

    sparsity: float
    """Share of key blocks that was to be skipped."""
    kept: tuple[int, int]
    """(kept, all) key blocks."""
    seconds: float
    error: float
    """Norm of the difference of the latents over the norm of the dense ones."""
    psnr: float
    """Decibels, mean over the frames."""


def draw_choice(kept: np.ndarray, place: tuple[int, int, int], w: Words, *, palette: Palette = LIGHT) -> Figure:
    """The key blocks that one query block keeps: a panel for each row of blocks in time, the query block framed.

    `kept` is [t, h, w], the share of the heads that keep each key block; `place` is where the queries are.
    """
    num_times, num_rows, num_columns = kept.shape
    time, row, column = place
    figure = Figure(figsize=(1.2 + 1.9 * num_times, 2.7), layout="constrained", facecolor=palette.paper or "none")
    all_axes = [figure.add_subplot(1, num_times, number) for number in range(1, num_times + 1)]
    colors = LinearSegmentedColormap.from_list("kept", [palette.paper or "#ffffff", palette.accent])
    picture = None
    for number, axes in enumerate(all_axes):
        picture = axes.imshow(kept[number], vmin=0, vmax=1, cmap=colors)
        axes.set_title(w("nb.choice_time", n=number + 1, total=num_times), fontsize=10, color=palette.muted)
        axes.set_xticks(np.arange(0.5, num_columns - 1), [])
        axes.set_yticks(np.arange(0.5, num_rows - 1), [])
        axes.grid(visible=True, color=palette.line, linewidth=1)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_color(palette.line)
        if number == time:
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=palette.second, lw=2.5))
    if picture is not None:
        bar = figure.colorbar(picture, ax=all_axes, shrink=0.8, pad=0.02)
        bar.set_label(w("nb.choice_heads"), color=palette.muted)
        bar.ax.tick_params(colors=palette.muted, labelsize=9)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return figure


def draw_mass(mass: Sequence[float], w: Words, *, palette: Palette = LIGHT) -> Figure:
    """The share of the dense attention's weight that each layer's choice keeps."""
    figure, axes = _figure(palette, (7.2, 2.6))
    layers = np.arange(1, len(mass) + 1)
    axes.bar(layers, mass, width=0.66, color=palette.accent)
    for layer, share in zip(layers, mass, strict=True):
        axes.annotate(
            f"{100 * share:.0f}", (layer, share), xytext=(0, 3), textcoords="offset points", ha="center",
            color=palette.muted, fontsize=9,
        )  # fmt: skip
    axes.set_xticks(layers)
    axes.set_ylim(0, 1.12)
    axes.set_yticks([0, 0.5, 1], ["0", "50", "100"])
    axes.set_xlabel(w("nb.mass_layer"), color=palette.muted)
    axes.set_ylabel(w("nb.mass_share"), color=palette.muted)
    axes.grid(visible=False, axis="x")
    return figure


def draw_dial(points: Sequence[DialPoint], dense_seconds: float, w: Words, *, palette: Palette = LIGHT) -> Figure:
    """Over the sparsity: how far the video is from the dense one, and how long it took, the dense one as a line."""
    figure = Figure(figsize=(9.6, 3.2), layout="constrained", facecolor=palette.paper or "none")
    left, right = figure.subplots(1, 2)
    places = [point.sparsity for point in points]
    for axes, values, label in (
        (left, [100 * point.error for point in points], w("nb.dial_error")),
        (right, [point.seconds for point in points], w("nb.dial_seconds")),
    ):
        dress(axes, palette)
        axes.plot(places, values, "o-", color=palette.accent, markersize=5)
        axes.set_xlabel(w("nb.dial_sparsity"), color=palette.muted)
        axes.set_title(label, loc="left", fontsize=10, color=palette.ink)
        axes.set_ylim(0, 1.25 * max([*values, dense_seconds if axes is right else 0]))
        axes.margins(x=0.12)
    for point in points:
        left.annotate(
            w("nb.dial_kept", kept=point.kept[0], total=point.kept[1]), (point.sparsity, 100 * point.error),
            xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8, color=palette.muted,
        )  # fmt: skip
    right.axhline(dense_seconds, color=palette.second, linewidth=1.5)
    right.annotate(
        w("chip.dense"), (places[0], dense_seconds), xytext=(0, 4), textcoords="offset points", fontsize=9,
        color=palette.second,
    )  # fmt: skip
    return figure


def draw_speed(
    tokens: Sequence[int], dense: Sequence[float], sparse: Sequence[float | None], w: Words, *, palette: Palette = LIGHT
) -> Figure:
    """Milliseconds of one self-attention over the tokens of a video, dense and sparse; times are seconds."""
    figure, axes = _figure(palette, (7.2, 3.4))
    known = [(count, seconds) for count, seconds in zip(tokens, sparse, strict=True) if seconds is not None]
    for name, places, values, color in (
        (w("chip.dense"), list(tokens), list(dense), palette.second),
        (w("chip.sparse"), [count for count, _ in known], [seconds for _, seconds in known], palette.accent),
    ):
        if not places:
            continue
        axes.plot(places, [1000 * value for value in values], "o-", color=color, markersize=5)
        axes.annotate(
            name, (places[-1], 1000 * values[-1]), xytext=(8, 0), textcoords="offset points", va="center", color=color
        )
    axes.set_xlabel(w("nb.speed_tokens"), color=palette.muted)
    axes.set_ylabel(w("nb.speed_ms"), color=palette.muted)
    axes.set_xlim(0, 1.18 * max(tokens))
    axes.set_ylim(bottom=0)
    return figure


def _figure(palette: Palette, size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained", facecolor=palette.paper or "none")
    axes = figure.add_subplot()
    dress(axes, palette)
    return figure, axes
