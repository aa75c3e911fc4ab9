"""The live panel of a run: status, bar, curve, buttons and samples, which keep up with the run by themselves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from html import escape

import ipywidgets as widgets
from IPython.display import display

from studio.core.events import SampleSaved
from studio.core.runlog import RunSnapshot, RunState
from studio.core.train.job import TrainJob
from studio.core.train.requests import Request, is_asked
from studio.nb.training import POLL_SECONDS, TrainPanel, status_lines
from studio.view.plots import figure_png
from studio.view.progress import share
from studio.view.run_figures import draw_details, draw_run
from studio.view.run_lines import sample_line
from studio.view.words import Words

MAX_SAMPLES = 12
"""The newest are shown: a notebook keeps every video that it shows."""
_IDLE_SHARE = 4
"""Drawing rests this many times as long as it took, so that training has the processor."""


class LivePanel(TrainPanel):
    """A run that trains in the background, and widgets that follow it until it ends."""

    def __init__(self, job: TrainJob, w: Words) -> None:
        """`job` has been started."""
        super().__init__(job, w)
        wide = widgets.Layout(width="auto")
        self.stop = widgets.Button(description=w("train.stop"), layout=wide)
        self.pause = widgets.Button(description=w("train.pause"), layout=wide)
        self.sample_now = widgets.Button(description=w("train.sample_now"), layout=wide)
        self.save_now = widgets.Button(description=w("train.save_now"), layout=wide)
        self.stop.on_click(lambda _: self._press(self._stop))
        self.pause.on_click(lambda _: self._press(self._pause_or_go_on))
        self.sample_now.on_click(lambda _: self._press(self.job.sample_now))
        self.save_now.on_click(lambda _: self._press(self.job.save_now))
        self.status = widgets.HTML()
        self.bar = widgets.FloatProgress(max=1.0, layout=widgets.Layout(width="100%", max_width="792px"))
        self.chart, self.details = (_picture(), _picture())
        self.more = widgets.Accordion([self.details], titles=(w("train.more"),), selected_index=None)
        self.more.observe(lambda _: self.refresh(), names="selected_index")
        self.samples = widgets.HBox(layout=widgets.Layout(flex_flow="row wrap"))
        buttons = widgets.HBox(
            [self.stop, self.pause, self.sample_now, self.save_now], layout=widgets.Layout(flex_flow="row wrap")
        )
        self.box = widgets.VBox([self.status, self.bar, buttons, self.chart, self.more, self.samples])
        self._players: dict[str, widgets.VBox] = {}
        self._is_stopping = False
        self._complaint = ""
        self._shown: tuple[RunSnapshot, set[Request], bool, bool, str] | None = None
        self._drawing = threading.RLock()
        threading.Thread(target=self._follow, name=f"panel {self.run.name}", daemon=True).start()

    def refresh(self) -> None:
        """Shows the run as it stands; what has not changed is not drawn again."""
        with self._drawing:
            snapshot = self._reader.snapshot(self.run)
            asked = {request for request in Request if is_asked(self.run, request)}
            asked |= {Request.STOP} if self._is_stopping else set()
            is_open, is_alive = self.more.selected_index is not None, self.job.is_alive
            now = (snapshot, asked, is_open, is_alive, self._complaint)
            if now == self._shown:
                return
            is_new = self._shown is None or snapshot is not self._shown[0]
            self._shown = now
            lines = status_lines(snapshot, self._w)
            if is_alive:
                lines += map(escape, self._pending(snapshot, asked))
            self.status.value = "<br>".join([*lines, *([self._complaint] if self._complaint else [])])
            self.bar.value = share(snapshot)
            self._show_buttons(asked, is_alive)
            if is_new:
                self.chart.value = figure_png(draw_run(snapshot, self._w))
                self._show_samples(snapshot)
            if is_open:
                self.details.value = figure_png(draw_details(snapshot, self._w))

    def _ipython_display_(self) -> None:
        display(self.box)

    def _follow(self) -> None:
        """Keeps up with the run until it has ended."""
        while True:
            is_last = not self.job.is_alive
            began = time.monotonic()
            self.refresh()
            if is_last:
                return
            self.job.join(max(POLL_SECONDS, _IDLE_SHARE * (time.monotonic() - began)))

    def _press(self, action: Callable[[], None]) -> None:
        try:
            action()
            self._complaint = ""
        except OSError as error:
            self._complaint = escape(f"{self.run.path}: {error.strerror}.")
        self.refresh()

    def _stop(self) -> None:
        self._is_stopping = True
        self.job.stop()

    def _pause_or_go_on(self) -> None:
        if is_asked(self.run, Request.PAUSE):
            self.job.go_on()
        else:
            self.job.pause()

    def _pending(self, snapshot: RunSnapshot, asked: set[Request]) -> list[str]:
        """What it was asked for and has not done yet, in words."""
        is_paused = snapshot.state is RunState.PAUSED
        waits = [request for request in Request if request in asked and not (is_paused and request is Request.PAUSE)]
        return [self._w("nb.paused")] * is_paused + [self._w(f"train.asked_{request.value}") for request in waits]

    def _show_buttons(self, asked: set[Request], is_alive: bool) -> None:
        self.pause.description = self._w("train.continue" if Request.PAUSE in asked else "train.pause")
        done = {self.stop: Request.STOP, self.sample_now: Request.SAMPLE, self.save_now: Request.SAVE}
        for button in (self.pause, *done):
            button.disabled = not is_alive or Request.STOP in asked or done.get(button) in asked

    def _show_samples(self, snapshot: RunSnapshot) -> None:
        """The newest first."""
        newest = sorted(snapshot.samples, key=lambda sample: -sample.step)[:MAX_SAMPLES]
        players = [self._player(sample) for sample in newest if (self.run.path / sample.path).is_file()]
        self.samples.children = tuple(players)

    def _player(self, sample: SampleSaved) -> widgets.VBox:
        if sample.path not in self._players:
            video = widgets.Video.from_file(str(self.run.path / sample.path), autoplay=True, loop=True, width=256)
            said = escape(sample_line(sample, self._w))
            self._players[sample.path] = widgets.VBox([video, widgets.HTML(f"<small>{said}</small>")])
        return self._players[sample.path]


def _picture() -> widgets.Image:
    return widgets.Image(format="png", layout=widgets.Layout(max_width="100%"))
