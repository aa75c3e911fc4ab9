"""The right column of the room Train: the curve of a run, its figures, its samples and its clips, as they come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from studio.core.events import SampleSaved
from studio.core.runlog import RunFolder, RunSnapshot, RunState
from studio.core.train.runs import sample_file
from studio.ui import live_markup, markup
from studio.ui.drawings import Drawing
from studio.ui.workshop import Workshop
from studio.view.run_figures import Axis, ChartView, shown_range
from studio.view.run_lines import sample_line
from studio.view.words import Words

MOST_STEPS = 12
"""Steps whose samples are shown, the newest ones."""
FARTHEST = 1e12
"""Steps or seconds: a run ends long before."""
MORE, CLIPS = "more", "clips"
"""What may be unfolded, as the browser keeps it."""

CHOOSE_CLIP = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-clip]');
  if (button) trigger('click', {clip: button.dataset.clip});
});
"""

Kept = dict[str, Any] | None
"""How a visitor wants the chart, as their browser keeps it: whatever may be in it."""


@dataclass(frozen=True, slots=True)
class LiveSeen:
    """What a page shows of a run; what is the same is not sent again."""

    run: RunFolder
    view: ChartView
    ends: tuple[float, float]
    """Of the x axis, as the fields show them."""
    unfolded: tuple[bool, bool]
    """The other curves, and the clips."""
    chart: Drawing | None
    more: Drawing | None
    clips: Drawing | None
    samples: SampleGrid
    state: tuple[float | None, RunState]
    """When the last event came, and where the run stands."""


@dataclass(frozen=True, slots=True)
class LiveView:
    """The parts that the room and the page need."""

    outputs: list[Any]
    look: Callable[[RunFolder, RunSnapshot, Kept], LiveSeen]
    """look(run, snapshot, kept): what there is to show; draws what has to be drawn."""
    show: Callable[[LiveSeen, LiveSeen | None, RunSnapshot], list[Any]]
    """show(now, before, snapshot) -> updates for `outputs`; `before` is None for a page that shows nothing yet."""
    clear: Callable[[], list[Any]]
    """clear() -> updates for `outputs` where there is no run."""
    chart: gr.HTML
    """A click on a mark says {"checkpoint": step} or {"sample": step}."""
    clips: gr.HTML
    """A click says {"clip": "<dataset id>/<name>"}."""
    to_sample: gr.Button


def build_live_view(
    workshop: Workshop, w: Words, kept: gr.BrowserState, seen: gr.State, live: Callable[[Any], LiveSeen | None]
) -> LiveView:
    """Lays the column out, where it is called, and connects what changes `kept`; `live(seen)` is what a page shows."""
    facts = gr.HTML(elem_id="run-facts")
    chart = gr.HTML(
        markup.empty_state(w("train.no_run")),
        js_on_load=Path(__file__).with_name("chart.js").read_text(encoding="utf-8"),
        elem_id="loss",
    )
    with gr.Row(visible=False, elem_classes="chart-tools") as tools:
        axis = gr.Radio(
            [(w("train.by_step"), Axis.STEP.value), (w("train.by_clock"), Axis.CLOCK.value)], value=Axis.STEP.value,
            label=w("train.by"), scale=0, min_width=176, elem_id="chart-axis",
        )  # fmt: skip
        first = gr.Number(label=w("train.from_step"), scale=0, min_width=112, elem_id="chart-from")
        last = gr.Number(label=w("train.to_step"), scale=0, min_width=112, elem_id="chart-to")
        whole = gr.Button(w("train.whole"), size="sm", scale=0, min_width=96, interactive=False, elem_id="chart-whole")
        gr.HTML(markup.note(w("train.zoom_hint")), elem_id="chart-hint")
        log = gr.Checkbox(label=w("train.log"), container=False, scale=0, min_width=120, elem_id="chart-log")
    with gr.Accordion(w("train.more"), open=False, visible=False, elem_id="more-curves") as more_box:
        more = gr.HTML()
    samples = gr.Gallery(
        label=w("train.samples"), visible=False, columns=4, object_fit="contain", height="auto", buttons=[],
        fit_columns=False, elem_id="run-samples",
    )  # fmt: skip
    samples_note = gr.HTML(markup.note(w("train.sample_note")), visible=False)
    with gr.Accordion(w("train.clips"), open=False, visible=False, elem_id="clip-losses") as clips_box:
        clips = gr.HTML(js_on_load=CHOOSE_CLIP)
    with gr.Row(visible=False, elem_classes="action-row") as result:
        lora = gr.DownloadButton(w("train.lora"), elem_id="lora")
        to_sample = gr.Button(w("train.to_sample"), elem_id="to-sample")

    def look(run: RunFolder, snapshot: RunSnapshot, wanted: Kept) -> LiveSeen:
        view, is_narrow = chart_view(wanted, run.name), _is_set(wanted, "narrow")
        unfolded = _is_set(wanted, MORE), _is_set(wanted, CLIPS)

        def drawn(what: str, draw: Callable[[], str], *of: Any) -> Drawing | None:
            if not snapshot.losses:
                return None
            state, key = (snapshot.updated, snapshot.state), (run.path, w.language, what, *of)
            return workshop.drawings.get(key, state, draw, is_live=snapshot.state.is_live)

        how = (view, is_narrow)
        return LiveSeen(
            run=run,
            view=view,
            ends=ends_of(snapshot, view),
            unfolded=unfolded,
            chart=drawn("chart", lambda: live_markup.chart(snapshot, view, w, is_narrow=is_narrow), *how),
            more=drawn("more", lambda: live_markup.details(snapshot, view, w, is_narrow=is_narrow), *how)
            if unfolded[0]
            else None,
            clips=drawn("clips", lambda: live_markup.clip_table(snapshot, w)) if unfolded[1] else None,
            samples=SampleGrid.of(run, snapshot, is_narrow),
            state=(snapshot.updated, snapshot.state),
        )

    def show(now: LiveSeen, before: LiveSeen | None, snapshot: RunSnapshot) -> list[Any]:
        if before is not None and before.run != now.run:
            before = None
        is_first = before is None or (before.chart is None) != (now.chart is None)
        return [
            gr.skip() if before and before.state == now.state else live_markup.facts_line(snapshot, w),
            _html(now.chart, before, "chart", markup.empty_state(w("train.no_steps"))),
            gr.update(visible=now.chart is not None) if is_first else gr.skip(),
            *chart_tools(now, before, w),
            gr.update(visible=now.chart is not None, open=now.unfolded[0]) if is_first else gr.skip(),
            _html(now.more, before, "more"),
            *_samples(workshop, now, before, w),
            gr.update(visible=now.chart is not None, open=now.unfolded[1]) if is_first else gr.skip(),
            _html(now.clips, before, "clips"),
            *(_result(workshop, now, snapshot) if before is None or before.state != now.state else [gr.skip()] * 2),
        ]

    def clear() -> list[Any]:
        hidden, same = gr.update(visible=False), gr.skip()
        empty = markup.empty_state(w("train.no_run"))
        return ["", empty, hidden, *[same] * 5, hidden, "", hidden, hidden, hidden, "", hidden, None]

    def change(**fields: Any) -> Callable[[Kept], dict[str, Any]]:
        return lambda wanted: {**(wanted or {}), **fields}

    def zoom(wanted: Kept, last_seen: Any, event: gr.EventData) -> Any:
        now = live(last_seen)
        return gr.skip() if now is None else _with_span(wanted, now, event._data.get("span"))

    def type_range(wanted: Kept, last_seen: Any, low: float | None, high: float | None) -> Any:
        now = live(last_seen)
        if now is None:
            return gr.skip()
        shown = now.ends
        typed = (shown[0] if low is None else low, shown[1] if high is None else high)
        if low is None and high is None:
            return change(span=None)(wanted) if now.view.span else gr.skip()
        # What was only rounded for the field is left as it is.
        return gr.skip() if typed == shown else _with_span(wanted, now, [_unit(now.view.axis) * end for end in typed])

    def open_sample(last_seen: Any, event: gr.EventData) -> Any:
        now, step = live(last_seen), event._data.get("sample")
        index = now.samples.index_of(step) if now is not None else None
        return gr.skip() if index is None else gr.Gallery(selected_index=index)

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
    axis.input(lambda wanted, by: {**(wanted or {}), "axis": by, "span": None}, [kept, axis], kept, **quiet)
    log.input(lambda wanted, on: {**(wanted or {}), "log": on}, [kept, log], kept, **quiet)
    chart.select(zoom, [kept, seen], kept, **quiet)
    for field in (first, last):
        field.submit(type_range, [kept, seen, first, last], kept, **quiet)
        field.blur(type_range, [kept, seen, first, last], kept, **quiet)
    whole.click(change(span=None), kept, kept, **quiet)
    chart.double_click(change(span=None), kept, kept, **quiet)
    for box, name in ((more_box, MORE), (clips_box, CLIPS)):
        box.expand(change(**{name: True}), kept, kept, **quiet)
        box.collapse(change(**{name: False}), kept, kept, **quiet)
    chart.click(open_sample, seen, samples, **quiet)
    outputs = [facts, chart, tools, axis, log, first, last, whole, more_box, more, samples, samples_note]
    return LiveView(
        outputs=[*outputs, clips_box, clips, result, lora],
        look=look,
        show=show,
        clear=clear,
        chart=chart,
        clips=clips,
        to_sample=to_sample,
    )


def chart_view(wanted: Kept, run: str) -> ChartView:
    """What a browser keeps, as far as it makes sense; a zoom is of one run."""
    wanted = wanted if isinstance(wanted, dict) else {}
    axis = Axis.CLOCK if wanted.get("axis") == Axis.CLOCK.value else Axis.STEP
    span = wanted.get("span") if wanted.get("run") == run else None
    return ChartView(axis=axis, log=_is_set(wanted, "log"), span=_span(span))


@dataclass(frozen=True, slots=True)
class SampleGrid:
    """Samples in columns: the same start frame in the same one, first without the LoRA, then the newest steps."""

    base: tuple[Path | None, ...]
    """A video a column."""
    rows: tuple[tuple[int, tuple[SampleSaved | None, ...]], ...]
    """(step, a sample a column)."""
    width: int
    """Videos in a row of the page: a multiple of the columns, as far as there is room."""
    is_coming: bool
    """What is missing in the newest row may still come."""

    @staticmethod
    def of(run: RunFolder, snapshot: RunSnapshot, is_narrow: bool) -> SampleGrid:
        """The grid of a run."""
        columns: dict[str, SampleSaved] = {}
        by_step: dict[int, dict[str, SampleSaved]] = {}
        for sample in snapshot.samples:
            name = Path(sample.path).name.partition(f"step-{sample.step:06d}-")[2]
            columns[name] = sample
            by_step.setdefault(sample.step, {})[name] = sample
        rows = [(step, tuple(by_step[step].get(name) for name in columns)) for step in sorted(by_step, reverse=True)]
        base = tuple(run.path / sample.base if sample.base else None for sample in columns.values())
        number, room = max(1, len(columns)), 2 if is_narrow else 4
        width = number * (room // number) if number <= room else room if number % room == 0 else number
        is_coming = snapshot.state.is_live and bool(rows) and None in rows[0][1]
        return SampleGrid(base if any(base) else (), tuple(rows[:MOST_STEPS]), width, is_coming)

    def index_of(self, step: Any) -> int | None:
        """Where the first sample of a step stands among all; None: it is not shown."""
        steps = [of_row for of_row, _ in self.rows]
        return len(self.base) + steps.index(step) * len(self.rows[0][1]) if step in steps else None


def _samples(workshop: Workshop, now: LiveSeen, before: LiveSeen | None, w: Words) -> list[Any]:
    """Updates of the gallery and of what explains it."""
    grid = now.samples
    if before is not None and before.samples == grid:
        return [gr.skip(), gr.skip()]
    shown: list[tuple[str, str]] = []
    for file in grid.base:
        is_there = file is not None and file.is_file() and file.resolve().is_relative_to(now.run.path.resolve())
        shown.append((workshop.shown(file) if file and is_there else workshop.no_picture, w("train.sample_base")))
    for place, (step, row) in enumerate(grid.rows):
        for sample in row:
            file = sample_file(now.run, sample) if sample else None
            if sample is not None and file is not None:
                shown.append((workshop.shown(file), sample_line(sample, w)))
            else:
                told = w("train.sample_coming") if place == 0 and grid.is_coming else w("train.sample_missing")
                shown.append((workshop.no_picture, f"{w('train.sample_step', step=step)} · {told}"))
    return [
        gr.update(value=shown, visible=bool(grid.rows), columns=grid.width),
        gr.update(visible=bool(grid.rows)),
    ]


def _html(now: Drawing | None, before: LiveSeen | None, name: str, otherwise: str = "") -> Any:
    """The drawing, where the page has another one."""
    if before is not None and getattr(before, name) is now:
        return gr.skip()
    return now.html if now else otherwise


def ends_of(snapshot: RunSnapshot, view: ChartView) -> tuple[float, float]:
    """Both ends of the x axis as the fields show them, steps or minutes."""
    first, last = (round(end / _unit(view.axis), 2) for end in shown_range(snapshot, view))
    return first, last


def chart_tools(now: LiveSeen, before: LiveSeen | None, w: Words) -> list[Any]:
    """Updates of axis, scale, both ends of what is shown, and the button for all."""
    view, (first, last), of = now.view, now.ends, now.view.axis.value
    if before is not None and before.view == view:
        # The run has grown, or knows its steps by now; what someone types into the first field is left alone.
        return [*[gr.skip()] * 3, last if before.ends != now.ends else gr.skip(), gr.skip()]
    return [
        of,
        view.log,
        gr.update(value=first, label=w(f"train.from_{of}")),
        gr.update(value=last, label=w(f"train.to_{of}")),
        gr.update(interactive=view.span is not None),
    ]


def _result(workshop: Workshop, now: LiveSeen, snapshot: RunSnapshot) -> list[Any]:
    """Updates of the row for the LoRA, and of its file."""
    lora = snapshot.lora if snapshot.lora is not None and snapshot.lora.is_file() else None
    shown = workshop.shown(lora, f"{now.run.name}.safetensors") if lora else None
    return [gr.update(visible=lora is not None), shown]


def _with_span(wanted: Kept, now: LiveSeen, span: Any) -> dict[str, Any]:
    return {**(wanted or {}), "run": now.run.name, "span": _span(span)}


def _span(value: Any) -> tuple[float, float] | None:
    """Two numbers in order that a figure has a place for, or nothing."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    if not all(isinstance(end, int | float) and abs(end) <= FARTHEST for end in value):
        return None
    low, high = sorted(float(end) for end in value)
    return (low, high) if high > low else None


def _unit(axis: Axis) -> float:
    """Of the fields: a step, or a minute in seconds."""
    return 60.0 if axis is Axis.CLOCK else 1.0


def _is_set(wanted: Kept, name: str) -> bool:
    return isinstance(wanted, dict) and wanted.get(name) is True
