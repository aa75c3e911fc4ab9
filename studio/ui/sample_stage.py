"""The stage of the room Sample: what is being rendered as it emerges, and then the video with what it shows."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from typing import Any

import av

from studio.core.sample.desk import DeskSnapshot, SampleDesk, Underway
from studio.core.sample.figures import FROZEN_BELOW
from studio.core.sample.judge import MOST
from studio.core.sample.queue import EntryState, QueueEntry
from studio.core.sample.video import read_settings
from studio.ui import markup
from studio.view.judged import label_text
from studio.view.words import Words

KEPT_FROM = 24.0
"""Decibels: a first frame that is less like the start frame than this has visibly drifted."""


def stage(desk: SampleDesk, snapshot: DeskSnapshot, w: Words) -> str:
    """How far what is rendered is, or what became of the last one."""
    trouble = ""
    if snapshot.trouble:
        message, remedy = snapshot.trouble
        trouble = markup.warning(message, remedy, w)
    elif snapshot.is_elsewhere:
        trouble = markup.note(w("sample.elsewhere"))
    running = snapshot.running
    if running is not None:
        return trouble + _underway(running, snapshot.underway, w)
    if snapshot.waiting:
        return trouble + markup.progress(w("gpus.sample_waits" if snapshot.is_held else "sample.begins"), 0)
    last = snapshot.ended[0] if snapshot.ended else None
    if last is None:
        return markup.empty_state(w("sample.empty"), (w("sample.empty_1"), w("sample.empty_2"), w("sample.empty_3")))
    return _ended(desk, last, w)


def picture(desk: SampleDesk, snapshot: DeskSnapshot, w: Words) -> str:
    """The emerging frames, animated; nothing where there are none yet."""
    underway = snapshot.underway
    data = desk.preview() if underway is not None and underway.picture else None
    if underway is None or data is None:
        return ""
    alt, said = escape(w("sample.preview_alt")), escape(w("sample.preview_said", step=underway.picture))
    source = f"data:image/webp;base64,{base64.b64encode(data).decode()}"
    return f"<figure class='emerging'><img alt='{alt}' src='{source}'><figcaption>{said}</figcaption></figure>"


def video_of(desk: SampleDesk, snapshot: DeskSnapshot) -> Path | None:
    """The video to be played: of the sample that ended last, while none is rendered or waits."""
    last = snapshot.ended[0] if snapshot.ended and not snapshot.is_busy else None
    file = desk.gallery / f"{last.video}.mp4" if last is not None and last.video else None
    return file if file is not None and file.is_file() else None


def group_of(desk: SampleDesk, snapshot: DeskSnapshot) -> list[str]:
    """Names of the videos to be compared with the one that ended last; none while something is rendered or waits."""
    last = snapshot.ended[0] if snapshot.ended and not snapshot.is_busy else None
    group = [entry for entry in snapshot.entries if last is not None and last.group and entry.group == last.group]
    there = [entry.video for entry in group if entry.video and (desk.gallery / f"{entry.video}.mp4").is_file()]
    return there[:MOST] if len(there) > 1 else []


def pulse(snapshot: DeskSnapshot, w: Words) -> str:
    """A strip for the other rooms while something is rendered; nothing otherwise."""
    running = snapshot.running
    if running is None:
        return ""
    now = snapshot.underway or Underway(id=running.id, phase="load")
    far = escape(step_line(now, w))
    return (
        f"<div class='pulse'><b role='status'>{escape(w(f'sample.phase_{now.phase}'))}</b> <span>{far}</span>"
        f"{markup.bar(now.step / max(1, now.num_steps))}</div>"
    )


def what(entry: QueueEntry, w: Words) -> str:
    """`0.5 · 4 GPUs · a red circle moves`, in HTML."""
    label = f"<b class='label'>{escape(label_text(entry.label, w))}</b> " if entry.label else ""
    gpus = f"<span class='gpus'>{escape(w('gpus.sample_on', n=entry.gpus))}</span> " if entry.gpus > 1 else ""
    return f"{label}{gpus}<span class='words'>{escape(entry.prompt)}</span>"


def step_line(underway: Underway, w: Words) -> str:
    """`step 3 of 12 · 40 s left · segment 1 of 3`, as much of it as is known."""
    parts = []
    if underway.num_steps:
        parts.append(w("progress.step", step=underway.step, total=underway.num_steps))
    if underway.seconds_left is not None and underway.step < underway.num_steps:
        parts.append(w("progress.left", time=w.duration(underway.seconds_left)))
    if underway.num_segments > 1:
        parts.append(w("sample.segment", n=underway.segment, total=underway.num_segments))
    return " · ".join(parts)


def _underway(entry: QueueEntry, underway: Underway | None, w: Words) -> str:
    now = underway or Underway(id=entry.id, phase="load")
    return (
        f"<div class='working'><p role='status' class='phase'><b>{escape(w(f'sample.phase_{now.phase}'))}</b></p>"
        f"<p class='what'>{what(entry, w)}</p>{markup.bar(now.step / max(1, now.num_steps))}"
        f"<p class='note'>{escape(step_line(now, w))}</p></div>"
    )


def _ended(desk: SampleDesk, entry: QueueEntry, w: Words) -> str:
    if entry.state is EntryState.CANCELLED:
        return markup.note(w("sample.cancelled")) + f"<p class='what'>{what(entry, w)}</p>"
    head = f"<p class='what'>{what(entry, w)}</p>"
    if entry.state is EntryState.FAILED:
        remedy = f"<span class='remedy' {markup.core_text(w)}>{escape(entry.remedy)}</span>"
        said = f"<span {markup.core_text(w)}>{escape(entry.message)}</span> {remedy}"
        return f"{head}{markup.alert(said)}"
    try:
        notes = read_settings(desk.gallery / f"{entry.video}.mp4")
    except (av.FFmpegError, OSError):
        return head + markup.note(w("sample.gone", name=entry.video))
    return head + markup.results(_lines(notes, w)) + "".join(_advice(notes, w))


def _lines(notes: dict[str, Any], w: Words) -> list[str]:
    figures = notes.get("figures") or {}
    said = []
    if figures.get("start_psnr") is not None:
        said.append(w("sample.keeps", decibels=w.number(figures["start_psnr"], 0)))
    if figures.get("motion") is not None:
        said.append(w("train.sample_motion", motion=w.number(figures["motion"], 1)))
    seconds, attention = w.number(float(notes.get("seconds", 0)), 1), w(f"chip.{notes.get('attention', 'dense')}")
    head = w("sample.done_in", seconds=seconds, attention=attention)
    on = [w("gpus.sample_plan", n=notes["gpus"])] if notes.get("gpus") else []
    width, height = (notes.get(f"refined_{side}") or notes.get(side) for side in ("width", "height"))
    return [
        " · ".join([*said, head, *on]),
        w("sample.done_frames", frames=notes.get("num_frames"), width=width, height=height),
        w("sample.done_steps", steps=notes.get("num_inference_steps")),
        w("sample.done_guidance", guidance=f"{notes.get('guidance_scale', 0):g}"),
        w("sample.done_seed", seed=notes.get("seed")),
        *([] if notes.get("guidance_batched", True) else [w("sample.done_one_by_one")]),
    ]


def _advice(notes: dict[str, Any], w: Words) -> list[str]:
    """What the guide says of what the video shows."""
    figures, said = notes.get("figures") or {}, []
    kept, motion = figures.get("start_psnr"), figures.get("motion")
    if kept is not None and kept < KEPT_FROM:
        said.append(w("sample.advice_drift"))
    if motion is not None and motion < FROZEN_BELOW:
        said.append(w("sample.advice_frozen"))
    return [f"<p class='advice'>{escape(line)}</p>" for line in said]
