"""The room Train starts a run on several GPUs as a program of its own, and shows its folder (two processes, CPU)."""

import json
import os
import shutil
import signal
import threading
import time
import traceback
from dataclasses import replace

import gradio as gr
import psutil
import pytest
import torch

from studio.core.config import ModelConfig
from studio.core.errors import ConfigError, JobAlreadyRunning
from studio.core.runlog import RunFolder, RunState, list_runs, run_at
from studio.core.settings_text import SettingsText
from studio.core.train import launch
from studio.core.train.checkpoint_files import newest_whole
from studio.core.train.onerun import TrainingLock
from studio.core.train.preflight import preflight
from studio.ui.plan_panel import run_config
from studio.ui.run_controls import Action, build_run_controls
from studio.ui.settings import AppSettings
from studio.ui.settings_editor import use_texts
from studio.ui.workshop import Workshop
from studio.view.plan import plan_rows
from studio.view.words import words
from tests.faces.conftest import CONFIG, DATASETS, PROCESSES_OF_A_ROOM
from tests.two_processes import environment

pytestmark = PROCESSES_OF_A_ROOM

SECONDS = 120
"""A deadline, not a time that is asked for."""
CPU = ModelConfig(source="tiny", device="cpu")
W = words("en")


@pytest.fixture
def room(project, tmp_path, monkeypatch):
    """room(num_gpus): workshop, path of a project without config.json, and the head of the page."""
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    made = []

    def make(num_gpus=2):
        folder = tmp_path / "hops"
        if not folder.exists():
            shutil.copytree(project, folder)
            (folder / "config.json").unlink()
        workshop = Workshop(AppSettings(model=CPU, output_dir=tmp_path / "runs", num_gpus=num_gpus))
        made.append(workshop)
        with gr.Blocks():
            head = build_run_controls(workshop, W)
        workshop.open(str(folder))
        return workshop, str(folder), head

    yield make
    for process in processes_of(tmp_path):
        process.kill()
    for workshop in made:
        if workshop.launched:
            workshop.launched.process.wait(10)


def looked(workshop, head):
    """(run, standing, HTML of the head, its one button) as the page would show them now."""
    run = workshop.current_run()
    snapshot = workshop.snapshot(run)
    standing = head.look(run, snapshot)
    status, button, *_ = head.show(standing, snapshot, True, 1)
    return run, standing, status, button


def processes_of(folder):
    """Those that train a run inside, and who started them, which may have no parent any more."""
    return [
        process for process in psutil.process_iter(["cmdline"])
        if any(part.startswith(f"{folder}{os.sep}") for part in process.info["cmdline"] or ())
    ]  # fmt: skip


def in_an_app_that_is_killed(work):
    """Does `work` in a copy of this process, which is then killed as by the kernel."""
    copy = os.fork()
    if not copy:
        try:
            work()
            os.kill(os.getpid(), signal.SIGKILL)
        except BaseException:  # noqa: BLE001 it must not go on as this test
            traceback.print_exc()
        finally:
            os._exit(1)
    deadline = time.monotonic() + SECONDS
    while not (ended := os.waitpid(copy, os.WNOHANG))[0] and time.monotonic() < deadline:
        time.sleep(0.05)
    if not ended[0]:
        os.kill(copy, signal.SIGKILL)
        os.waitpid(copy, 0)
    assert ended[0], "the copy hangs"
    assert os.waitstatus_to_exitcode(ended[1]) == -signal.SIGKILL, "see what it printed"


def until(condition, run):
    deadline = time.monotonic() + SECONDS
    while not condition():
        log = run.path / launch.LOG_FILE
        assert time.monotonic() < deadline, log.read_text() if log.exists() else "no log"
        time.sleep(0.1)


def test_two_processes_are_begun_with_what_the_page_has_in_use_and_outlive_the_app(room):
    workshop, path, head = room()
    texts = SettingsText(json.dumps(CONFIG | {"lora_alpha": 2}), json.dumps(DATASETS))
    for _ in use_texts(workshop, workshop.opened[path], texts, threading.Event(), lambda _: None):
        pass
    config, report = run_config(workshop, path, (10_000, 2e-3, 3, 1, 5, 2, True), W)

    def start():
        run = workshop.train(config, report)
        shown, _, status, button = looked(workshop, head)
        assert shown == run
        assert "2 processes are starting, one on each GPU" in status
        assert not button["interactive"]
        with pytest.raises(JobAlreadyRunning, match=run.name):
            workshop.train(config, report)

    in_an_app_that_is_killed(start)
    workshop, path, head = room()
    (run,) = list_runs(workshop.output_dir)
    until(lambda: workshop.snapshot(run).step >= 2, run)
    shown, standing, status, _ = looked(workshop, head)
    assert shown == run
    assert standing.action is Action.STOP
    assert "starting" not in status
    assert "Another process trains this run" in status
    assert "up to 2 clips of one bucket, 1 for each of 2 processes" in status
    assert "lies in 2 parts" in status
    with pytest.raises(JobAlreadyRunning, match=run.name):
        workshop.train(config, report)
    seen = workshop.snapshot(run).losses
    until(lambda: len(workshop.snapshot(run).losses) > len(seen), run)
    workshop.stop(run)
    until(lambda: not processes_of(run.path.parent), run)

    _, standing, status, button = looked(workshop, head)
    assert workshop.snapshot(run).state is RunState.STOPPED
    assert standing.action is Action.CONTINUE
    assert button["interactive"]
    assert newest_whole(run.path / "checkpoints") is not None
    used = run.config()
    assert (used.num_processes, used.is_sharded, used.seed) == (2, True, 5)
    assert (used.optim.learning_rate, used.lora.rank, used.lora.alpha) == (2e-3, 3, 2)
    assert list_runs(workshop.output_dir) == (run,)


def test_what_ends_the_processes_before_they_begin_is_the_runs_last_event(room):
    asked = torch.cuda.device_count() + 2
    workshop, path, head = room(asked)
    config, report = run_config(workshop, path, (2, 1e-3, 2, 1, 1, asked, False), W)
    run = workshop.train(replace(config, model=replace(CPU, device="auto")), report)
    until(lambda: workshop.snapshot(run).state is RunState.FAILED, run)
    _, standing, status, button = looked(workshop, head)
    assert f"{asked} GPUs were asked for" in status
    assert standing.action is Action.CONTINUE
    assert button["interactive"]


@pytest.mark.parametrize(("here", "taken"), [(8, 4), (3, 3), (1, None), (0, None)])
def test_a_run_goes_on_with_as_many_as_it_had_or_as_are_here(room, monkeypatch, here, taken):
    workshop, path, _ = room(here)
    config, _ = run_config(workshop, path, (2, 1e-3, 2, 1, 1, 4, True), W)
    run, started = RunFolder.create(workshop.output_dir, config), []
    monkeypatch.setattr("studio.ui.workshop.launch", lambda *of, **how: started.append((*of, how)))
    monkeypatch.setattr(Workshop, "_start", lambda *_: "in this process")
    assert workshop.resume(run) == ("in this process" if taken is None else run)
    assert started == ([] if taken is None else [(run, taken, {"is_sharded": True})])


def test_where_another_run_is_going_on_no_run_is_made(room):
    workshop, path, _ = room()
    config, report = run_config(workshop, path, (2, 1e-3, 2, 1, 1, 2, False), W)
    lock = TrainingLock(config)
    try:
        with pytest.raises(JobAlreadyRunning):
            workshop.train(config, report)
    finally:
        lock.release()
    assert list_runs(workshop.output_dir) == ()
    assert workshop.launched is None


def test_the_command_is_the_documented_one_and_says_its_last_sentence(tmp_path, project):
    run = RunFolder(tmp_path / "20261128-101500-3fa9")
    command = launch.command(run, 4, is_sharded=True)[1:]
    assert command == ["-m", "studio", "train", "--gpus", "4", "--shard", "--config", str(run.path)]
    assert "--shard" not in launch.command(run, 2, is_sharded=False)
    assert run_at(project) is None, "a project is no run"
    log = tmp_path / "log"
    assert launch.last_sentence(log) == ""
    log.write_text("Old.\nThe port is in use. Give another.\n[W1128 ProcessGroup.cpp] destroy\n\n")
    assert launch.last_sentence(log) == "The port is in use. Give another."
    assert launch.last_sentence(log, len("Old.\nThe port is in use. Give another.\n")) == ""


def test_the_plan_says_how_a_step_is_shared(room):
    workshop, path, _ = room(4)
    config, report = run_config(workshop, path, (8, 1e-3, 2, 2, 1, 3, True), W)
    plan = preflight(replace(config, optim=replace(config.optim, gradient_accumulation_steps=2)), report)
    assert (plan.num_processes, plan.batch_size, plan.effective_batch) == (3, 2, 12)
    rows = dict(plan_rows(plan, W))
    assert rows["GPUs"] == (
        "3: a step learns from up to 12 clips, 2 at a time on each. "
        "Each holds a part of the base; whether that fits is seen in the first step."
    )
    assert rows["Idle GPUs"] == "one size has too few clips for all of them: fewer GPUs are as fast there"
    two, _ = run_config(workshop, path, (8, 1e-3, 2, 2, 1, 2, False), W)
    rows = dict(plan_rows(preflight(two, report), W))
    assert rows["GPUs"].endswith("Each holds the whole base.")
    assert "Idle GPUs" not in rows
    alone, _ = run_config(workshop, path, (8, 1e-3, 2, 2, 1, 1, True), W)
    assert not alone.is_sharded
    assert "GPUs" not in dict(plan_rows(preflight(alone, report), W))
    with pytest.raises(ConfigError, match="holds the whole base"):
        workshop.measure(config, report, lambda *_: None)
    timed = replace(plan, seconds_per_step=2.0, pace_from="fit")
    assert "one GPU was measured to take for its share" in dict(plan_rows(timed, W))["Time"]
