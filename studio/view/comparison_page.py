"""A comparison to keep: a contact sheet, and one HTML page that carries videos, players and figures itself."""

from __future__ import annotations

import base64
import hashlib
import io
from html import escape

from matplotlib.figure import Figure

from studio.core.sample.judge import Comparison, frames_at, moments, setting_rows
from studio.view.judged import titles
from studio.view.players import JUDGE_CSS, JUDGE_JS, difference_html, judge_html, settings_table
from studio.view.plots import LIGHT
from studio.view.words import Words

SHEET_COLUMNS = 6
SHEET_WIDTH = 12.0
LABEL_SIGNS = 24
SIGN_WIDTH, LABEL_MARGIN = 0.12, 0.2
"""Inches."""


def comparison_sheet(comparison: Comparison, w: Words, *, columns: int = SHEET_COLUMNS) -> bytes:
    """A PNG: a row a video with its label, a column a moment; white, to be pasted anywhere. Raises MediaError."""
    seconds = moments(comparison.shapes, columns)
    ratios = [shape.height / shape.width for shape in comparison.shapes]
    labels = [_short(label, LABEL_SIGNS) for label in titles(comparison.videos, w)]
    label_width = LABEL_MARGIN + SIGN_WIDTH * max(map(len, labels))
    cell = (SHEET_WIDTH - label_width) / columns
    heights = [cell * ratio for ratio in ratios]
    tall = sum(heights) + 0.9
    figure = Figure(figsize=(SHEET_WIDTH, tall))
    figure.set_facecolor(LIGHT.paper or "white")
    grid = figure.add_gridspec(
        len(heights), columns, height_ratios=heights, left=label_width / SHEET_WIDTH, right=0.995, bottom=0.06 / tall,
        top=1 - 0.8 / tall, wspace=0.03, hspace=0.04,
    )  # fmt: skip
    for row, (video, label) in enumerate(zip(comparison.videos, labels, strict=True)):
        for column, (frame, second) in enumerate(zip(frames_at(video.path, seconds), seconds, strict=True)):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(frame, interpolation="lanczos")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if row == 0:
                axes.set_title(w("duration.s", s=w.number(second, 2)), fontsize=10, color=LIGHT.muted)
            if column == 0:
                said = axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=12)
                said.set(color=LIGHT.ink, parse_math=False)
    prompt = _short(str(comparison.videos[0].settings.get("prompt", "")), 120)
    figure.text(0.008, 1 - 0.3 / tall, prompt, fontsize=12, color=LIGHT.ink, parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, facecolor="white")
    return buffer.getvalue()


def _short(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


def data_address(content: bytes, kind: str) -> str:
    """The content itself as an address."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def comparison_html(comparison: Comparison, w: Words) -> str:
    """One page with the videos, players, figures and settings in it; asks nobody for anything. Raises MediaError."""
    first = comparison.videos[0]
    videos = [data_address(video.path.read_bytes(), "video/mp4") for video in comparison.videos]
    script = f"{JUDGE_JS.read_text(encoding='utf-8')}\ndocument.querySelectorAll('.judge').forEach(startJudge);\n"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    name = escape(w("judge.page_title", names=" · ".join(titles(comparison.videos, w))))
    prompt = str(first.settings.get("prompt", ""))
    sheet = data_address(comparison_sheet(comparison, w), "image/png")
    body = [
        f"<h1>{name}</h1>",
        f"<blockquote>{escape(prompt)}</blockquote>" if prompt else "",
        judge_html(comparison, videos, w),
        f"<h2>{escape(w('judge.differences'))}</h2>{difference_html(comparison, w)}",
        f"<h2>{escape(w('judge.sheet'))}</h2><img src='{sheet}' alt='{escape(w('judge.sheet_alt'))}'>",
        f"<details><summary>{escape(w('judge.all_settings'))}</summary>"
        f"{settings_table(comparison, setting_rows(comparison.videos), w)}</details>",
        f"<p class='note'>{escape(w('judge.page_made', app=w('app.name')))}</p>",
    ]
    return (
        f"<!DOCTYPE html>\n<html lang='{w.language}'>\n<head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        "<meta name='color-scheme' content='light dark'>"
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; media-src blob:; '
        f"connect-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'\">"
        f"<title>{name}</title><style>{_CSS}{JUDGE_CSS.read_text(encoding='utf-8')}</style></head>\n"
        f"<body><main>{''.join(body)}</main>\n<script>{script}</script></body>\n</html>\n"
    )


_CSS = """
:root { --studio-ink: #1b1f24; --studio-muted: #5b6470; --studio-line: #e1e4e8; --studio-accent: #1f5fd0;
  --studio-second: #b0307a; --studio-bad: #b3261e; --studio-warn: #8a5200; --studio-warn-soft: #fff4e0;
  --studio-note-soft: #eaf1fe; --studio-panel: #ffffff; --paper: #f7f8f9; }
@media (prefers-color-scheme: dark) {
  :root { --studio-ink: #e8eaed; --studio-muted: #a3acb6; --studio-line: #323a43; --studio-accent: #7fb0ff;
    --studio-second: #ff9bcb; --studio-bad: #ff9a90; --studio-warn: #f0b454; --studio-warn-soft: #3a2d14;
    --studio-note-soft: #1b2b47; --studio-panel: #1b2127; --paper: #14181d; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--studio-ink); font-variant-numeric: tabular-nums;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 1376px; margin: 0 auto; padding: 32px 16px 64px; }
h1 { font-size: 22px; line-height: 1.25; margin: 0 0 8px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 32px 0 8px; }
blockquote { margin: 0 0 24px; padding-left: 16px; border-left: 3px solid var(--studio-line); max-width: 80ch;
  color: var(--studio-muted); overflow-wrap: anywhere; }
.note { color: var(--studio-muted); font-size: 14px; margin-top: 32px; }
.warning { border-left: 4px solid var(--studio-warn); background: var(--studio-warn-soft); padding: 8px 16px;
  border-radius: 8px; margin: 8px 0; }
main > img { width: 100%; height: auto; border-radius: 8px; display: block; }
.planned { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 15px; }
th { text-align: left; font-weight: 400; color: var(--studio-muted); }
thead th { font-weight: 600; }
th, td { padding: 8px 16px 8px 0; border-bottom: 1px solid var(--studio-line); vertical-align: top;
  overflow-wrap: anywhere; }
details { margin-top: 32px; }
summary { cursor: pointer; color: var(--studio-accent); min-height: 44px; padding: 10px 0; }
@media print { .judge-tools, .judge-clock, .judge-hint { display: none; } }
"""
