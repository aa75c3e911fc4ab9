"""The room Sample renders on several GPUs by processes of their own, as it does on one (two processes, CPU)."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace

import gradio as gr
import numpy as np
import psutil
import pytest
import torch

from studio.core.config import ModelConfig
from studio.core.errors import JobAlreadyRunning
from studio.core.filelock import FileLock, is_locked
from studio.core.sample import desk as desks
from studio.core.sample.desk import LOCK
from studio.core.sample.program import LOG, render_on_gpus
from studio.core.sample.queue import SampleQueue
from studio.core.sample.request import SampleRequest
from studio.core.sample.video import read_settings, read_video
from studio.core.simpletuner import read_project
from studio.core.types import DatasetReport
from studio.ui.sample_queue import queue_list
from studio.ui.sample_stage import stage
from studio.ui.sample_tab import build_sample_tab
from studio.ui.settings import AppSettings
from studio.ui.workshop import Workshop
from studio.view.words import words
from tests.faces.conftest import PROCESSES_OF_A_ROOM
from tests.faces.test_the_sample_form import values
from tests.two_processes import environment

pytestmark = PROCESSES_OF_A_ROOM

SECONDS = 240
"""A deadline, not a time that is asked for."""
CPU = ModelConfig(source="tiny", device="cpu")
SMALL = SampleRequest(prompt="it moves", height=32, width=32, num_frames=5, num_inference_steps=2, preview_steps=1)
LONG = replace(SMALL, prompt="long", num_inference_steps=5000)
W = words("en")

APP = """
import sys, threading
from pathlib import Path
from studio.core.filelock import FileLock
from studio.core.sample.program import render_on_gpus
folder = Path(sys.argv[1])
lock = FileLock(folder / "queue/.lock")
assert lock.acquire()
render_on_gpus(folder, 2, "cpu", lock, threading.Event())
"""
"""What a desk does."""


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])


@pytest.fixture
def programs(monkeypatch):
    """How often processes were started."""
    started = []

    def render(gallery, *how):
        started.append(how)
        return render_on_gpus(gallery, *how)

    monkeypatch.setattr(desks, "render_on_gpus", render)
    return started


@pytest.fixture
def workshop(tmp_path):
    workshop = Workshop(AppSettings(model=CPU, output_dir=tmp_path / "runs", num_gpus=2))
    yield workshop
    workshop.desk().stop()
    assert not ranks(os.getpid())


def until(is_so, log):
    """The first true value; an error after a while."""
    deadline = time.monotonic() + SECONDS
    while not (value := is_so()):
        assert time.monotonic() < deadline, log.read_text() if log.exists() else "no log"
        time.sleep(0.1)
    return value


def ranks(of):
    """Processes below one that render together, and the one that started them; the first one first."""
    found = []
    for child in psutil.Process(of).children(recursive=True):
        try:
            if "studio.core.sample.program" in child.cmdline():
                found.append((int(child.environ().get("RANK", "-1")), child))
        except psutil.NoSuchProcess:
            continue
    return [process for _, process in sorted(found, key=lambda pair: pair[0])]


def states(desk):
    return [(entry.prompt, entry.state.value) for entry in desk.snapshot().entries]


def steps_of(desk, prompt):
    """How far the sample is, once it is in its steps; 0 before."""
    snapshot = desk.snapshot()
    is_it = snapshot.running is not None and snapshot.running.prompt == prompt
    return snapshot.underway.step if is_it and snapshot.underway else 0


def test_a_group_is_one_start_gives_the_videos_of_one_gpu_and_a_lost_process_is_one_sentence(
    workshop, programs, project
):
    """Also: what is rendered is shown, no run begins meanwhile, and a cancel leaves nothing."""
    with gr.Blocks() as page:
        build_sample_tab(workshop, W, gr.HTML(), gr.Timer())
    room = {event.name: event.fn for event in page.fns.values() if event.fn}
    run, report = read_project(project).run, DatasetReport(pairs=(), issues=())
    desk, log = workshop.desk(), workshop.output_dir / "samples/queue" / LOG
    small = {"mode": "text", "height": 32, "width": 32, "frames": 5, "steps": 2, "gpus": 2}
    said = room["render"](*values(**small, prompt="it moves", comparison="attention"))
    assert "2 videos queued" in said
    desk.add([replace(SMALL, prompt="bad", num_frames=4), LONG, replace(LONG, prompt="last")], CPU, 2)

    until(lambda: steps_of(desk, "long"), log)
    snapshot = desk.snapshot()
    assert "of 5000" in stage(desk, snapshot, W)
    assert queue_list(snapshot, W).count("<span class='gpus'>2 GPUs</span>") == 5
    assert until(desk.preview, log)[:4] == b"RIFF"
    together = ranks(os.getpid())
    assert len(together) == 3
    for begin in (lambda: workshop.train(run, report), lambda: workshop.measure(run, report, print)):
        with pytest.raises(JobAlreadyRunning, match="A sample is being rendered on 2 GPUs"):
            begin()
    room["stop"](f'{{"stage": {{"running": "{snapshot.running.id}"}}}}', 0)
    until(lambda: steps_of(desk, "last"), log)

    together[2].kill()
    until(lambda: not desk.snapshot().is_busy, log)
    _, alive = psutil.wait_procs(together, SECONDS)
    assert not alive
    assert states(desk)[2:] == [("bad", "failed"), ("long", "cancelled"), ("last", "failed")]
    lost = desk.snapshot().ended[0].message
    assert "was lost" in lost or "was ended by SIGKILL" in lost
    assert "\n" not in lost
    assert len(programs) == 1, "one start for all"
    assert sorted(file.name for file in desk.gallery.glob("*.mp4")) == ["sample-0001.mp4", "sample-0002.mp4"]
    until(lambda: not workshop.lent, log)

    _, *fields = room["load"](("sample-0001", 1))
    again = [field.get("value") if isinstance(field, dict) else field for field in fields[2:-2]]
    at = list(values(gpus="here")).index("here")
    assert again[at] == 2, "the settings of a video say how many there were"
    again[at] = 1
    room["render"](*again)
    until(lambda: not desk.snapshot().is_busy, log)
    (two, _), (one, _) = (read_video(desk.gallery / f"sample-000{number}.mp4") for number in (1, 3))
    assert two.shape == one.shape == (5, 32, 32, 3)
    assert np.abs(two.astype(int) - one).max() <= 2
    assert read_settings(desk.gallery / "sample-0001.mp4")["gpus"] == 2
    assert "gpus" not in read_settings(desk.gallery / "sample-0003.mp4")
    assert len(programs) == 1


def test_gpus_that_are_not_there_are_one_sentence_and_a_stopped_desk_puts_its_sample_back(workshop):
    desk, log = workshop.desk(), workshop.output_dir / "samples/queue" / LOG
    many = torch.cuda.device_count() + 2
    desk.add([replace(SMALL, prompt="too many")], replace(CPU, device="auto"), many)
    desk.add([LONG], CPU, 2)
    until(lambda: len(ranks(os.getpid())) == 3, log)
    desk.stop()
    assert not ranks(os.getpid())
    assert states(desk) == [("too many", "failed"), ("long", "waiting")]
    (failed,) = desk.snapshot().ended
    assert f"{many} GPUs were asked for, and there" in failed.message
    assert workshop.lent == 0


def test_the_processes_end_with_an_app_that_is_killed_and_hold_its_queue_until_then(tmp_path):
    queue = SampleQueue(tmp_path / "queue")
    queue.add(LONG, CPU, 2)
    queue.take()
    killed = subprocess.Popen([sys.executable, "-c", APP, tmp_path], env=environment())
    try:
        together = until(lambda: len(found := ranks(killed.pid)) == 3 and found, queue.folder / LOG)
    finally:
        killed.kill()
        killed.wait(SECONDS)
    until(lambda: not is_locked(queue.folder / LOCK), queue.folder / LOG)
    _, alive = psutil.wait_procs(together, 5)
    assert not alive
    assert queue.running().prompt == "long"
    queue.recover(tmp_path)
    assert queue.next().prompt == "long"


def test_a_sample_waits_for_gpus_that_another_has_and_a_model_for_those_that_are_lent(workshop):
    desk, log, bundle = workshop.desk(), workshop.output_dir / "samples/queue" / LOG, workshop.bundle(CPU)
    with bundle.lock:
        (entry,) = desk.add([SMALL], CPU, 2)
        until(lambda: desk.snapshot().is_held, log)
        assert "Waiting: the GPUs are busy" in stage(desk, desk.snapshot(), W)
        assert states(desk) == [("it moves", "waiting")]
        assert workshop.loaded(CPU) is bundle
        desk.queue.cancel(entry.id)
        until(lambda: not desk.snapshot().is_held, log)
    assert workshop.lend(2)
    assert not workshop.lend(2), "once"
    assert workshop.loaded(CPU) is None
    with ThreadPoolExecutor() as pool:
        again = pool.submit(workshop.bundle, CPU)
        try:
            assert not wait([again], 2).done
        finally:
            workshop.take_back()
        assert again.result(SECONDS) is workshop.loaded(CPU)


def test_where_several_gpus_cannot_share_a_sample_that_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    said = render_on_gpus(tmp_path, 2, "cpu", FileLock(tmp_path / LOCK), threading.Event())
    assert (said.message, said.remedy) == ("Several GPUs share the work of a sample on Linux alone.", "Ask for one.")
