"""What the rooms do behind their buttons, without a browser."""

import json
import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from studio.core.config import LoraSettings, ModelConfig
from studio.core.errors import JobAlreadyRunning
from studio.core.events import FitPredicted, RunStarted
from studio.core.runlog import RunFolder
from studio.ui import live_markup, markup
from studio.ui.clip_pictures import preview
from studio.ui.plan_panel import run_config, with_rank
from studio.ui.settings import AppSettings
from studio.ui.workshop import Workshop
from studio.view.words import words

pytestmark = [
    # gradio imports starlette's test client, which warns; it is not used here
    pytest.mark.filterwarnings("ignore::DeprecationWarning:starlette.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio.*"),
]

PICTURE = np.zeros((64, 64, 3), np.uint8)
TINY = ModelConfig(source="tiny", device="cpu")


@pytest.fixture
def make_workshop(tmp_path):
    """make_workshop(**settings): a workshop on the tiny checkpoint, its runs in a new folder."""

    def make(**settings):
        return Workshop(AppSettings(**{"model": TINY, "output_dir": tmp_path / "runs", **settings}))

    return make


@pytest.mark.parametrize(("alpha", "kept"), [(16.0, 16.0), (8.0, 4.0), (None, None)])
def test_alpha_stays_unless_it_was_the_rank(alpha, kept):
    lora = with_rank(LoraSettings(rank=8, alpha=alpha, dropout=0.1), 4)
    assert lora == LoraSettings(rank=4, alpha=kept, dropout=0.1)


def test_runs_are_where_the_project_wants_them(make_workshop, project, tmp_path):
    workshop = make_workshop()
    plain = workshop.open(str(project))
    assert (plain.output_dir, workshop.output_dir) == (None, workshop.settings.output_dir)
    config = json.loads((project / "config.json").read_text()) | {"output_dir": "out"}
    config["data_backend_config"] = str(project / "multidatabackend.json")
    (tmp_path / "config.json").write_text(json.dumps(config))
    opened = workshop.open(str(tmp_path))
    run = RunFolder.create(opened.project.run.output_dir, opened.project.run)
    assert workshop.current_run() == run
    assert workshop.output_dir == tmp_path / "out"
    assert run_config(workshop, str(tmp_path), (8, 1e-3, 4, 1, 1), words("en"))[0].output_dir == tmp_path / "out"


def test_the_model_of_a_live_run_is_not_loaded_twice(make_workshop, monkeypatch):
    loaded = []
    monkeypatch.setattr("studio.ui.workshop.load_bundle", lambda model: loaded.append(model) or object())
    workshop, job = make_workshop(), SimpleNamespace(is_alive=False, start=lambda: "folder")
    other = replace(TINY, dtype="bf16")
    workshop._start(job, TINY)
    job.is_alive = True
    held = workshop.bundle(TINY)
    workshop.bundle(other)
    assert workshop.bundle(TINY) is held
    job.is_alive = False
    workshop.bundle(replace(TINY, dtype="fp16"))
    assert [workshop.loaded(model) is not None for model in (TINY, other)] == [False, False]
    assert loaded == [TINY, other, replace(TINY, dtype="fp16")]


def test_one_run_at_a_time_whatever_folder_it_is_in_and_the_other_is_told_which(make_workshop, tmp_path):
    run = RunFolder(tmp_path / "20261128-101500-3fa9")
    workshop, job = make_workshop(), SimpleNamespace(is_alive=False, start=lambda: run, folder=run)
    workshop._start(job, TINY)
    job.is_alive = True
    with pytest.raises(JobAlreadyRunning, match="20261128-101500-3fa9"):
        workshop._start(job, TINY)


def test_a_clip_that_was_changed_has_a_new_preview(make_workshop, project):
    workshop = make_workshop()
    pair = workshop.open(str(project)).report.pairs[0]
    before = preview(workshop.folder, pair)
    assert preview(workshop.folder, pair) == before
    state = pair.clip.path.stat()
    os.utime(pair.clip.path, ns=(state.st_atime_ns, state.st_mtime_ns + 10**9))
    assert preview(workshop.folder, pair) != before


def test_what_a_run_takes_is_measured_with_the_fields_of_the_page(make_workshop, project):
    workshop = make_workshop()
    opened = workshop.open(str(project))
    config, report = run_config(workshop, str(opened.path), (8, 1e-3, 2, 3, 1), words("en"))
    config = replace(config, model=TINY)
    progress = []
    fit = workshop.measure(config, report, lambda *of: progress.append(of))
    assert progress == [(0, 2), (1, 2), (2, 2)]
    assert [f.batch_size for f in sorted(fit.buckets, key=lambda f: -f.batch_size)] == [3, 1]
    shown = markup.fit_card(fit, None, words("es"))
    assert "9f 64x64" in shown
    assert "La memoria solo se mide en GPU." in shown
    workshop.job = SimpleNamespace(is_alive=True)
    with pytest.raises(JobAlreadyRunning):
        workshop.measure(config, report, lambda *_: None)


def test_a_run_that_is_too_large_is_warned_of_while_it_lives(make_workshop, project):
    workshop = make_workshop()
    opened = workshop.open(str(project))
    run = RunFolder.create(workshop.output_dir, opened.project.run)
    started = RunStarted(
        num_steps=1, num_pairs=1, device="cuda", dtype="bfloat16", attention="dense", attention_reason="so it is",
        notices=("musubi_blocks_to_swap 2 saves <no> memory.",),
    )  # fmt: skip
    fit = FitPredicted(
        worst="93f 480x832", batch_size=1, peak_bytes=44 * 2**30, capacity_bytes=24 * 2**30, seconds_per_step=12.0,
        fits=False, change="Set musubi_blocks_to_swap to 40.", keeps_attention=False,
    )  # fmt: skip
    with run.locked():
        for event in (started, fit):
            run.append(event)
        shown = live_markup.run_status(run.name, run.snapshot(), words("en"))
    assert "Predicted 44.0 of 24.0 GiB for 93f 480x832, 12.0 s a step" in shown
    assert "This may run out of memory." in shown
    assert "Set musubi_blocks_to_swap to 40." in shown
    assert "saves &lt;no&gt; memory" in shown
