"""The room Sample: a form, the stage where its videos emerge, and the queue in which they wait."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from studio.core.errors import StudioError
from studio.core.sample.gallery import find_videos, settings_again
from studio.ui import markup
from studio.ui.gallery_panel import build_gallery_panel
from studio.ui.judge_panel import build_judge_panel
from studio.ui.sample_form import build_sample_form
from studio.ui.sample_queue import PRESS, act, queue_list
from studio.ui.sample_stage import group_of, picture, pulse, stage, video_of
from studio.ui.workshop import Workshop
from studio.view.words import Words

logger = logging.getLogger(__name__)

BUSY_SECONDS, IDLE_SECONDS = 0.7, 3.0
"""How often the desk is looked at while something waits or is rendered, and while another page may ask for it."""

AS_SHOWN = """
(shown, page) => {
  const of = (id) => document.querySelector(`#${id} [data-version]`)?.dataset || {};
  const here = !!document.querySelector('#sample-mode')?.offsetParent;
  const [stage, picture, queue, pulse] = ['stage', 'emerging', 'queue', 'sample-pulse'].map((id) => ({...of(id)}));
  return [JSON.stringify({here, stage, picture, queue, pulse}), page];
}
"""
"""What the page shows: only what differs is sent."""
AS_OPENED = AS_SHOWN.replace("!!document.querySelector('#sample-mode')?.offsetParent", "true")
"""The room is not drawn yet."""

SHOW_STAGE = """
() => {
  const isRefused = document.querySelector('#sample-status .failure');
  if (window.innerWidth <= 640 && !isRefused) document.querySelector('#stage').scrollIntoView({block: 'start'});
}
"""
"""On a phone the stage lies below the form."""


@dataclass(frozen=True, slots=True)
class SampleTab:
    """The parts that the page itself needs."""

    open: list[dict[str, Any]]
    """Arguments of the events that follow when the room is opened."""
    watch: dict[str, Any]
    """Arguments of an event that looks at the desk."""
    take_newest: dict[str, Any]
    """Arguments of an event that puts the newest LoRA into the form."""
    rendered: Callable[..., Any]
    """rendered(...): listens for a video that has come."""


def build_sample_tab(workshop: Workshop, w: Words, strip: gr.HTML, timer: gr.Timer) -> SampleTab:
    """Lays the room out and connects it; `strip` is for the other rooms, `timer` makes it look at the desk."""
    shown = gr.Textbox(visible=False)
    with gr.Row(elem_classes="head-row"):
        plan = gr.HTML(markup.note(w("sample.head")), elem_id="sample-plan")
        with gr.Column(scale=0, min_width=304):
            start = gr.Button(w("sample.render"), variant="primary", elem_id="render")
    status = gr.HTML(elem_id="sample-status")
    with gr.Row(elem_classes="main-row"):
        with gr.Column(scale=2, min_width=320, elem_classes="side", elem_id="sample-form"):
            form = build_sample_form(workshop, w, plan, status)
        with gr.Column(scale=3, min_width=320):
            on_stage = gr.HTML(elem_id="stage")
            cancel = gr.Button(w("sample.cancel"), variant="stop", visible=False, elem_id="cancel")
            emerging = gr.HTML(elem_id="emerging")
            player = gr.Video(
                show_label=False, interactive=False, visible=False, loop=True, autoplay=True, buttons=["download"],
                height=400, elem_id="player",
            )  # fmt: skip
            queue = gr.HTML(js_on_load=PRESS, elem_id="queue")
    judge = build_judge_panel(workshop, w)
    gallery = build_gallery_panel(workshop, w, judge.names)

    watched = [timer, strip, on_stage, cancel, emerging, player, queue, status, *gallery.outputs]
    looked_from = [shown, *gallery.refresh_inputs]

    def watch(seen: str | None, at: int) -> list[Any]:
        page = _seen(seen)
        desk = workshop.desk()
        snapshot = desk.snapshot()
        running, video = snapshot.running, video_of(desk, snapshot)
        pace = "busy" if snapshot.is_busy else "idle" if page.get("here") else "off"
        told = page.get("pulse", {})
        head = [
            gr.skip() if told.get("pace") == pace else _timer(pace),
            _update("" if page.get("here") else pulse(snapshot, w), told.get("version"), {"pace": pace}),
        ]
        if not page.get("here"):
            return [*head, *[gr.skip()] * (len(watched) - len(head))]
        picture_of = f"{running.id}-{snapshot.underway.picture}" if running and snapshot.underway else ""
        before = page.get("stage", {})
        facts = {
            "video": video.stem if video else "",
            "running": running.id if running else "",
            "newest": next((entry.video for entry in snapshot.ended if entry.video), ""),
        }
        versions = {name: page.get(name, {}).get("version") for name in ("stage", "picture", "queue")}
        return [
            *head,
            _update(stage(desk, snapshot, w), versions["stage"], facts),
            gr.skip()
            if before.get("running") == facts["running"]
            else gr.update(visible=running is not None, interactive=True),
            gr.skip()
            if versions["picture"] == (picture_of or "none")
            else _versioned(picture(desk, snapshot, w), picture_of or "none", {}),
            gr.skip()
            if before.get("video") == facts["video"]
            else gr.update(value=workshop.shown(video) if video else None, visible=video is not None),
            _update(queue_list(snapshot, w), versions["queue"], {}),
            # That it is queued has been said.
            "" if before.get("running") and running is None else gr.skip(),
            *([gr.skip()] * len(gallery.outputs) if before.get("newest") == facts["newest"] else gallery.refresh(at)),
        ]

    def render(*values: Any) -> str:
        try:
            requests = form.requests(*values)
            workshop.desk().add(requests, workshop.model, form.gpus(*values))
        except StudioError as error:
            return markup.failure(error, w)
        except Exception as error:  # noqa: BLE001 the boundary of the page
            logger.exception("what the form asks for could not be queued")
            return markup.unexpected(error, w)
        return markup.note(w.count("sample.queued", len(requests)))

    def stop(seen: str | None, _: int) -> list[Any]:
        """Cancels what the page shows, whatever is rendered by now."""
        try:
            workshop.desk().queue.cancel(str(_seen(seen).get("stage", {}).get("running")))
        except StudioError as error:
            return [markup.failure(error, w), gr.update(interactive=False)]
        return [gr.skip(), gr.update(interactive=False)]

    def load(wish: tuple[str, int] | None) -> list[Any]:
        """Updates of what is said and of the form, for the settings of a video of the gallery."""
        nothing = [gr.skip()] * len(form.filled)
        try:
            if wish is None:
                return [gr.skip(), *nothing]
            folder = workshop.desk().gallery
            request, (video,) = settings_again(folder, wish[0]), find_videos(folder, [wish[0]])
            return [markup.note(w("sample.again")), *form.fill(request, video.gpus)]
        except StudioError as error:
            return [markup.failure(error, w), *nothing]

    def press(event: gr.EventData) -> list[Any]:
        do, id_ = event._data.get("do"), event._data.get("id")
        nothing = [gr.skip()] * len(form.filled)
        try:
            if do == "again":
                queue = workshop.desk().queue
                return [markup.note(w("sample.again")), *form.fill(queue.request(str(id_)), queue.gpus(str(id_)))]
            act(workshop.desk(), do, id_)
        except StudioError as error:
            return [markup.failure(error, w), *nothing]
        return [gr.skip(), *nothing]

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    at_once: dict[str, Any] = {**quiet, "queue": False}
    looking: dict[str, Any] = {"fn": watch, "inputs": looked_from, "outputs": watched, "js": AS_SHOWN, **at_once}
    timer.tick(**looking)
    start.click(render, form.inputs, status, **quiet).then(**looking).then(None, None, None, js=SHOW_STAGE)
    cancel.click(stop, looked_from, [status, cancel], js=AS_SHOWN, **at_once).then(**looking)
    queue.click(press, None, [status, *form.filled], trigger_mode="multiple", **at_once).then(**looking)
    gallery.again.change(load, gallery.again, [status, *form.filled], **at_once)
    refreshing: dict[str, Any] = {"fn": form.refresh, "outputs": form.refreshed, **at_once}
    # The change of a state is told by calls through the queue only.
    player.change(
        lambda: group_of(workshop.desk(), workshop.desk().snapshot()) or gr.skip(), None, judge.names, **quiet
    )
    # Notebooks put videos there too.
    shelving: dict[str, Any] = {
        "fn": gallery.refresh, "inputs": gallery.refresh_inputs, "outputs": gallery.outputs, **at_once,
    }  # fmt: skip
    return SampleTab(
        open=[{**looking, "js": AS_OPENED}, refreshing, shelving, form.plan],
        watch=looking,
        take_newest={"fn": form.take_newest, "outputs": form.refreshed, **at_once},
        rendered=player.change,
    )


def _timer(pace: str) -> gr.Timer:
    return gr.Timer(BUSY_SECONDS if pace == "busy" else IDLE_SECONDS, active=pace != "off")


def _update(html: str, version: str | None, facts: dict[str, str]) -> Any:
    """The HTML with its version, unless the page shows that one already."""
    now = f"{zlib.crc32(f'{html}{facts}'.encode()):08x}"
    return gr.skip() if version == now else _versioned(html, now, facts)


def _versioned(html: str, version: str, facts: dict[str, str]) -> str:
    told = "".join(f" data-{name}='{escape(value)}'" for name, value in facts.items())
    return f"<div data-version='{version}'{told}>{html}</div>"


def _seen(text: str | None) -> dict[str, Any]:
    """What a page says that it shows; whatever it says, each part is a mapping."""
    try:
        page = json.loads(text or "{}")
    except ValueError:
        return {}
    if not isinstance(page, dict):
        return {}
    parts = {name: part for name, part in page.items() if isinstance(part, dict)}
    return {**parts, "here": bool(page.get("here"))}
