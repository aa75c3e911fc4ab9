"""The room Runs: every run in a table; one is looked at and handed on, two are compared."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from studio.core.errors import JobAlreadyRunning, StudioError
from studio.core.runlog import RunFolder, RunSnapshot, list_runs
from studio.core.train.card import write_card
from studio.core.train.export import Layout, export_lora
from studio.core.train.hub import default_name, last_upload, upload_run
from studio.core.train.runs import (
    RunCache,
    branch_run,
    delete_run,
    differences,
    find_run,
    sample_file,
    side_by_side,
    size_on_disk,
)
from studio.ui import markup, runs_markup
from studio.ui.workshop import Workshop
from studio.view.figure_files import save_figures
from studio.view.run_lines import sample_line
from studio.view.run_rows import checkpoint_line
from studio.view.words import Words

PAGE_SIZE = 20
"""Runs on one page of the table."""
LIVE_SECONDS = 2.0
"""How often the table is drawn anew while the room is open and a run of the page lives."""

CHOOSE = """
let last = null;
const boxes = () => [...element.querySelectorAll('[data-tick]')];
let ticked = boxes().filter((box) => box.checked).map((box) => box.dataset.tick);
element.addEventListener('click', (event) => {
  const row = event.target.closest('[data-run]');
  if (!row) return;
  element.querySelectorAll('[data-run]').forEach((other) => other.setAttribute('aria-pressed', other === row));
  trigger('click', {run: row.dataset.run});
  const detail = document.querySelector('#run-detail');
  const isBelow = detail && detail.getBoundingClientRect().top > window.innerHeight;
  if (isBelow) setTimeout(() => detail.scrollIntoView({block: 'start'}), 400);
});
element.addEventListener('change', (event) => {
  const box = event.target.closest('[data-tick]');
  if (!box) return;
  const there = boxes();
  const isOn = (name) => there.every((other) => other.dataset.tick !== name || other.checked);
  ticked = [...ticked, box.dataset.tick].filter((name, index, all) => isOn(name) && all.lastIndexOf(name) === index);
  while (ticked.length > 2) {
    const dropped = ticked.shift();
    there.filter((other) => other.dataset.tick === dropped).forEach((other) => { other.checked = false; });
  }
  trigger('click', {ticked});
});
element.addEventListener('keydown', (event) => {
  const rows = [...element.querySelectorAll('[data-run]')], step = {ArrowDown: 1, ArrowUp: -1}[event.key];
  const next = rows[rows.indexOf(document.activeElement) + step];
  if (!next) return;
  event.preventDefault();
  next.focus();
});
element.addEventListener('focusin', (event) => { last = {...event.target.dataset}; });
element.addEventListener('focusout', (event) => { if (event.relatedTarget) last = null; });
new MutationObserver(() => {
  if (!last || document.activeElement !== document.body) return;
  const kind = last.run ? 'run' : 'tick';
  const again = [...element.querySelectorAll(`[data-${kind}]`)].find((other) => other.dataset[kind] === last[kind]);
  if (again) again.focus({preventScroll: true});
}).observe(element, {childList: true, subtree: true});
"""
"""A click or the enter key shows a run, the arrow keys go from run to run, two boxes compare; a table that is drawn
anew keeps the focus."""

SHOW_DOOM = "() => setTimeout(() => document.querySelector('#run-doom')?.scrollIntoView({block: 'nearest'}), 100)"
"""The question lies below the button, where a long detail ends."""


@dataclass(frozen=True, slots=True)
class RunsTab:
    """The parts that other rooms and the page itself need."""

    open_run: Callable[[str, int | None], list[Any]]
    """open_run(name, step) -> updates for `open_outputs`: that run, and its checkpoint of that step."""
    open_outputs: list[Any]
    refresh: Callable[..., list[Any]]
    """refresh(*`refresh_inputs`) -> updates for `outputs`."""
    refresh_inputs: list[Any]
    outputs: list[Any]
    leave: Callable[[], Any]
    """leave() -> update for `timer`: nothing is drawn while another room is open."""
    timer: gr.Timer
    continued: Any
    """The event of a run that goes on, or was refused."""


def build_runs_tab(workshop: Workshop, w: Words, tabs: gr.Tabs) -> RunsTab:
    """Lays the room out and connects it; a run that goes on is shown in the room Train of `tabs`."""
    cache = RunCache()
    page, chosen, ticked, doomed = gr.State(0), gr.State(None), gr.State([]), gr.State(None)
    # Of the run that is shown: the step whose checkpoint and samples someone asked for.
    wanted = gr.State(None)
    timer = gr.Timer(LIVE_SECONDS, active=False)
    with gr.Row(elem_classes="head-row"):
        status = gr.HTML(markup.note(w("runs.head")), elem_id="runs-status")
        with gr.Column(scale=0, min_width=304):
            go_on = gr.Button(w("train.continue"), variant="primary", interactive=False, elem_id="run-continue")
    message = gr.HTML(elem_id="runs-message")
    with gr.Row(elem_classes="main-row"):
        with gr.Column(scale=3, min_width=320):
            table = gr.HTML(
                markup.empty_state(w("runs.empty"), (w("runs.empty_1"),)), js_on_load=CHOOSE, elem_id="runs"
            )
            with gr.Row(visible=False, elem_classes="pager-row") as pager:
                newer = gr.Button(w("runs.newer"), size="sm", elem_id="runs-newer")
                where = gr.HTML(elem_id="runs-where")
                older = gr.Button(w("runs.older"), size="sm", elem_id="runs-older")
        with gr.Column(scale=2, min_width=320, elem_classes="side sticky", elem_id="run-detail"):
            hint = gr.HTML(markup.note(w("runs.hint")))
            with gr.Column(visible=False) as one:
                head = gr.HTML(elem_id="run-head")
                chart = gr.HTML(elem_id="run-curve")
                samples = gr.Gallery(
                    label=w("train.samples"), visible=False, columns=2, object_fit="contain", height="auto",
                    buttons=[], elem_id="samples-of-run",
                )  # fmt: skip
                said_checkpoints = gr.HTML(elem_id="run-checkpoints")
                with gr.Row(elem_classes="bar-row", visible=False) as branch_row:
                    checkpoint = gr.Dropdown([], label=w("runs.checkpoint"), scale=4, elem_id="run-checkpoint")
                    branch = gr.Button(w("runs.branch"), scale=0, min_width=208, elem_id="run-branch")
                with gr.Accordion(w("runs.files"), open=True):
                    with gr.Row(elem_classes="bar-row"):
                        layout = gr.Dropdown(
                            [(w(f"runs.layout_{layout.value}"), layout.value) for layout in Layout],
                            value=Layout.DIFFUSERS.value, label=w("runs.layout"), scale=4, elem_id="run-layout",
                        )  # fmt: skip
                        export = gr.Button(w("runs.export"), scale=0, min_width=208, elem_id="run-export")
                    with gr.Row(elem_classes="two-buttons"):
                        series = gr.Button(w("runs.series"), size="sm", elem_id="run-series")
                        card = gr.Button(w("runs.card"), size="sm", elem_id="run-card")
                    said_files = gr.HTML(elem_id="run-files-said")
                    files = gr.File(
                        label=w("runs.download"), file_count="multiple", interactive=False, visible=False,
                        elem_id="run-files",
                    )  # fmt: skip
                with gr.Accordion(w("runs.hub"), open=False):
                    gr.HTML(markup.note(w("runs.hub_help")))
                    hub_name = gr.Textbox(label=w("runs.hub_name"), max_lines=1, elem_id="run-hub-name")
                    with gr.Row(elem_classes="two-buttons"):
                        is_private = gr.Checkbox(True, label=w("runs.hub_is_private"), container=False)
                        to_hub = gr.Button(w("runs.hub_upload"), size="sm", elem_id="run-to-hub")
                    said_hub = gr.HTML(elem_id="run-hub-said")
                with gr.Accordion(w("runs.settings"), open=False):
                    settings = gr.HTML(elem_id="run-settings")
                delete = gr.Button(w("runs.delete"), size="sm", variant="stop", elem_id="run-delete")
                with gr.Column(visible=False, elem_id="run-doom") as confirm:
                    doom = gr.HTML()
                    with gr.Row(elem_classes="two-buttons"):
                        keep = gr.Button(w("runs.keep"), size="sm", elem_id="run-keep")
                        really = gr.Button(
                            w("runs.delete_really"), size="sm", variant="stop", elem_id="run-delete-really"
                        )
            with gr.Column(visible=False, elem_id="comparison") as two:
                heads = gr.HTML()
                over = gr.HTML(elem_id="overlay")
                diff = gr.HTML(elem_id="differences")
                pairs = gr.Gallery(
                    label=w("runs.side_by_side"), visible=False, columns=2, object_fit="contain", height="auto",
                    buttons=[], elem_id="compared-samples",
                )  # fmt: skip
                said_pairs = gr.HTML()
    listed = [status, table, pager, where, timer]
    detailed = [
        hint, one, two, go_on, head, chart, samples, said_checkpoints, branch_row, checkpoint, said_files, files,
        hub_name, said_hub, settings, delete, confirm, heads, over, diff, pairs, said_pairs,
    ]  # fmt: skip

    def run_of(name: str | None) -> RunFolder:
        return find_run(workshop.output_dir, name or "", is_whole=True)

    def show_list(at: int, name: str | None, marked: list[str]) -> list[Any]:
        runs = list_runs(workshop.output_dir)
        first = PAGE_SIZE * max(0, min(at, (len(runs) - 1) // PAGE_SIZE))
        part = [cache.figures(run) for run in runs[first : first + PAGE_SIZE]]
        return [
            runs_markup.summary(len(runs), workshop.output_dir.absolute(), w),
            runs_markup.run_table(part, name, marked, workshop.thumbnails, w)
            if part
            else markup.empty_state(w("runs.empty"), (w("runs.empty_1"), w("runs.empty_2"), w("runs.empty_3"))),
            gr.update(visible=len(runs) > PAGE_SIZE),
            markup.note(w("runs.page", first=first + 1, last=first + len(part), total=len(runs))),
            gr.Timer(active=any(figures.is_training for figures in part)),
        ]

    def show_right(name: str | None, marked: list[str], step: int | None = None) -> list[Any]:
        """Updates of `detailed`: two runs over one another, or one, or what to do."""
        try:
            if len(marked) == 2:
                return _comparison(workshop, cache, [run_of(one) for one in marked], w, len(detailed))
            if name:
                return _detail(workshop, cache, run_of(name), step, w, len(detailed))
        except StudioError as error:
            return _nothing(markup.failure(error, w), len(detailed))
        return _nothing(markup.note(w("runs.hint_more" if marked else "runs.hint")), len(detailed))

    def refresh(at: int, name: str | None, step: int | None, marked: list[str]) -> list[Any]:
        names = {run.name for run in list_runs(workshop.output_dir)}
        name, marked = name if name in names else None, [one for one in marked if one in names]
        return [name, step, marked, *show_list(at, name, marked), *show_right(name, marked, step)]

    def open_run(name: str, step: int | None = None) -> list[Any]:
        names = [run.name for run in list_runs(workshop.output_dir)]
        at = names.index(name) // PAGE_SIZE if name in names else 0
        return [at, name, step, [], *show_list(at, name, []), *show_right(name, [], step)]

    def choose(name: str | None, step: int | None, marked: list[str], event: gr.EventData) -> list[Any]:
        pressed, boxes = event._data.get("run"), event._data.get("ticked")
        if isinstance(boxes, list):
            # The page may still know the box of a run that is deleted by now.
            names = {run.name for run in list_runs(workshop.output_dir)}
            marked = [box for box in boxes if isinstance(box, str) and box in names][:2]
        elif isinstance(pressed, str):
            # Whoever looks at one run has done with the comparison; the boxes stay.
            return [pressed, None, marked, *show_right(pressed, [])]
        return [name, step, marked, *show_right(name, marked, step)]

    def turn(at: int, by: int, name: str | None, marked: list[str]) -> list[Any]:
        last = (len(list_runs(workshop.output_dir)) - 1) // PAGE_SIZE
        at = max(0, min(at + by, last))
        return [at, *show_list(at, name, marked)]

    def resume(start: Callable[[], RunFolder]) -> tuple[Any, ...]:
        """Goes on with a run, and to the room Train; a refusal is said here."""
        try:
            start()
        except StudioError as error:
            return markup.failure(error, w), gr.skip()
        return "", gr.Tabs(selected="train")

    def go_on_with(name: str | None) -> RunFolder:
        run = run_of(name)
        if not run.state().can_resume:
            # It was gone on with elsewhere since the page was drawn.
            raise StudioError(w("runs.not_half_way"), w("runs.not_half_way_remedy"))
        return workshop.resume(run)

    def start_branch(name: str | None, step: int | None) -> RunFolder:
        if step is None:
            raise StudioError(w("runs.no_checkpoint_chosen"), w("runs.no_checkpoint_remedy"))
        if workshop.is_training:
            raise JobAlreadyRunning("A run is being trained already.", "Wait until it ends, or stop it.")
        new = branch_run(run_of(name), int(step))
        try:
            return workshop.resume(new)
        except StudioError:
            # It was made a moment ago, and holds nothing that its origin has not.
            delete_run(new)
            raise

    def made(make: Callable[[Path], tuple[str, list[Path]]]) -> list[Any]:
        """What was said of new files, and the files; they lie in a new private folder."""
        folder = Path(tempfile.mkdtemp(prefix="run-", dir=workshop.folder))
        try:
            said, new = make(folder)
        except StudioError as error:
            shutil.rmtree(folder, ignore_errors=True)
            return [markup.failure(error, w), gr.skip()]
        return [markup.note(said), gr.update(value=[str(file) for file in new], visible=True)]

    def export_it(name: str | None, asked: str) -> Iterator[list[Any]]:
        def make(folder: Path) -> tuple[str, list[Path]]:
            layout = next((one for one in Layout if one == asked), Layout.DIFFUSERS)
            file = export_lora(run_of(name), layout, folder)
            return w("runs.exported", name=file.name), sorted(folder.iterdir())

        yield [markup.note(w("runs.working")), gr.skip()]
        yield made(make)

    def series_of(name: str | None) -> list[Any]:
        return made(lambda folder: (w("runs.series_said"), list(save_figures(run_of(name), folder, w))))

    def card_of(name: str | None) -> list[Any]:
        return made(lambda folder: (w("runs.card_said"), list(write_card(run_of(name), folder))))

    def upload(name: str | None, repository: str, private: bool) -> Iterator[str]:
        yield markup.note(w("runs.hub_working"))
        try:
            if not repository.strip():
                raise StudioError(w("runs.hub_no_name"), w("runs.hub_no_name_remedy"))
            yield runs_markup.upload(upload_run(run_of(name), repository.strip(), is_private=private), w)
        except StudioError as error:
            yield markup.failure(error, w)

    def ask(name: str | None) -> list[Any]:
        try:
            run = run_of(name)
        except StudioError as error:
            return [None, gr.skip(), gr.skip(), markup.failure(error, w)]
        what = runs_markup.doom(cache.figures(run), size_on_disk(run.path), w)
        return [run.name, gr.update(visible=True), what, ""]

    def delete_it(name: str | None, at: int, marked: list[str]) -> list[Any]:
        try:
            delete_run(run_of(name))
        except StudioError as error:
            return [markup.failure(error, w), *[gr.skip()] * len(outputs)]
        return [markup.note(w("runs.deleted", name=name)), *refresh(at, None, None, marked)]

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    at_once: dict[str, Any] = {**quiet, "queue": False}
    outputs = [chosen, wanted, ticked, *listed, *detailed]
    picked = [chosen, wanted, ticked]
    table.click(choose, picked, [*picked, *detailed], trigger_mode="multiple", **quiet)
    checkpoint.input(lambda step: step, checkpoint, wanted, **at_once)
    newer.click(lambda *now: turn(now[0], -1, *now[1:]), [page, chosen, ticked], [page, *listed], **at_once)
    older.click(lambda *now: turn(now[0], 1, *now[1:]), [page, chosen, ticked], [page, *listed], **at_once)
    timer.tick(show_list, [page, chosen, ticked], listed, **at_once)
    continued = go_on.click(lambda name: resume(lambda: go_on_with(name)), chosen, [message, tabs], **quiet)
    branched = branch.click(
        lambda name, step: resume(lambda: start_branch(name, step)), [chosen, checkpoint], [message, tabs], **quiet
    )
    export.click(export_it, [chosen, layout], [said_files, files], **quiet)
    series.click(series_of, chosen, [said_files, files], **quiet)
    card.click(card_of, chosen, [said_files, files], **quiet)
    to_hub.click(upload, [chosen, hub_name, is_private], said_hub, **quiet)
    asked = delete.click(ask, chosen, [doomed, confirm, doom, message], **at_once)
    asked.then(None, None, None, js=SHOW_DOOM)
    keep.click(lambda: gr.update(visible=False), None, confirm, **at_once)
    really.click(delete_it, [doomed, page, ticked], [message, *outputs], **quiet)
    return RunsTab(
        open_run=open_run,
        open_outputs=[page, *outputs],
        refresh=refresh,
        refresh_inputs=[page, *picked],
        outputs=outputs,
        leave=lambda: gr.Timer(active=False),
        timer=timer,
        continued=(continued, branched),
    )


def _nothing(hint: str, length: int) -> list[Any]:
    shown = [gr.update(value=hint, visible=True), gr.update(visible=False), gr.update(visible=False)]
    return [*shown, gr.update(interactive=False), *[gr.skip()] * (length - 4)]


def _detail(workshop: Workshop, cache: RunCache, run: RunFolder, step: int | None, w: Words, length: int) -> list[Any]:
    """Updates of everything that shows one run, in the order of `detailed`. Raises StudioError."""
    config, snapshot, figures = run.config(), cache.snapshot(run), cache.figures(run)
    found = cache.checkpoints(run)
    choices = [(checkpoint_line(one, w), one.step) for one in found if not one.damage]
    steps = [value for _, value in choices]
    videos = _videos(workshop, run, snapshot, w)
    shown = [
        gr.update(visible=False),
        gr.update(visible=True),
        gr.update(visible=False),
        gr.update(interactive=figures.state.can_resume and not workshop.is_training),
        runs_markup.detail_head(figures, snapshot, w),
        runs_markup.curve(snapshot, w),
        gr.update(value=videos, visible=bool(videos), selected_index=_place_of(snapshot, step, len(videos))),
        runs_markup.checkpoints(found, w),
        gr.update(visible=bool(choices)),
        gr.update(choices=choices, value=step if step in steps else steps[0] if steps else None),
        "",
        gr.update(value=None, visible=False),
        default_name(run),
        runs_markup.upload(last_upload(run), w),
        runs_markup.settings(config, w),
        gr.update(
            interactive=not figures.is_training, value=w("runs.delete_live" if figures.is_training else "runs.delete")
        ),
        gr.update(visible=False),
    ]
    return [*shown, *[gr.skip()] * (length - len(shown))]


def _comparison(workshop: Workshop, cache: RunCache, runs: list[RunFolder], w: Words, length: int) -> list[Any]:
    """Updates of everything that shows two runs, in the order of `detailed`. Raises StudioError."""
    first, second = runs
    names = (first.name, second.name)
    both = side_by_side(first, second)
    videos = [
        (workshop.shown(file), f"{run.name[:15]} · {sample_line(sample, w)}")
        for pair in both
        for run, sample in ((first, pair.first), (second, pair.second))
        if (file := sample_file(run, sample))
    ]
    unlike = [pair.name for pair in both if not pair.is_alike]
    shown = [
        runs_markup.compared_heads([cache.figures(run) for run in runs], w),
        runs_markup.overlay([(run.name, run.snapshot()) for run in runs], w),
        runs_markup.difference_table(differences(first.config(), second.config()), names, w),
        gr.update(value=videos, visible=bool(videos)),
        markup.note(w("runs.unlike", names=", ".join(unlike)) if unlike else "" if both else w("runs.no_pairs")),
    ]
    head = [gr.update(visible=False), gr.update(visible=False), gr.update(visible=True), gr.update(interactive=False)]
    return [*head, *[gr.skip()] * (length - len(head) - len(shown)), *shown]


def _videos(workshop: Workshop, run: RunFolder, snapshot: RunSnapshot, w: Words) -> list[tuple[str, str]]:
    """(file, figures) of the samples, newest first."""
    return [
        (workshop.shown(file), sample_line(sample, w))
        for sample in reversed(snapshot.samples)
        if (file := sample_file(run, sample))
    ]


def _place_of(snapshot: RunSnapshot, step: int | None, count: int) -> int | None:
    """Which of the samples, newest first, is the first of a step."""
    steps = [sample.step for sample in reversed(snapshot.samples)]
    return steps.index(step) if step in steps and len(steps) == count else None
