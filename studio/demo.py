"""The main job, end to end, on the tiny checkpoint: check, train, and the same start frame before and after."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import imageio.v3 as iio
import numpy as np

from studio.core.assets import asset_path
from studio.core.config import RunConfig
from studio.core.data.check import check_project
from studio.core.data.dataset import validation_pairs
from studio.core.data.decode import read_image
from studio.core.errors import ConfigError
from studio.core.model.load import ModelBundle, load_bundle
from studio.core.model.lora import LoraFile
from studio.core.runlog import RunFolder, RunState
from studio.core.sample.sampler import SampleRequest, sample
from studio.core.sample.video import make_folder, write_video
from studio.core.train.job import run_inline
from studio.core.types import DatasetReport
from studio.view.plots import save_figure
from studio.view.run_figures import draw_run
from studio.view.sheets import contact_sheet
from studio.view.terminal import SampleBar, TrainBar, print_report, write
from studio.view.words import words

VIDEOS = ("before.mp4", "after.mp4", "side_by_side.mp4")


def run_demo(out: Path | None, *, should_stop: Callable[[], bool]) -> bool:
    """Runs the demo into the new folder `out`, which it names; True when it came to its end.

    Raises ConfigError when `out` holds something already.
    """
    started = time.perf_counter()
    out = out or Path("outputs") / f"demo-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(
            f"{out} is there already and not an empty folder.", "Give another --out; nothing is overwritten."
        )
    make_folder(out)

    write("1. The demo dataset, and what a check says of a broken one")
    project, report = check_project(asset_path("shapes"))
    print_report(report)
    write("\n   The broken one:")
    print_report(check_project(asset_path("shapes_broken"))[1])

    config = replace(project.run, output_dir=out / "runs")
    bundle = load_bundle(config.model)
    request = validation_request(config, report)
    write(f"\n2. Before training: {request.prompt!r}")
    if not _render(request, bundle, out / "before.mp4", "before", should_stop):
        return False

    write("\n3. Training a LoRA")
    folder = run_inline(config, lambda: bundle, on_event=TrainBar().show, should_stop=should_stop, report=report)
    if folder.state() is not RunState.FINISHED:
        return False

    write("\n4. After training, the same start frame, prompt and seed")
    lora = save_results(out, folder)
    if not _render(replace(request, loras=(LoraFile(path=lora),)), bundle, out / "after.mp4", "after", should_stop):
        return False
    compare(out, bundle.defaults.fps)
    write(f"\nDone in {time.perf_counter() - started:.0f} s. Everything is in {out}:")
    for file in (*VIDEOS, "contact_sheet.png", "loss.png", lora.relative_to(out)):
        write(f"  {file}")
    return True


def validation_request(config: RunConfig, report: DatasetReport) -> SampleRequest:
    """The first pair of the validation dataset, as a sample."""
    pair = validation_pairs(report, config)[0]
    assert pair.start_frame is not None
    return SampleRequest(prompt=pair.captions[0], start_frame=read_image(pair.start_frame.path), seed=config.seed)


def _render(
    request: SampleRequest, bundle: ModelBundle, out: Path, label: str, should_stop: Callable[[], bool]
) -> bool:
    """True when the video was written."""
    bar = SampleBar(label)
    for event in sample(request, bundle, out, should_stop=should_stop):
        bar.show(event)
    return out.exists()


def save_results(out: Path, folder: RunFolder) -> Path:
    """Copies the LoRA out of the run and draws its loss; returns the LoRA file."""
    snapshot = folder.snapshot()
    assert snapshot.lora is not None
    shutil.copytree(snapshot.lora.parent, out / "lora")
    save_figure(draw_run(snapshot, words("en")), out / "loss.png")
    return out / "lora" / snapshot.lora.name


def compare(out: Path, fps: float) -> None:
    """Writes the two videos beside one another, as one video and as a contact sheet."""
    before, after = (iio.imread(out / name) for name in VIDEOS[:2])
    gap = np.full((*before.shape[:2], 8, 3), 255, dtype=np.uint8)
    write_video(
        out / VIDEOS[2], np.concatenate((before, gap, after), axis=2), fps, {"left": "before", "right": "after"}
    )
    sheet = contact_sheet([("before the LoRA", before), ("with the LoRA", after)])
    save_figure(sheet, out / "contact_sheet.png")
