"""The gallery: every video that was rendered, with its settings; used again, downloaded, deleted, compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from studio.core.errors import StudioError
from studio.core.sample.figures import FROZEN_BELOW
from studio.core.sample.gallery import GalleryReader, GalleryVideo, delete_video, find_videos
from studio.core.sample.judge import MOST, setting_rows
from studio.ui import markup
from studio.ui.video_addresses import VideoAddresses
from studio.ui.workshop import Workshop
from studio.view.judged import figure_facts, lora_text, setting_name, setting_texts, title
from studio.view.words import Words

PAGE_SIZE = 12
"""Videos on one page."""
MOST_TICKED = 4
"""As many as fit beside each other; a group may have more."""

CHOOSE = """
let ticked = [], observer = null;
const all = (name) => [...element.querySelectorAll(name)];
const mark = () => {
  all('[data-tick]').forEach((box) => {
    box.checked = ticked.includes(box.dataset.tick);
    box.disabled = !box.checked && ticked.length >= Number(box.dataset.most);
  });
  all('[data-compare]').forEach((button) => { button.disabled = ticked.length < 2; });
};
const load = (video) => {
  if (video.dataset.address) { video.src = video.dataset.address; delete video.dataset.address; }
};
const play = (video, isOn) => {
  load(video);
  if (isOn) video.play().catch(() => {});
  else video.pause();
};
const start = () => {
  observer?.disconnect();
  observer = new IntersectionObserver((seen) => seen.forEach(({isIntersecting, target}) => {
    if (isIntersecting) load(target);
    else target.pause();
  }));
  all('video').forEach((video) => observer.observe(video));
  const there = all('[data-tick]').map((box) => box.dataset.tick);
  ticked = ticked.filter((name) => there.includes(name));
  mark();
};
element.addEventListener('change', ({target}) => {
  const name = target.dataset.tick;
  if (!name) return;
  ticked = target.checked ? [...ticked, name] : ticked.filter((other) => other !== name);
  mark();
});
element.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (!button) return;
  const {again, doom, open, compare} = button.dataset, video = button.querySelector('video');
  if (video) play(video, video.paused);
  else if (again) trigger('click', {again});
  else if (doom) trigger('click', {doom});
  else if (open || compare !== undefined) {
    trigger('click', {open: open ? open.split(' ') : ticked});
    document.querySelector('#judge')?.scrollIntoView({block: 'start'});
  }
});
['mouseover', 'mouseout'].forEach((name) => element.addEventListener(name, (event) => {
  const button = event.target.closest('.shelf-picture');
  if (button && !button.contains(event.relatedTarget)) play(button.querySelector('video'), name === 'mouseover');
}));
watch('value', start);
start();
"""
"""Videos load when they are seen and play under the pointer, or when pressed; two to four boxes make a comparison."""

SHOW_DOOM = "() => setTimeout(() => document.querySelector('#gallery-doom')?.scrollIntoView({block: 'nearest'}), 100)"


@dataclass(frozen=True, slots=True)
class GalleryPanel:
    """The parts that others use."""

    refresh: Callable[..., list[Any]]
    """refresh(*`refresh_inputs`) -> updates for `outputs`: the gallery as it is now."""
    refresh_inputs: list[Any]
    outputs: list[Any]
    again: gr.State
    """(name of a video whose settings someone wants again, number of the wish): a listener to its change gets both."""


def build_gallery_panel(workshop: Workshop, w: Words, judged: gr.State) -> GalleryPanel:
    """Lays the panel out and connects it; names of videos to be compared are put into `judged`."""
    reader, addresses = GalleryReader(), VideoAddresses()
    page, doomed, again = gr.State(0), gr.State(None), gr.State(None)
    with gr.Column(elem_id="gallery", elem_classes="gallery-panel"):
        gr.HTML(f"<h2 class='heading'>{w('gallery.title')}</h2>")
        message = gr.HTML(elem_id="gallery-message")
        with gr.Column(visible=False, elem_id="gallery-doom") as confirm:
            doom = gr.HTML()
            with gr.Row(elem_classes="two-buttons"):
                keep = gr.Button(w("gallery.keep"), size="sm", elem_id="gallery-keep")
                really = gr.Button(w("gallery.delete_really"), size="sm", variant="stop", elem_id="gallery-really")
        shelf = gr.HTML(_empty(w), js_on_load=CHOOSE, elem_id="gallery-videos")
        with gr.Row(visible=False, elem_classes="pager-row") as pager:
            newer = gr.Button(w("gallery.newer"), size="sm", elem_id="gallery-newer")
            where = gr.HTML(elem_id="gallery-where")
            older = gr.Button(w("gallery.older"), size="sm", elem_id="gallery-older")

    def folder() -> Path:
        return workshop.output_dir / "samples"

    def show(at: int) -> list[Any]:
        videos = reader.videos(folder())
        at = max(0, min(at, (len(videos) - 1) // PAGE_SIZE))
        first = PAGE_SIZE * at
        part = videos[first : first + PAGE_SIZE]
        cards = "".join(
            _card(video, _companions(video, videos), workshop, addresses.of(shelf, video.path), w) for video in part
        )
        return [
            at,
            _shelf(cards, len(videos), w) if part else _empty(w),
            gr.update(visible=len(videos) > PAGE_SIZE),
            markup.note(w("gallery.page", first=first + 1, last=first + len(part), total=len(videos))),
        ]

    def choose(number: tuple[str, int] | None, event: gr.EventData) -> list[Any]:
        """Updates of again, judged, doomed, confirm, doom, message."""
        asked = event._data
        try:
            if isinstance(name := asked.get("again"), str):
                (video,) = find_videos(folder(), [name])
                return [(video.name, number[1] + 1 if number else 1), *[gr.skip()] * 4, ""]
            if isinstance(names := asked.get("open"), list):
                return [gr.skip(), [str(one) for one in names[:MOST]], *[gr.skip()] * 3, ""]
            if isinstance(name := asked.get("doom"), str):
                (video,) = find_videos(folder(), [name])
                what = f"<p class='doom'>{escape(w('gallery.delete_what', name=video.name))}</p>"
                return [gr.skip(), gr.skip(), video.name, gr.update(visible=True), what, ""]
        except StudioError as error:
            return [*[gr.skip()] * 5, markup.failure(error, w)]
        return [gr.skip()] * 6

    def delete(name: str | None, at: int) -> list[Any]:
        try:
            delete_video(folder(), name or "")
        except StudioError as error:
            return [gr.update(visible=False), markup.failure(error, w), *show(at)]
        addresses.forget(folder() / f"{name}.mp4")
        return [gr.update(visible=False), markup.note(w("gallery.deleted", name=name)), *show(at)]

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    at_once: dict[str, Any] = {**quiet, "queue": False}
    outputs = [page, shelf, pager, where]
    picked = shelf.click(choose, again, [again, judged, doomed, confirm, doom, message], **quiet)
    picked.then(None, None, None, js=SHOW_DOOM)
    newer.click(lambda at: show(at - 1), page, outputs, **at_once)
    older.click(lambda at: show(at + 1), page, outputs, **at_once)
    keep.click(lambda: gr.update(visible=False), None, confirm, **at_once)
    really.click(delete, [doomed, page], [confirm, message, *outputs], **quiet)
    return GalleryPanel(refresh=show, refresh_inputs=[page], outputs=outputs, again=again)


def _empty(w: Words) -> str:
    return markup.empty_state(w("gallery.empty"), (w("gallery.empty_1"), w("gallery.empty_2")))


def _shelf(cards: str, total: int, w: Words) -> str:
    return (
        f"<div class='shelf-tools'><p><b>{escape(w.count('gallery.count', total))}</b> "
        f"<span class='note'>{escape(w('gallery.compare_hint', most=MOST_TICKED))}</span></p>"
        f"<button type='button' data-compare disabled>{escape(w('gallery.compare'))}</button></div>"
        f"<div class='shelf' role='list'>{cards}</div>"
    )


def _companions(video: GalleryVideo, videos: Sequence[GalleryVideo]) -> list[str]:
    """Names of the newest of the video's group, in the order in which they were rendered; none without a group."""
    group = [other.name for other in videos if video.group and other.group == video.group]
    return list(reversed(group[:MOST])) if len(group) > 1 else []


def _card(video: GalleryVideo, group: Sequence[str], workshop: Workshop, address: str, w: Words) -> str:
    name, settings = escape(video.name), video.settings
    first = workshop.thumbnails.video(video.path)
    poster = f"poster='{first}'" if first else ""
    label = f"<span class='shelf-label'>{escape(title(video, w))}</span>" if video.label != video.name else ""
    told = " · ".join(filter(None, [*_size(video, w), *_short_figures(video, w)]))
    loras = lora_text(tuple((path.name, strength) for path, strength in video.loras), w)
    together = w("gallery.group_one") if len(group) == 2 else w("gallery.group", n=len(group))
    opened = (
        f"<button type='button' class='shelf-open' data-open='{escape(' '.join(group))}'>{escape(together)}</button>"
        if group
        else ""
    )
    return (
        f"<article class='shelf-card' role='listitem' data-card='{name}'>"
        f"<button type='button' class='shelf-picture' aria-label='{escape(w('gallery.play', name=video.name))}'>"
        f"<video data-address='{escape(address)}' {poster} preload='metadata' "
        "muted loop playsinline tabindex='-1'></video></button>"
        f"<p class='shelf-name'><b>{name}</b>{label}<label class='shelf-tick'><input type='checkbox' "
        f"data-tick='{name}' data-most='{MOST_TICKED}' aria-label='{escape(w('gallery.tick_name', name=video.name))}'>"
        f"{escape(w('gallery.tick'))}</label></p>"
        f"<p class='shelf-prompt'>{escape(str(settings.get('prompt', '')))}</p>"
        f"<p class='note'>{escape(loras)}</p><p class='note'>{escape(told)}</p>"
        f"<details class='folded'><summary>{escape(w('gallery.settings'))}</summary>{_all(video, w)}</details>"
        f"{opened}<div class='shelf-actions'>"
        f"<button type='button' data-again='{name}'>{escape(w('gallery.again'))}</button>"
        f"<a href='{escape(address)}' download='{name}.mp4'>{escape(w('gallery.download'))}</a>"
        f"<button type='button' class='stop' data-doom='{name}'>{escape(w('gallery.delete'))}</button></div></article>"
    )


def _size(video: GalleryVideo, w: Words) -> list[str]:
    settings = video.settings
    if not {"width", "height", "num_frames", "seed"} <= settings.keys():
        return []
    size = w("gallery.size", width=settings["width"], height=settings["height"], frames=settings["num_frames"])
    return [size, w("sample.done_seed", seed=settings["seed"])]


def _short_figures(video: GalleryVideo, w: Words) -> list[str]:
    start, motion = video.figures.get("start_psnr"), video.figures.get("motion")
    said = [w("gallery.start", psnr=w.number(start, 1))] if isinstance(start, int | float) else []
    if isinstance(motion, int | float):
        said.append(w("gallery.frozen") if motion < FROZEN_BELOW else w("gallery.moves", motion=w.number(motion, 1)))
    return said


def _all(video: GalleryVideo, w: Words) -> str:
    """Figures, then every setting."""
    rows = [
        (setting_name(row.key, w), setting_texts(row, w)[0])
        for row in setting_rows([video])
        if row.key != "attention"  # it is among the figures
    ]
    return markup.facts([*figure_facts(video, w), *rows])
