"""The room Dataset: open a folder, see every clip as it will be trained, mend, go on."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from studio.core.data.bucket import MODEL_FPS
from studio.core.data.check import Progress
from studio.core.errors import CheckStopped, MendStopped, StudioError
from studio.core.types import Issue, Severity
from studio.ui import dataset_markup, detail_markup, markup, selection
from studio.ui.clip_pictures import pictures_of, preview
from studio.ui.dropped import MAX_BYTES, MAX_FILES, SUFFIXES, copy_dropped
from studio.ui.follow import Step, follow
from studio.ui.mend_panel import build_mend_panel, mend_label, mended
from studio.ui.report_files import write_reports
from studio.ui.settings import BROKEN_DEMO, DEMO
from studio.ui.workshop import Opened, Workshop
from studio.view.words import Words

logger = logging.getLogger(__name__)

PAGE_SIZE = 20
"""Clips on one page of the table."""

CHOOSE_ROW = """
const choose = (row) => {
  element.querySelectorAll('[data-index]').forEach((other) => other.setAttribute('aria-pressed', other === row));
  trigger('click', {index: Number(row.dataset.index)});
  const detail = document.querySelector('#detail-head');
  const isBelow = detail && detail.getBoundingClientRect().top > window.innerHeight;
  if (isBelow) setTimeout(() => detail.scrollIntoView({block: 'start'}), 300);
};
element.addEventListener('click', (event) => {
  const row = event.target.closest('[data-index]');
  if (row) choose(row);
});
element.addEventListener('keydown', (event) => {
  const rows = [...element.querySelectorAll('[data-index]')], step = {ArrowDown: 1, ArrowUp: -1}[event.key];
  const next = rows[rows.indexOf(document.activeElement) + step];
  if (!next) return;
  event.preventDefault();
  next.focus();
});
"""
"""A click or the enter key shows a row, the arrow keys go from row to row."""

CHOOSE_SHOWN = """
let last = null;
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-show]');
  if (!button) return;
  last = button.dataset.show;
  trigger('click', {show: last});
});
new MutationObserver(() => {
  if (last === null || document.activeElement !== document.body) return;
  const again = [...element.querySelectorAll('[data-show]')].find((button) => button.dataset.show === last);
  if (again) again.focus({preventScroll: true});
}).observe(element, {childList: true, subtree: true});
"""
"""A click filters the table; the button that was pressed keeps the focus when it is drawn anew."""


@dataclass(frozen=True, slots=True)
class DatasetTab:
    """The parts that other rooms and the page itself need."""

    path: gr.State
    """Path of the dataset this visitor opened, or None."""
    train: gr.Button
    reload: Any
    """reload(path) -> updates for `outputs`."""
    outputs: list[Any]
    find: Callable[[str | None, gr.EventData], Iterator[list[Any]]]
    """find(path, event) -> updates for `find_outputs` that choose the clip, if it is there, of an event that says
    {"clip": "<dataset id>/<name>"}.
    """
    find_outputs: list[Any]


def build_dataset_tab(workshop: Workshop, w: Words) -> DatasetTab:
    """Lays the room out and connects it."""
    settings = workshop.settings
    demos = {DEMO: str(settings.demo), BROKEN_DEMO: str(settings.broken_demo)}
    path, chosen, page, show = gr.State(None), gr.State(None), gr.State(0), gr.State(selection.ALL)
    with gr.Row(elem_classes="bar-row"):
        typed = gr.Textbox(
            label=w("dataset.path"), placeholder=w("dataset.path_hint"), scale=6, max_lines=1,
            elem_id="dataset-path",
        )  # fmt: skip
        open_button = gr.Button(w("dataset.open"), scale=0, min_width=96)
        demo_button = gr.Button(w("dataset.demo"), scale=0, min_width=152, elem_id="use-demo")
        broken_button = gr.Button(w("dataset.demo_broken"), scale=0, min_width=176, elem_id="use-broken")
    with gr.Accordion(w("dataset.drop"), open=False, elem_id="drop"):
        limits = {"files": MAX_FILES, "megabytes": 200, "gigabytes": MAX_BYTES // 10**9}
        gr.HTML(markup.note(w("dataset.drop_limits", **limits)))
        dropped = gr.File(file_count="multiple", file_types=SUFFIXES, show_label=False, height=144, elem_id="dropped")
    with gr.Row(elem_classes="message-row"):
        message = gr.HTML(elem_id="dataset-message")
        cancel = gr.Button(
            w("dataset.cancel"), variant="stop", scale=0, min_width=120, visible=False, elem_id="cancel-check"
        )
    lines = [w("dataset.empty_1"), w("dataset.empty_2"), w("dataset.empty_3")]
    with gr.Row(elem_classes="head-row"):
        summary = gr.HTML(markup.empty_state(w("dataset.empty_title"), lines, w("dataset.empty_note")))
        with gr.Column(scale=0, min_width=352):
            train = gr.Button("", variant="primary", visible=False, elem_id="to-train")
            mend = gr.Button("", visible=False, elem_id="mend")
    panel = build_mend_panel(workshop, w, path)
    with gr.Column(visible=False) as body:
        filters = gr.HTML(js_on_load=CHOOSE_SHOWN, elem_id="filters")
        with gr.Row(elem_classes="main-row"):
            with gr.Column(scale=3, min_width=320):
                clips = gr.HTML(js_on_load=CHOOSE_ROW, elem_id="clips")
                with gr.Row(visible=False, elem_classes="pager-row") as pager:
                    earlier = gr.Button(w("dataset.earlier"), size="sm", elem_id="earlier")
                    where = gr.HTML(elem_id="where")
                    later = gr.Button(w("dataset.later"), size="sm", elem_id="later")
            with gr.Column(scale=2, min_width=320, elem_classes="side sticky"):
                buckets = gr.HTML(js_on_load=CHOOSE_SHOWN, elem_id="buckets")
                head = gr.HTML(markup.note(w("dataset.detail_hint")), elem_id="detail-head")
                with gr.Row(elem_classes="player-row"):
                    player = gr.Video(
                        label=w("dataset.player"), show_label=False, interactive=False, loop=True, autoplay=True,
                        buttons=[], visible=False, min_width=160, elem_id="clip-player",
                    )  # fmt: skip
                    beside = gr.HTML(elem_id="start-frame-shown")
                detail = gr.HTML(elem_id="detail")
        with gr.Accordion("", open=False) as other:
            issues = gr.HTML()
        with gr.Row(elem_classes="action-row"):
            make_report = gr.Button(w("report.make"), scale=0, min_width=160, elem_id="make-report")
            as_page = gr.DownloadButton(w("report.html"), visible=False, scale=0, min_width=240, elem_id="report-html")
            as_data = gr.DownloadButton(w("report.json"), visible=False, scale=0, min_width=240, elem_id="report-json")
    view = [summary, body, filters, clips, pager, where, buckets, other, issues, mend, train]
    detailed = [chosen, head, player, beside, detail]
    closed = [None, markup.note(w("dataset.detail_hint")), gr.update(value=None, visible=False), "", ""]
    no_report = [gr.update(visible=False), gr.update(visible=False)]
    opening = [message, cancel, panel.box, path, page, show, *detailed, as_page, as_data, *view]

    def render(opened: Opened | None) -> list[Any]:
        """Updates of the panel of mends and everything after it, for a dataset that was just opened."""
        if opened is None:
            return [gr.skip()] * (len(opening) - 2)
        parts = _render(opened, selection.ALL, 0, None, workshop, w)
        unfold = gr.update(open=_has_faults(opened.report.issues))
        shown = [part | unfold if component is other else part for component, part in zip(view, parts, strict=True)]
        return [gr.update(visible=False), str(opened.path), 0, selection.ALL, *closed, *no_report, *shown]

    def say(key: str, step: Step) -> list[Any]:
        busy = gr.update(visible=True, interactive=True)
        return [markup.progress(_how_far(key, step, w), step.share), busy, *render(None)]

    def told(work: Generator[list[Any], None, Opened], done: Callable[[Opened], str]) -> Iterator[list[Any]]:
        """Updates of `opening` while `work` opens a dataset; at the end what `done` says of it, or what went wrong."""
        quiet = gr.update(visible=False)
        try:
            opened = yield from work
        except CheckStopped:
            yield [markup.note(w("dataset.cancelled")), quiet, *render(None)]
        except MendStopped:
            yield [markup.note(w("mend.stopped")), quiet, *render(None)]
        except StudioError as error:
            yield [markup.failure(error, w), quiet, *render(None)]
        except Exception as error:  # noqa: BLE001 the boundary of the page: nobody above would take the bar away
            logger.exception("opening a dataset failed")
            yield [markup.unexpected(error, w), quiet, *render(None)]
        else:
            yield [done(opened), quiet, *render(opened)]

    def check(request: gr.Request, open_it: Callable[[Progress, Callable[[], bool]], Opened]) -> Iterator[list[Any]]:
        """Updates of `opening` while `open_it(progress, should_stop)` opens a dataset."""
        stop = workshop.begin(request.session_hash)
        work = follow(lambda tell: open_it(tell, stop.is_set), stop, lambda step: say("dataset.opening", step))
        yield from told(work, lambda _: "")

    def write_mended(request: gr.Request, target: str | None, *values: Any) -> Iterator[list[Any]]:
        opened = workshop.opened.get(target or "")
        if opened is None:
            return
        stop = workshop.begin(request.session_hash)
        work = mended(opened, values, workshop, stop, w, say)
        yield from told(work, lambda new: markup.note(w("dataset.mended", folder=str(new.path))))

    def open_typed(target: str, request: gr.Request) -> Iterator[list[Any]]:
        def open_it(tell: Progress, should_stop: Callable[[], bool]) -> Opened:
            if not target.strip():
                raise StudioError(w("dataset.path_missing"), w("dataset.path_missing_remedy"))
            return workshop.open(target, tell, should_stop)

        yield from check(request, open_it)

    def open_demo(request: gr.Request) -> Iterator[list[Any]]:
        yield from check(request, lambda *how: workshop.open(demos[DEMO], *how))

    def open_broken(request: gr.Request) -> Iterator[list[Any]]:
        yield from check(request, lambda *how: workshop.open(demos[BROKEN_DEMO], *how))

    def open_dropped(files: list[str] | None, request: gr.Request) -> Iterator[list[Any]]:
        def open_copies(tell: Progress, should_stop: Callable[[], bool]) -> Opened:
            folder = copy_dropped([Path(file) for file in files or []], workshop.folder, w)
            try:
                return workshop.open(str(folder), tell, should_stop)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise

        yield from check(request, open_copies)

    def turn(target: str | None, at: int, shown: str, choice: int | None) -> list[Any]:
        opened = workshop.opened.get(target or "")
        if opened is None:
            return [gr.skip()] * (2 + len(view))
        return [at, shown, *_render(opened, shown, at, choice, workshop, w)]

    def filter_clips(target: str | None, before: str, choice: int | None, event: gr.EventData) -> list[Any]:
        wanted = event._data.get("show")
        if not isinstance(wanted, str):
            return [gr.skip()] * (2 + len(view))
        return turn(target, 0, selection.ALL if wanted == before else wanted, choice)

    def choose(target: str | None, event: gr.EventData) -> Iterator[list[Any]]:
        yield from show_clip(target, event._data.get("index"))

    def find(target: str | None, event: gr.EventData) -> Iterator[list[Any]]:
        opened, clip = workshop.opened.get(target or ""), event._data.get("clip")
        pairs = opened.report.pairs if opened else ()
        index = next((i for i, pair in enumerate(pairs) if f"{pair.dataset_id}/{pair.name}" == clip), None)
        for shown in show_clip(target, index):
            table = [gr.skip()] * (2 + len(view))
            yield [*(table if index is None else turn(target, index // PAGE_SIZE, selection.ALL, index)), *shown]

    def show_clip(target: str | None, index: Any) -> Iterator[list[Any]]:
        opened = workshop.opened.get(target or "")
        if opened is None or not isinstance(index, int) or not 0 <= index < len(opened.report.pairs):
            yield [gr.skip()] * len(detailed)
            return
        pair = opened.report.pairs[index]
        pictures = pictures_of(pair)
        said = detail_markup.clip_detail(pair, pictures.first, pictures.best, w)
        head = detail_markup.detail_head(pair, w)
        start_frame = detail_markup.start_frame_figure(pictures.start_frame, w)
        waiting = markup.note(w("dataset.player_wait")) if pair.bucket else ""
        yield [index, head, gr.update(visible=False), start_frame, waiting + said]
        video = preview(workshop.folder, pair)
        under = markup.note(w("dataset.player_note", fps=f"{MODEL_FPS:g}")) if video else ""
        yield [index, head, gr.update(value=video, visible=video is not None), start_frame, under + said]

    def report(target: str | None) -> list[Any]:
        opened = workshop.opened.get(target or "")
        if opened is None:
            return [gr.skip(), gr.skip()]
        files = write_reports(workshop.folder, opened, w)
        return [gr.update(value=str(file), visible=True) for file in files]

    def stop(request: gr.Request) -> Any:
        workshop.stop_check(request.session_hash)
        return gr.update(interactive=False)

    quiet: dict[str, Any] = {"api_visibility": "private"}
    hidden: dict[str, Any] = {"show_progress": "hidden", **quiet}
    typed.submit(open_typed, typed, opening, **hidden)
    open_button.click(open_typed, typed, opening, **hidden)
    dropped.upload(open_dropped, dropped, opening, **hidden)
    mend.click(panel.fill, path, panel.outputs, **hidden)
    panel.write.click(write_mended, [path, *panel.inputs], opening, **hidden)
    make_report.click(report, path, [as_page, as_data], **quiet)
    demo_button.click(open_demo, None, opening, **hidden)
    broken_button.click(open_broken, None, opening, **hidden)
    cancel.click(stop, None, cancel, queue=False, **hidden)
    turned = [page, show, *view]
    filters.click(filter_clips, [path, show, chosen], turned, **hidden)
    buckets.click(filter_clips, [path, show, chosen], turned, **hidden)
    places = [path, page, show, chosen]
    earlier.click(lambda t, at, s, c: turn(t, at - 1, s, c), places, turned, **hidden)
    later.click(lambda t, at, s, c: turn(t, at + 1, s, c), places, turned, **hidden)
    clips.click(choose, path, detailed, trigger_mode="always_last", **hidden)

    def reload() -> list[Any]:
        return render(workshop.opened.get(workshop.latest or ""))

    return DatasetTab(
        path=path, train=train, reload=reload, outputs=opening[2:], find=find, find_outputs=[*turned, *detailed]
    )


def _how_far(key: str, step: Step, w: Words) -> str:
    if not step.total:
        return w("dataset.looking")
    told = w(key, done=step.done, total=step.total)
    return " · ".join(filter(None, (told, step.left(w))))


def _render(opened: Opened, show: str, at: int, choice: int | None, workshop: Workshop, w: Words) -> list[Any]:
    """Updates of every part that shows the dataset, in the order of `view`."""
    report = opened.report
    pairs = selection.clips_shown(report, show)
    first = PAGE_SIZE * max(0, min(at, (len(pairs) - 1) // PAGE_SIZE))
    part = pairs[first : first + PAGE_SIZE]
    where = w("dataset.page", first=first + 1, last=first + len(part), total=len(pairs))
    ready = opened.num_ready
    train = w.count("dataset.train", ready) if report.is_ok else w("dataset.train_blocked")
    loose = selection.issues_shown(report, show)
    return [
        dataset_markup.summary(report, opened.path, w),
        gr.update(visible=True),
        dataset_markup.filters(report, show, w),
        dataset_markup.clip_table(part, choice, loose, workshop.thumbnails, w),
        gr.update(visible=len(pairs) > PAGE_SIZE),
        markup.note(where),
        dataset_markup.buckets(report, show, w) if report.by_bucket else "",
        gr.update(label=w("dataset.other", n=len(report.issues)), visible=bool(report.issues)),
        dataset_markup.issue_list(report.issues, w),
        gr.update(
            value=mend_label(opened.offer, w),
            visible=bool(opened.offer),
            variant="secondary" if report.is_ok else "primary",
        ),  # fmt: skip
        gr.update(
            value=train,
            interactive=report.is_ok and ready > 0,
            visible=True,
            variant="primary" if report.is_ok else "secondary",
        ),  # fmt: skip
    ]


def _has_faults(issues: tuple[Issue, ...]) -> bool:
    """True where an issue is more than for information."""
    return any(issue.severity is not Severity.NOTICE for issue in issues)
