"""HTML of the pages; the room Dataset has its own. What a file, a caption or a configuration says is escaped here."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from studio.core.errors import StudioError
from studio.core.train.fit import Fit
from studio.view.progress import fit_rows, fit_verdict
from studio.view.verdicts import ICONS
from studio.view.words import Words


def failure(error: StudioError, w: Words) -> str:
    """What went wrong, and what to do, in one line."""
    remedy = f"<span class='remedy' {core_text(w)}>{escape(error.remedy)}</span>" if error.remedy else ""
    return alert(f"<span {core_text(w)}>{escape(error.message)}</span> {remedy}")


def unexpected(error: Exception, w: Words) -> str:
    """One line for what nobody foresaw; the traceback is for the log."""
    return alert(f"<span>{escape(w('error.unexpected', what=type(error).__name__))}</span>")


def alert(html: str) -> str:
    """What stops something, in HTML."""
    icon = f"<span class='icon' aria-hidden='true'>{ICONS['unreadable']}</span>"
    return f"<p class='failure' role='alert'>{icon}{html}</p>"


def note(text: str) -> str:
    """One quiet line."""
    return f"<p class='note' role='status'>{escape(text)}</p>"


def empty_state(title: str, lines: Iterable[str] = (), foot: str = "") -> str:
    """What a room shows before there is anything in it."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return (
        f"<div class='empty'><p class='empty-title'>{escape(title)}</p>"
        + (f"<ol>{items}</ol>" if items else "")
        + (f"<p class='note'>{escape(foot)}</p>" if foot else "")
        + "</div>"
    )


def header(
    w: Words, chips: Iterable[tuple[str, str]], languages: Iterable[tuple[str, str, str, bool]], tagline: str = ""
) -> str:
    """Name, chips, languages (code, name, address, is this one) and the switch for light and dark."""
    shown = "".join(f"<li><span>{escape(name)}</span> <b>{escape(value)}</b></li>" for name, value in chips)
    links = "".join(
        f"<b lang='{code}' aria-current='true'>{escape(name)}</b>"
        if is_here
        else f"<a lang='{code}' hreflang='{code}' href='{escape(address)}'>{escape(name)}</a>"
        for code, name, address, is_here in languages
    )
    nav = f"<nav class='languages' aria-label='{escape(w('language'))}'>{links}</nav>" if links else ""
    theme = escape(w("theme"))
    return (
        f"<header class='studio-header'><div class='brand'><h1>{escape(w('app.name'))}</h1>"
        f"<p>{escape(tagline or w('app.tagline'))}</p></div><ul class='chips'>{shown}</ul>"
        f"<div class='tools'>{nav}<button type='button' class='theme-switch' title='{theme}' aria-label='{theme}'>"
        "<span aria-hidden='true'>◐</span></button></div></header>"
    )


def core_text(w: Words) -> str:
    """Marks sentences of the core, which speaks English, for readers and for screen readers."""
    return "" if w.language == "en" else "lang='en'"


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Names and values in two columns."""
    cells = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows)
    return f"<dl class='facts'>{cells}</dl>"


def fit_card(fit: Fit, num_steps: int | None, w: Words) -> str:
    """What a step of each bucket and all steps take, whether that fits, and what would make it fit."""
    heading, *rows = fit_rows(fit, w)
    head = "".join(f"<th scope='col'>{escape(cell)}</th>" for cell in heading)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    verdict = fit_verdict(fit, w)
    return (
        f"<h3 class='heading'>{escape(w('fit.title'))}</h3>"
        f"<table class='fit'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        + (note(verdict) if fit.fits else warning(verdict, str(fit.change or ""), w))
        + _all_steps(fit, num_steps, w)
    )


def _all_steps(fit: Fit, num_steps: int | None, w: Words) -> str:
    if num_steps is None or fit.seconds_per_step is None:
        return ""
    return note(w("fit.all_steps", steps=num_steps, time=w.duration(num_steps * fit.seconds_per_step)))


def warning(text: str, remedy: str | None, w: Words) -> str:
    """What is amiss but stops nothing, and what to do."""
    mend = f" <span class='remedy' {core_text(w)}>{escape(remedy)}</span>" if remedy else ""
    icon = f"<span class='icon kind-mend' aria-hidden='true'>{ICONS['mend']}</span>"
    return f"<p class='warning' role='status'>{icon}{escape(text)}{mend}</p>"


def bar(done: float) -> str:
    """A progress bar, 0 to 1."""
    percent = 100 * min(1.0, max(0.0, done))
    return f"<div class='bar' aria-hidden='true'><i style='width: {percent:.1f}%'></i></div>"


def progress(text: str, done: float) -> str:
    """A line and its bar."""
    return f"<div class='working' role='status'><p>{escape(text)}</p>{bar(done)}</div>"


def results(lines: Iterable[str]) -> str:
    """What was rendered, and how."""
    first, *others = lines
    more = f"<p class='note'>{escape(' · '.join(others))}</p>"
    return f"<div class='results' role='status'><p>{escape(first)}</p>{more}</div>"
