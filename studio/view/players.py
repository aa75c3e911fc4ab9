"""HTML of videos side by side, for the app and for a page of its own; labels, settings and prompts are escaped here."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from studio.core.sample.compare import HEAT, HEAT_MOST
from studio.core.sample.judge import Comparison, PictureDifference, SettingRow
from studio.core.sample.video import VideoShape
from studio.view.judged import (
    difference_facts,
    difference_sentence,
    figure_facts,
    own_settings,
    setting_name,
    setting_texts,
    titles,
    warnings,
)
from studio.view.words import Words

JUDGE_JS = Path(__file__).with_name("judge.js")
"""Defines `startJudge(root)`, which brings what `judge_html` gives to life."""
JUDGE_CSS = Path(__file__).with_name("judge.css")
SPEEDS = ("0.25", "0.5", "1")
MOST_BESIDE = 5
"""More videos are in two rows."""
ICONS = {
    "play": "M3 1l11 7-11 7z",
    "pause": "M3 1h4v14H3zM9 1h4v14H9z",
    "back": "M2 2h2v12H2zM14 2v12L5 8z",
    "next": "M12 2h2v12h-2zM2 2v12l9-6z",
}
"""Paths in 16 x 16."""


def judge_html(comparison: Comparison, sources: Sequence[str], w: Words) -> str:
    """The players under their one clock, wipe, heat map and figures; `sources` are the addresses of the videos."""
    names = titles(comparison.videos, w)
    columns = len(names) if len(names) <= MOST_BESIDE else math.ceil(len(names) / 2)
    fps = max(shape.fps for shape in comparison.shapes)
    count = max(round(shape.num_frames / shape.fps * fps) for shape in comparison.shapes)
    heat = json.dumps([[float(level) for level in color] for color in HEAT])
    say = {
        "at": w("judge.at", n="{n}", count="{count}", s="{s}"),
        "decimal": w("decimal"),
        "play": w("judge.play"),
        "pause": w("judge.pause"),
        "titles": names,
    }
    panes = "".join(
        _pane(comparison, index, name, source, w)
        for index, (name, source) in enumerate(zip(names, sources, strict=True))
    )
    facts = "".join(_facts(comparison, index, name, w) for index, name in enumerate(names))
    return (
        f"<div class='judge' role='group' tabindex='0' aria-label='{_say('judge.players', w)}' data-mode='side' "
        f"data-fps='{fps}' data-count='{count}' data-heat='{heat}' data-most='{HEAT_MOST}' "
        f"data-say='{escape(json.dumps(say))}' style='--columns: {columns}'>"
        f"{_tools(comparison, names, w)}<p class='judge-failed' role='alert' hidden>{_say('judge.failed', w)}</p>"
        f"{_over(comparison, w)}<div class='judge-panes'>{panes}</div>{_clock(count, w)}"
        f"<p class='judge-hint judge-keys'>{_say('judge.keys', w)}</p><div class='judge-facts'>{facts}</div></div>"
    )


def _tools(comparison: Comparison, names: Sequence[str], w: Words) -> str:
    if not comparison.is_pixelwise:
        return ""
    buttons = "".join(
        f"<button type='button' data-mode-of='{mode}' aria-pressed='{str(mode == 'side').lower()}' disabled>"
        f"{_say(f'judge.mode_{mode}', w)}</button>"
        for mode in ("side", "wipe", "heat")
    )
    chosen = "".join(_choice(which, place, names, w) for place, which in enumerate(("first", "second")))
    return (
        "<div class='judge-tools'>"
        f"<div class='judge-modes' role='group' aria-label='{_say('judge.modes', w)}'>{buttons}</div>"
        f"<div class='judge-chosen' hidden>{chosen}</div></div>"
    )


def _choice(which: str, place: int, names: Sequence[str], w: Words) -> str:
    options = "".join(
        f"<option value='{index}'{' selected' * (index == place)}>{escape(name)}</option>"
        for index, name in enumerate(names)
    )
    return f"<select data-choose='{which}' aria-label='{_say(f'judge.{which}', w)}'>{options}</select>"


def _over(comparison: Comparison, w: Words) -> str:
    """Two videos in one picture: the wipe, and the heat map."""
    shape = comparison.shapes[0]
    colors = ", ".join(f"rgb({', '.join(f'{level:g}' for level in color)})" for color in HEAT)
    return (
        f"<div class='judge-over' style='{_ratio(shape)}' hidden><p class='judge-tags'><span data-tag='first'></span>"
        "<span data-tag='second'></span></p><div class='judge-picture'>"
        f"<canvas data-over {_size(shape)} role='img' aria-label='{_say('judge.over', w)}'></canvas>"
        "<i class='judge-edge' data-only='wipe'></i></div>"
        "<input type='range' data-wipe data-only='wipe' min='0' max='1000' value='500' "
        f"aria-label='{_say('judge.wipe', w)}'><p class='judge-legend' data-only='heat'>"
        f"<span>{_say('judge.heat_none', w)}</span><i style='background: linear-gradient(to right, {colors})'></i>"
        f"<span>{escape(w('judge.heat_most', n=f'{HEAT_MOST:g}'))}</span></p></div>"
    )


def _pane(comparison: Comparison, index: int, name: str, source: str, w: Words) -> str:
    shape, own = comparison.shapes[index], own_settings(comparison, index, w)
    said = f"<small>{escape(own)}</small>" if own and own.casefold() != name.casefold() else ""
    return (
        f"<figure><figcaption>{escape(name)}{said}</figcaption><div class='judge-picture' style='{_ratio(shape)}'>"
        f"<video data-src='{escape(source)}' data-rate='{shape.fps}' data-frames='{shape.num_frames}' {_size(shape)} "
        "muted playsinline aria-hidden='true' tabindex='-1'></video>"
        f"<canvas {_size(shape)} role='img' aria-label='{escape(name)}'></canvas></div></figure>"
    )


def _ratio(shape: VideoShape) -> str:
    return f"--ratio: {shape.width / shape.height:.4f}"


def _size(shape: VideoShape) -> str:
    return f"width='{shape.width}' height='{shape.height}'"


def _clock(count: int, w: Words) -> str:
    speeds = "".join(
        f"<option value='{speed}'{' selected' * (speed == '1')}>{speed.replace('.', w('decimal'))}×</option>"
        for speed in SPEEDS
    )
    return (
        f"<div class='judge-clock'>{_button('back', w)}{_button('play', w, 'pause')}{_button('next', w)}"
        f"<input type='range' data-scrub min='0' max='{count - 1}' value='0' step='1' "
        f"aria-label='{_say('judge.scrub', w)}' disabled><output data-at></output>"
        f"<label><select data-speed aria-label='{_say('judge.speed', w)}'>{speeds}</select></label></div>"
    )


def _button(action: str, w: Words, *others: str) -> str:
    name = _say(f"judge.{action}", w)
    icons = "".join(
        f"<svg class='{icon}' width='16' height='16' viewBox='0 0 16 16' aria-hidden='true'>"
        f"<path d='{ICONS[icon]}'/></svg>"
        for icon in (action, *others)
    )
    return f"<button type='button' data-do='{action}' aria-label='{name}' title='{name}' disabled>{icons}</button>"


def _facts(comparison: Comparison, index: int, name: str, w: Words) -> str:
    """What is known of one video, and of it against the first."""
    against, found = difference_facts(comparison, index, w), comparison.pictures[index]
    more = ""
    if against:
        versus = escape(w("judge.against", name=titles(comparison.videos, w)[0]))
        more = f"<p class='judge-against judge-hint'>{versus}</p>{_dl(against)}{_curve(found, w) if found else ''}"
    return f"<div><p class='judge-name'>{escape(name)}</p>{_dl(figure_facts(comparison.videos[index], w))}{more}</div>"


def _dl(facts: Iterable[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(value)}</dd>' for name, value in facts)}</dl>"


def _curve(found: PictureDifference, w: Words) -> str:
    """Decibels frame by frame, with a line at the frame that is shown."""
    low, high = min(found.psnr), max(found.psnr)
    if high - low < 0.1 or len(found.psnr) < 2:
        return ""
    points = " ".join(f"{n},{40 * (high - value) / (high - low):.1f}" for n, value in enumerate(found.psnr))
    said = escape(w("judge.curve", low=w.number(low, 1), high=w.number(high, 1)))
    return (
        f"<svg class='judge-curve' viewBox='0 0 {len(found.psnr) - 1} 40' preserveAspectRatio='none' role='img' "
        f"aria-label='{said}'><polyline points='{points}'/><line data-now x1='0' x2='0' y1='0' y2='40'/></svg>"
        f"<p class='judge-hint'>{said}</p>"
    )


def difference_html(comparison: Comparison, w: Words) -> str:
    """In which settings the videos differ, in a sentence and a table; and what makes the comparison less than fair."""
    alerts = "".join(f"<p class='warning' role='status'>{escape(text)}</p>" for text in warnings(comparison, w))
    table = settings_table(comparison, comparison.differences, w) if comparison.differences else ""
    return f"<p class='judge-sentence'>{escape(difference_sentence(comparison, w))}</p>{alerts}{table}"


def settings_table(comparison: Comparison, rows: Sequence[SettingRow], w: Words) -> str:
    """Settings in rows, videos in columns."""
    names = titles(comparison.videos, w)
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in (w("judge.setting"), *names))
    body = "".join(
        f"<tr><th scope='row'>{escape(setting_name(row.key, w))}</th>"
        + "".join(
            f"<td data-name='{escape(name)}'>{escape(text)}</td>"
            for name, text in zip(names, setting_texts(row, w), strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f"<div class='planned'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _say(key: str, w: Words) -> str:
    return escape(w(key))
