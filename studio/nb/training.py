"""A run in a notebook: it trains in the background, and its panel shows how it goes."""

from __future__ import annotations

from dataclasses import replace
from html import escape
from importlib.util import find_spec
from pathlib import Path

from IPython.display import HTML, DisplayHandle, Image, display

from studio.core.config import RunConfig
from studio.core.model.load import load_bundle
from studio.core.runlog import RunFolder, RunSnapshot, RunState
from studio.core.runwatch import RunReader
from studio.core.simpletuner import read_project
from studio.core.train.job import TrainJob
from studio.view.figure_files import save_figures
from studio.view.plots import figure_png
from studio.view.progress import attention_line, fit_line, progress_line
from studio.view.run_figures import draw_run
from studio.view.run_lines import held_out_line, overfit_line
from studio.view.words import Language, Words, words

POLL_SECONDS = 1.0


def train_panel(
    project: Path | str | RunConfig | RunFolder,
    *,
    steps: int | None = None,
    output_dir: Path | str = "runs",
    language: Language = "en",
) -> TrainPanel:
    """Starts a run, or goes on with one that ended half-way, and returns its panel at once: leave that as the last
    line of a cell.

    The run trains in a thread of its own. The panel keeps up with it, and its buttons are obeyed while no cell runs.
    Interrupting a cell never stops the run. Without ipywidgets the panel has no buttons, says so, and is drawn while
    `wait` waits.

    Raises StudioError.
    """
    resume = project if isinstance(project, RunFolder) else None
    if isinstance(project, RunFolder):
        config = project.config()
    else:
        config = project if isinstance(project, RunConfig) else read_project(Path(project)).run
        config = replace(config, output_dir=Path(output_dir))
    if steps is not None:
        config = replace(config, optim=replace(config.optim, max_train_steps=steps))
    job = TrainJob(config, lambda: load_bundle(config.model), resume=resume)
    job.start()
    if find_spec("ipywidgets") is None:
        return TrainPanel(job, words(language))
    from studio.nb.live import LivePanel

    return LivePanel(job, words(language))


class TrainPanel:
    """A run that trains in the background, and a status and a curve that are drawn while someone waits for it."""

    def __init__(self, job: TrainJob, w: Words) -> None:
        """`job` has been started."""
        assert job.folder is not None
        self.job = job
        self.run = job.folder
        self._w = w
        self._reader = RunReader()
        self._outputs: tuple[DisplayHandle, ...] = ()

    def wait(self) -> RunFolder:
        """Waits for the end of the run and returns it. Interrupting ends the waiting, not the run."""
        try:
            while True:
                is_last = not self.job.is_alive
                self.refresh()
                if is_last:
                    break
                self.job.join(POLL_SECONDS)
        except KeyboardInterrupt:
            display(HTML(f"<p>{escape(self._w('nb.goes_on'))}</p>"))
        return self.run

    def save_figures(self, folder: Path | str) -> tuple[Path, ...]:
        """The curves as PNG and SVG and the series as CSV, in a folder that is new or empty. Raises ConfigError."""
        return save_figures(self.run, Path(folder), self._w)

    def refresh(self) -> None:
        """Draws the run as it stands."""
        snapshot = self._reader.snapshot(self.run)
        status = HTML("<br>".join(status_lines(snapshot, self._w)))
        picture = Image(figure_png(draw_run(snapshot, self._w)))
        if self._outputs:
            for handle, content in zip(self._outputs, (status, picture), strict=True):
                handle.update(content)
        else:
            self._outputs = DisplayHandle(), DisplayHandle()
            for handle, content in zip(self._outputs, (status, picture), strict=True):
                handle.display(content)

    def _ipython_display_(self) -> None:
        display(HTML(f"<p>{escape(self._w('nb.no_widgets'))}</p>"))
        self.refresh()


def status_lines(snapshot: RunSnapshot, w: Words) -> list[str]:
    """State and progress, what it has learnt, attention, what was predicted, notices, and why it failed: HTML."""
    lines = [f"<b>{escape(w(f'state.{snapshot.state.value}'))}</b> {escape(progress_line(snapshot, w))}"]
    said = [held_out_line(snapshot, w), overfit_line(snapshot, snapshot.checkpoints, w)]
    said += [attention_line(snapshot, w), fit_line(snapshot, w)]
    said += snapshot.started.notices if snapshot.started else ()
    lines += [escape(line) for line in said if line]
    if snapshot.state is RunState.INTERRUPTED:
        lines.append(escape(w("progress.interrupted")))
    if snapshot.failure:
        lines.append(f"{escape(snapshot.failure.message)} <b>{escape(snapshot.failure.remedy)}</b>")
    return lines
