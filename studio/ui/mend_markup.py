"""HTML of a plan of mends: what each clip will be, and what is left out. Everything is escaped here."""

from __future__ import annotations

from html import escape

from studio.core.data.mend import MendKind, MendPlan, PlannedClip
from studio.ui.markup import core_text, note
from studio.view.words import Words

MAX_ROWS = 40
"""Clips in the table of a plan; the others are counted."""


def mend_preview(plan: MendPlan, w: Words) -> str:
    """What will be written: a row for each clip that changes, what is left out and why, and the size of it all."""
    changed = [clip for clip in plan.clips if clip.changes]
    copied = len(plan.clips) - len(changed)
    parts = [w.count("mend.changed", len(changed))] if changed else []
    parts += [w.count("mend.copied", copied)] if copied else []
    parts += [w("mend.bytes", megabytes=w.number(plan.num_bytes / 1e6, 1))] if plan.clips else [w("mend.config_only")]
    more = note(w("mend.more_rows", n=len(changed) - MAX_ROWS)) if len(changed) > MAX_ROWS else ""
    return (
        f"<p class='mend-sum'>{escape(' · '.join(parts))}</p>{_table(changed[:MAX_ROWS], w)}{more}{_left_out(plan, w)}"
    )


def _table(clips: list[PlannedClip], w: Words) -> str:
    if not clips:
        return ""
    names = [w(f"mend.{column}") for column in ("clip", "frames", "rate", "size", "start_frame", "caption")]
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in names)
    return (
        f"<div class='planned'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(_row(clip, names, w) for clip in clips)}</tbody></table></div>"
    )


def _row(clip: PlannedClip, names: list[str], w: Words) -> str:
    """Old and new values of one clip; what stays is said once."""
    source = clip.pair.clip
    assert source is not None
    old_name, new_name = clip.pair.name, clip.name
    cells = [
        _change(old_name, new_name),
        _change(str(source.num_frames), str(clip.new_num_frames)) + _scene(clip, w),
        _change(f"{clip.fps:.4g}", f"{clip.new_fps:.4g}"),
        _change(_size(clip.size), _size(clip.new_size)),
        _change(_old_start_frame(clip, w), _new_start_frame(clip, w)),
        _change(" / ".join(clip.pair.captions) or w("dataset.no_caption"), " / ".join(clip.captions)),
    ]
    named = zip(names, cells, strict=True)
    row = "".join(f"<td data-name='{escape(name)}'><span>{cell}</span></td>" for name, cell in named)
    return f"<tr>{row}</tr>"


def _scene(clip: PlannedClip, w: Words) -> str:
    """Which frames of its source a scene takes, counted from 1."""
    if MendKind.SPLIT_SCENES not in clip.changes:
        return ""
    scene = w("mend.scene", first=clip.first_frame + 1, last=clip.first_frame + clip.num_frames)
    return f" <span class='kept'>({escape(scene)})</span>"


def _change(old: str, new: str) -> str:
    if old == new:
        return f"<span class='kept'>{escape(old)}</span>"
    return f"<span class='kept'>{escape(old)}</span> <span aria-hidden='true'>→</span> <b>{escape(new)}</b>"


def _size(size: tuple[int, int]) -> str:
    height, width = size
    return f"{width} x {height}"


def _old_start_frame(clip: PlannedClip, w: Words) -> str:
    return clip.pair.start_frame.path.name if clip.pair.start_frame else w("dataset.no_start_frame")


def _new_start_frame(clip: PlannedClip, w: Words) -> str:
    if clip.start_frame is None:
        return w("dataset.no_start_frame")
    if isinstance(clip.start_frame, int):
        return w("mend.frame", n=clip.start_frame + 1)
    return clip.start_frame.name


def _left_out(plan: MendPlan, w: Words) -> str:
    if not plan.left_out:
        return ""
    rows = "".join(
        f"<li><b>{escape(pair.name)}</b> <span {core_text(w)}>{escape(reason)}</span></li>"
        for pair, reason in plan.left_out[:MAX_ROWS]
    )
    more = note(w("mend.more_left_out", n=len(plan.left_out) - MAX_ROWS)) if len(plan.left_out) > MAX_ROWS else ""
    title = escape(w.count("mend.left_out", len(plan.left_out)))
    return f"<p class='mend-sum'>{title}</p><ul class='left-out'>{rows}</ul>{more}"
