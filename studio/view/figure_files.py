"""The figures and the series of a run as files."""

from __future__ import annotations

from pathlib import Path

from studio.core.runlog import RunFolder
from studio.core.train.disk import make_empty_folder, not_written
from studio.core.train.runs import write_csv
from studio.view.plots import save_figure
from studio.view.run_figures import draw_details, draw_run
from studio.view.words import Words


def save_figures(run: RunFolder, folder: Path, w: Words) -> tuple[Path, ...]:
    """Writes, each after the name of the run, -loss.png, -loss.svg, -details.svg and -steps.csv into a folder that is
    new or empty; returns their paths.

    Raises:
        ConfigError: the folder holds something already, or cannot be written.
    """
    snapshot = run.snapshot()
    loss, numbers = draw_run(snapshot, w), folder / f"{run.name}-steps.csv"
    drawn = {"loss.png": loss, "loss.svg": loss, "details.svg": draw_details(snapshot, w)}
    make_empty_folder(folder)
    try:
        files = [save_figure(figure, folder / f"{run.name}-{name}") for name, figure in drawn.items()]
    except OSError as error:
        raise not_written(folder, error) from error
    write_csv(run, numbers)
    return (*files, numbers)
