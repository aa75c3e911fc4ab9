"""The queue of the room Sample as a list: what is rendered, what waits, in which order, and what has ended."""

from __future__ import annotations

from html import escape

from studio.core.sample.desk import DeskSnapshot, SampleDesk
from studio.core.sample.queue import EntryState, QueueEntry
from studio.ui import markup
from studio.ui.sample_stage import what
from studio.view.judged import label_text
from studio.view.words import Words

ENDED_SHOWN = 6
ICONS = {
    EntryState.RUNNING: "▶",
    EntryState.WAITING: "·",
    EntryState.DONE: "✓",
    EntryState.CANCELLED: "–",
    EntryState.FAILED: "✕",
}

PRESS = """
let last = null;
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-do]');
  if (button) trigger('click', {do: button.dataset.do, id: button.dataset.id});
});
element.addEventListener('focusin', (event) => { last = {...event.target.dataset}; });
element.addEventListener('focusout', (event) => { if (event.relatedTarget) last = null; });
new MutationObserver(() => {
  if (!last?.do || document.activeElement !== document.body) return;
  const there = [...element.querySelectorAll('[data-do]')].filter((other) => other.dataset.id === last.id);
  (there.find((other) => other.dataset.do === last.do && !other.disabled) || there[0])?.focus({preventScroll: true});
}).observe(element, {childList: true, subtree: true});
"""
"""A press says {do, id}; a list that is drawn anew keeps the focus."""


def queue_list(snapshot: DeskSnapshot, w: Words) -> str:
    """All that waits, in order, and the last that have ended; nothing where there is neither."""
    running, waiting, ended = snapshot.running, snapshot.waiting, snapshot.ended
    if not snapshot.entries:
        return ""
    rows = [_row(running, w, ("cancel",))] if running is not None else []
    for place, entry in enumerate(waiting):
        rows.append(_row(entry, w, ("up", "down", "cancel"), off=_ends(place, len(waiting))))
    rows += [_row(entry, w, ("again", "remove")) for entry in ended[:ENDED_SHOWN]]
    count = w.count("sample.waiting_count", len(waiting)) if waiting else ""
    clear = _button("clear", "", w("sample.clear"), w("sample.clear")) if ended else ""
    return (
        f"<section class='queue'><div class='queue-head'><h3>{escape(w('sample.queue'))}</h3>"
        f"<span class='note'>{escape(count)}</span>{clear}</div><ol>{''.join(rows)}</ol></section>"
    )


def act(desk: SampleDesk, do: object, id_: object) -> None:
    """Does what was pressed. Raises StudioError: the queue has changed since."""
    queue, name = desk.queue, id_ if isinstance(id_, str) else ""
    if do in ("up", "down"):
        waiting = [entry.id for entry in desk.snapshot().waiting]
        at = waiting.index(name) if name in waiting else 0
        queue.move(name, at + (1 if do == "down" else -1))
    elif do == "cancel":
        queue.cancel(name)
    elif do == "remove":
        queue.remove(name)
    elif do == "clear":
        for entry in desk.snapshot().ended:
            queue.remove(entry.id)


def _ends(place: int, count: int) -> tuple[str, ...]:
    """Which way an entry cannot go."""
    return (("up",) if place == 0 else ()) + (("down",) if place == count - 1 else ())


def _row(entry: QueueEntry, w: Words, buttons: tuple[str, ...], off: tuple[str, ...] = ()) -> str:
    state = w(f"sample.state_{entry.state.value}")
    parts = [f"<p class='what'>{what(entry, w)}</p>"]
    if entry.state is EntryState.FAILED:
        parts.append(
            f"<p class='why' {markup.core_text(w)}>{escape(entry.message)} "
            f"<span class='remedy'>{escape(entry.remedy)}</span></p>"
        )
    shown = "".join(
        _button(do, entry.id, w(f"sample.do_{do}"), w(f"sample.do_{do}_of", what=_short(entry, w)), do in off)
        for do in buttons
    )
    return (
        f"<li class='entry is-{entry.state.value}'><span class='state'><span class='icon' aria-hidden='true'>"
        f"{ICONS[entry.state]}</span>{escape(state)}</span><div class='about'>{''.join(parts)}</div>"
        f"<span class='buttons'>{shown}</span></li>"
    )


def _button(do: str, id_: str, text: str, label: str, is_off: bool = False) -> str:
    off = " disabled" if is_off else ""
    return (
        f"<button type='button' data-do='{do}' data-id='{escape(id_)}' aria-label='{escape(label)}' "
        f"title='{escape(label)}'{off}>{escape(text)}</button>"
    )


def _short(entry: QueueEntry, w: Words) -> str:
    prompt = entry.prompt if len(entry.prompt) <= 40 else f"{entry.prompt[:39]}…"
    return f"{label_text(entry.label, w)} {prompt}".strip()
