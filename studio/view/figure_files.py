"""The figures and the series of a run as files."""

from __future__ import annotations

from pathlib import Path

from studio.core.errors import ConfigError
from studio.core.runlog import RunFolder
from studio.core.train.runs import write_csv
from studio.view.plots import save_figure
from studio.view.run_figures import draw_details, draw_run
from studio.view.words import Words


def save_figures(run: RunFolder, folder: Path, w: Words) -> tuple[Path, ...]:
    """Writes loss.png, loss.svg, details.svg and steps.csv into a folder that is new or empty; returns their paths.

    Raises:
        ConfigError: the folder holds something already, or cannot be written.
    """
    snapshot = run.snapshot()
    loss = draw_run(snapshot, w)
    drawn = {"loss.png": loss, "loss.svg": loss, "details.svg": draw_details(snapshot, w)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"{folder.name} holds something already.", "Give a new folder; nothing is overwritten.")
        files = [save_figure(figure, folder / name) for name, figure in drawn.items()]
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}.", "Choose another place.") from error
    write_csv(run, folder / "steps.csv")
    return (*files, folder / "steps.csv")
