"""The room Dataset: open a folder, see every clip with its verdict, mend, go on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from studio.core.data.bucket import MODEL_FPS
from studio.core.data.decode import resize_frames
from studio.core.errors import StudioError
from studio.core.sample.video import write_video
from studio.core.types import Issue, Pair, Severity
from studio.ui import markup
from studio.ui.settings import BROKEN_DEMO, DEMO
from studio.ui.workshop import Opened, Workshop
from studio.view.sheets import first_frames
from studio.view.verdicts import kind_of, lacking_start_frame
from studio.view.words import Words

PAGE_SIZE = 20
"""Clips on one page of the list."""

CHOOSE_ROW = """
element.addEventListener('click', (event) => {
  const row = event.target.closest('[data-index]');
  if (!row) return;
  element.querySelectorAll('[data-index]').forEach((other) => other.setAttribute('aria-pressed', other === row));
  trigger('click', {index: Number(row.dataset.index)});
});
"""


@dataclass(frozen=True, slots=True)
class DatasetTab:
    """The parts that other rooms and the page itself need."""

    path: gr.State
    """Path of the dataset this visitor opened, or None."""
    train: gr.Button
    reload: Any
    """reload(path) -> updates for `outputs`."""
    outputs: list[Any]


def build_dataset_tab(workshop: Workshop, w: Words) -> DatasetTab:
    """Lays the room out and connects it."""
    settings = workshop.settings
    demos = {DEMO: str(settings.demo), BROKEN_DEMO: str(settings.broken_demo)}
    path, chosen, page = gr.State(None), gr.State(None), gr.State(0)
    with gr.Row(elem_classes="bar-row"):
        typed = gr.Textbox(
            label=w("dataset.path"), placeholder=w("dataset.path_hint"), scale=6, max_lines=1,
            visible=not settings.is_space, elem_id="dataset-path",
        )  # fmt: skip
        open_button = gr.Button(w("dataset.open"), scale=0, min_width=96, visible=not settings.is_space)
        demo_button = gr.Button(w("dataset.demo"), scale=0, min_width=152, elem_id="use-demo")
        broken_button = gr.Button(w("dataset.demo_broken"), scale=0, min_width=176, elem_id="use-broken")
    message = gr.HTML(elem_id="dataset-message")
    lines = [w("dataset.empty_1"), w("dataset.empty_2"), w("dataset.empty_3")]
    foot = w("dataset.empty_space" if settings.is_space else "dataset.empty_note")
    with gr.Row(elem_classes="head-row"):
        summary = gr.HTML(markup.empty_state(w("dataset.empty_title"), lines, foot))
        with gr.Column(scale=0, min_width=304):
            train = gr.Button("", variant="primary", visible=False, elem_id="to-train")
            mend = gr.Button("", visible=False, elem_id="mend")
    with gr.Column(visible=False) as body, gr.Row(elem_classes="main-row"):
        with gr.Column(scale=3, min_width=320):
            choices = [(w(f"dataset.filter_{name}"), name) for name in ("all", "mend", "ready")]
            show = gr.Radio(
                choices,
                value="all",
                label=w("dataset.filter"),
                show_label=False,
                container=False,
                elem_classes="filter",
            )
            clips = gr.HTML(js_on_load=CHOOSE_ROW, elem_id="clips")
            with gr.Row(visible=False, elem_classes="bar-row") as pager:
                earlier = gr.Button(w("dataset.earlier"), size="sm")
                where = gr.HTML()
                later = gr.Button(w("dataset.later"), size="sm")
        with gr.Column(scale=2, min_width=320, elem_classes="side"):
            player = gr.Video(
                label=w("dataset.player"), interactive=False, loop=True, autoplay=True, buttons=[], visible=False,
                height=320, elem_id="clip-player",
            )  # fmt: skip
            detail = gr.HTML(markup.note(w("dataset.detail_hint")), elem_id="detail")
            buckets = gr.HTML(elem_id="buckets")
            with gr.Accordion("", open=False) as other:
                issues = gr.HTML()
    view = [summary, body, clips, pager, where, buckets, other, issues, mend, train]

    def render(opened: Opened | None, filter_by: str = "all") -> list[Any]:
        if opened is None:
            return [gr.skip()] * len(view)
        unfold = gr.update(open=_has_faults(opened.report.issues))
        parts = _render(opened, filter_by, 0, None, w, is_space=settings.is_space)
        return [part | unfold if component is other else part for component, part in zip(view, parts, strict=True)]

    def open_path(target: str, progress: gr.Progress) -> list[Any]:
        if not target.strip():
            missing = StudioError(w("dataset.path_missing"), w("dataset.path_missing_remedy"))
            return [markup.failure(missing, w), gr.skip(), None, 0, *render(None)]

        def tell(done: int, total: int) -> None:
            progress((done, total), w("dataset.opening", done=done, total=total))

        try:
            opened = workshop.open(target, tell)
        except StudioError as error:
            return [markup.failure(error, w), gr.skip(), None, 0, *render(None)]
        return ["", str(opened.path), None, 0, *render(opened)]

    def open_typed(target: str, progress: gr.Progress = gr.Progress()) -> list[Any]:  # noqa: B008
        return open_path("" if settings.is_space else target, progress)

    def open_demo(progress: gr.Progress = gr.Progress()) -> list[Any]:  # noqa: B008
        return open_path(demos[DEMO], progress)

    def open_broken(progress: gr.Progress = gr.Progress()) -> list[Any]:  # noqa: B008
        return open_path(demos[BROKEN_DEMO], progress)

    def turn(at: int, by: int, target: str | None, filter_by: str, choice: int | None) -> list[Any]:
        opened = workshop.opened.get(target or "")
        if opened is None:
            return [gr.skip()] * (1 + len(view))
        return [at + by, *_render(opened, filter_by, at + by, choice, w, is_space=settings.is_space)]

    def choose(target: str | None, event: gr.EventData) -> tuple[Any, ...]:
        opened, index = workshop.opened.get(target or ""), event._data.get("index")
        if opened is None or not isinstance(index, int) or not 0 <= index < len(opened.report.pairs):
            return gr.skip(), gr.skip(), gr.skip()
        pair = opened.report.pairs[index]
        preview = _preview(workshop, pair)
        player_shows = gr.update(value=preview, visible=preview is not None)
        return index, player_shows, markup.clip_detail(pair, w)

    def take_start_frames(target: str | None, filter_by: str) -> list[Any]:
        opened = workshop.opened.get(target or "")
        if opened is None or settings.is_space:
            return [gr.skip(), *render(None)]
        try:
            mended, files = workshop.add_start_frames(opened)
        except StudioError as error:
            return [markup.failure(error, w), *render(None)]
        folder = files[0].parent if files else ""
        return [markup.note(w.count("dataset.mended", len(files), folder=folder)), *render(mended, filter_by)]

    opening = [message, path, chosen, page, *view]
    quiet: dict[str, Any] = {"api_visibility": "private"}
    typed.submit(open_typed, typed, opening, **quiet)
    open_button.click(open_typed, typed, opening, **quiet)
    demo_button.click(open_demo, None, opening, **quiet)
    broken_button.click(open_broken, None, opening, **quiet)
    hidden: dict[str, Any] = {"show_progress": "hidden", **quiet}
    show.input(lambda t, f, c: turn(0, 0, t, f, c), [path, show, chosen], [page, *view], **hidden)
    turning = ([page, path, show, chosen], [page, *view])
    earlier.click(lambda at, t, f, c: turn(at, -1, t, f, c), *turning, **hidden)
    later.click(lambda at, t, f, c: turn(at, 1, t, f, c), *turning, **hidden)
    clips.click(choose, path, [chosen, player, detail], **hidden)
    mend.click(take_start_frames, [path, show], [message, *view], **quiet)

    def reload() -> list[Any]:
        opened = workshop.opened.get(workshop.latest or "")
        return [str(opened.path) if opened else None, *render(opened)]

    return DatasetTab(path=path, train=train, reload=reload, outputs=[path, *view])


def _render(opened: Opened, filter_by: str, at: int, choice: int | None, w: Words, *, is_space: bool) -> list[Any]:
    """Updates of every part that shows the dataset, in the order of `view`."""
    report = opened.report
    pairs = [(i, p) for i, p in enumerate(report.pairs) if _is_shown(p, filter_by)]
    first = PAGE_SIZE * max(0, min(at, (len(pairs) - 1) // PAGE_SIZE))
    page = pairs[first : first + PAGE_SIZE]
    where = w("dataset.page", first=first + 1, last=first + len(page), total=len(pairs))
    lacking, ready = len(lacking_start_frame(report)), opened.num_ready
    train = w.count("dataset.train", ready) if report.is_ok else w("dataset.train_blocked")
    return [
        markup.summary(report, Path(opened.path.name) if is_space else opened.path, w),
        gr.update(visible=True),
        markup.clip_list(page, choice, w),
        gr.update(visible=len(pairs) > PAGE_SIZE),
        markup.note(where),
        markup.buckets(report, opened.project.run.data.train_batch_size, w) if report.by_bucket else "",
        gr.update(label=w("dataset.other", n=len(report.issues)), visible=bool(report.issues)),
        markup.issue_list(report.issues, w),
        gr.update(value=w.count("dataset.mend", lacking), visible=bool(lacking) and not is_space),
        gr.update(value=train, interactive=report.is_ok and ready > 0, visible=not is_space),
    ]


def _has_faults(issues: tuple[Issue, ...]) -> bool:
    """True where an issue is more than for information."""
    return any(issue.severity is not Severity.NOTICE for issue in issues)


def _is_shown(pair: Pair, filter_by: str) -> bool:
    is_ready = kind_of(pair) in ("ready", "note")
    return filter_by == "all" or is_ready == (filter_by == "ready")


def _preview(workshop: Workshop, pair: Pair) -> str | None:
    """The clip as it will be trained, for the player; None where it cannot be read."""
    frames = first_frames(pair, num_frames=0)
    if frames is None or pair.clip is None:
        return None
    if pair.bucket:
        frames = resize_frames(frames, pair.bucket.height, pair.bucket.width)
    changed = pair.clip.path.stat().st_mtime_ns
    target = workshop.folder / f"clip-{abs(hash((pair.clip, pair.bucket, changed)))}.mp4"
    if not target.exists():
        write_video(target, frames, MODEL_FPS, {})
    return str(target)
