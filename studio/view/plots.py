"""Figures of a run and of a dataset, the same in the app and in notebooks; no pyplot, no global state."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from studio.core.types import Bucket
from studio.view.words import Words


@dataclass(frozen=True, kw_only=True, slots=True)
class Palette:
    """Colours of a figure; `paper` None is transparent."""

    ink: str
    muted: str
    line: str
    accent: str
    second: str
    """Beside the accent: what is held out."""
    warn: str
    paper: str | None = None


LIGHT = Palette(
    ink="#1b1f24", muted="#5b6470", line="#e1e4e8", accent="#1f5fd0", second="#b0307a", warn="#9a5b00", paper="#ffffff"
)
DARK = Palette(
    ink="#e8eaed", muted="#9aa3ad", line="#2c333b", accent="#7fb0ff", second="#ff9bcb", warn="#f0b454", paper="#14181d"
)
PAGE = Palette(ink="#010201", muted="#010202", line="#010203", accent="#010204", second="#010206", warn="#010205")
"""Stand-ins that `figure_svg` turns into the page's own colours, so that one figure fits light and dark."""
_RC = threading.Lock()
"""Settings of matplotlib are those of all threads."""


def draw_buckets(
    buckets: Mapping[Bucket, int],
    w: Words,
    *,
    small: Collection[str] = (),
    palette: Palette = LIGHT,
    width: float = 7.2,
) -> Figure:
    """A bar a bucket, from wide to tall; those named in `small` hold less than a batch: hatched and said so."""
    figure, axes = _new_figure(palette, (width, 0.7 + 0.36 * max(1, len(buckets))))
    counts = list(buckets.values())
    places = np.arange(len(counts))
    is_small = [str(bucket) in small for bucket in buckets]
    bars = axes.barh(places, counts, height=0.62, color=[palette.warn if s else palette.accent for s in is_small])
    for bar, count, is_marked in zip(bars, counts, is_small, strict=True):
        text = f"{count}  {w('dataset.bucket_small')}" if is_marked else f"{count}"
        bar.set_hatch("///" if is_marked else "")
        axes.annotate(
            text, (count, bar.get_y() + bar.get_height() / 2), xytext=(6, 0), textcoords="offset points",
            va="center", color=palette.ink, fontsize=10,
        )  # fmt: skip
    labels = [w("dataset.bucket", width=b.width, height=b.height, frames=b.num_frames) for b in buckets]
    axes.set_yticks(places, labels, color=palette.ink)
    axes.set_ylim(len(counts) - 0.4, -0.6)
    axes.set_xlim(0, max(counts, default=1) * 1.25)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.set_xlabel(w("dataset.bucket_axis"), color=palette.muted)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(True)
    return figure


def save_figure(figure: Figure, path: Path) -> Path:
    """Writes the figure; the ending says the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    return path


def figure_png(figure: Figure) -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def figure_svg(figure: Figure, title: str) -> str:
    """The figure as an `<svg>` for a page: text stays text, and the colours of `PAGE` become the page's own."""
    buffer = io.StringIO()
    with _RC, mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for name in ("ink", "muted", "line", "accent", "second", "warn"):
        svg = svg.replace(getattr(PAGE, name), f"var(--studio-{name})")
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]+|font: ([\d.]+px) [^;\"]+", _page_font, svg)
    size = re.compile(r'(<svg[^>]*?) width="[^"]*"|(<svg[^>]*?) height="[^"]*"')
    svg = size.sub(r"\1\2", size.sub(r"\1\2", svg, count=1), count=1)
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg", f'<svg class="figure" role="img" aria-label="{label}"', 1)


def _page_font(match: re.Match[str]) -> str:
    return f"font-family: inherit; font-size: {match[1]}" if match[1] else "font-family: inherit"


def _new_figure(palette: Palette, size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    figure.set_facecolor(palette.paper or "none")
    axes = figure.add_subplot()
    dress(axes, palette)
    return figure, axes


def dress(axes: Axes, palette: Palette) -> None:
    """Gives axes the looks of all figures: a quiet grid, no box."""
    axes.set_facecolor("none")
    axes.grid(visible=True, color=palette.line, linewidth=1)
    axes.set_axisbelow(True)
    axes.tick_params(colors=palette.muted, left=False, bottom=False, length=0, labelsize=10)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(palette.line)
