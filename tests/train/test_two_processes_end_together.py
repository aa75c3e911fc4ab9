"""One of two processes is killed: the other one ends too, says it in one sentence, and the checkpoint is good."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from studio.core.runlog import RunFolder, RunState, newest_unfinished
from studio.core.simpletuner import read_project
from studio.core.train.checkpoint_files import newest_whole
from tests.faces.conftest import write_project
from tests.two_processes import SECONDS, environment

ALL_END_IN = 30
START = """
import sys
from studio.core.errors import StudioError
from studio.core.model.processes import start_processes
try:
    sys.exit(start_processes(sys.argv[1:], 2))
except StudioError as error:
    sys.exit(str(error))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="launchers and signals of POSIX")
def test_when_one_is_killed_all_end_within_30_seconds_and_the_checkpoint_is_good(shapes_dataset, tmp_path):
    project = write_project(shutil.copytree(shapes_dataset, tmp_path / "hops"))
    settings = json.loads((project / "config.json").read_text())
    settings |= {"max_train_steps": 10_000, "checkpoint_step_interval": 1, "output_dir": str(tmp_path / "runs")}
    (project / "config.json").write_text(json.dumps(settings))
    command = [sys.executable, "-c", START, "train", "--config", str(project)]
    launcher = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    config, workers = read_project(project).run, []
    try:
        wait(lambda: any(config.output_dir.glob("*/checkpoints/step-000002")), launcher)
        workers = children(launcher)
        (second,) = [process for process in workers if process.environ().get("RANK") == "1"]
        os.kill(second.pid, signal.SIGKILL)
        _, said = launcher.communicate(timeout=ALL_END_IN)
        psutil.wait_procs(workers, timeout=ALL_END_IN)
        assert not any(process.is_running() for process in workers)
    finally:
        for process in workers or children(launcher):
            if process.is_running():
                process.kill()
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
            launcher.communicate()
    assert launcher.returncode == 1
    assert "Process 1 of 2 was ended by SIGKILL, and the others with it." in said
    assert "Traceback" not in said
    run = newest_unfinished(config.output_dir, config.data)
    assert isinstance(run, RunFolder)
    assert run.state() is RunState.FAILED
    assert run.snapshot().failure.message == "One of the 2 processes was lost, so all have ended."
    checkpoint = newest_whole(run.path / "checkpoints")
    assert checkpoint is not None
    assert int(checkpoint.name[5:]) >= run.snapshot().step - 1


def children(launcher):
    return psutil.Process(launcher.pid).children() if launcher.poll() is None else []


def wait(condition, launcher):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert launcher.poll() is None, launcher.stderr.read()
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)
