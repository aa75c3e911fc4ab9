"""Two processes and who started them: a signal lets their step end, and one that is killed ends all."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import psutil
import pytest

from studio.cli import main
from studio.core.model import stop_wish
from studio.core.runlog import RunFolder, RunState, list_runs
from studio.core.simpletuner import read_project
from studio.core.train.checkpoint_files import newest_whole
from tests.faces.conftest import write_project
from tests.two_processes import SECONDS, environment

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="launchers and signals of POSIX")

ALL_END_IN = 30
IN_A_LONG_STEP = """
import signal, sys
from studio.core.model.starting import start_processes
module = "tests.train.two_processes_in_a_long_step"
answer = lambda: print("heard", flush=True)
signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
print(start_processes([sys.argv[1], "3"], 2, module=module, answer=answer), flush=True)
sys.exit(start_processes([sys.argv[2], "60"], 2, module=module, answer=answer))
"""

ABOUT_TO_JOIN = """
from studio.core.model.starting import start_processes
start_processes([], 2, module="tests.train.two_processes_that_join")
"""


def test_a_signal_lets_the_longest_step_end_and_a_second_one_ends_at_once(tmp_path):
    short, long, temporary = (tmp_path / name for name in ("short", "long", "temporary"))
    short.mkdir(), long.mkdir(), temporary.mkdir()
    # The agent kills what is there a second after it has passed a signal on.
    variables = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "1", "TMPDIR": str(temporary)}
    with started("-c", IN_A_LONG_STEP, short, long, **variables) as launcher:
        told(short, "begun", launcher)
        launcher.send_signal(signal.SIGHUP)
        launcher.send_signal(signal.SIGTERM)
        assert launcher.stdout.readline() == "heard\n"
        assert launcher.stdout.readline() == "0\n", "both ended by themselves"
        told(short, "knows", launcher)

        told(long, "begun", launcher)
        workers = children(launcher)
        launcher.send_signal(signal.SIGTERM)
        assert launcher.stdout.readline() == "heard\n"
        told(long, "knows", launcher)
        assert all(process.is_running() for process in workers)
        launcher.send_signal(signal.SIGINT)
        launcher.communicate(timeout=ALL_END_IN)
        assert len(workers) == 2
        assert not any(process.is_running() for process in workers), "nothing is left running"
    assert launcher.returncode == 128 + signal.SIGINT
    assert not [*temporary.glob("torchelastic*"), *temporary.glob("longcat-studio*")]


def test_the_wish_of_who_started_it_stops_a_run_after_its_step(shapes_dataset, tmp_path, monkeypatch):
    config, wish = project_of(shapes_dataset, tmp_path), tmp_path / "wish"
    monkeypatch.setenv(stop_wish._FILE, str(wish))

    def wish_after_a_step():
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline and not any(run.snapshot().step for run in list_runs(config.output_dir)):
            time.sleep(0.02)
        wish.touch()

    threading.Thread(target=wish_after_a_step, daemon=True).start()
    # One GPU is this process: nothing is started for it.
    assert main(["train", "--gpus", "1", "--config", str(tmp_path / "hops")]) == 0
    (run,) = list_runs(config.output_dir)
    assert run.state() is RunState.STOPPED
    assert newest_whole(run.path / "checkpoints").name == f"step-{run.snapshot().step:06d}"


def test_when_one_is_killed_all_end_within_30_seconds_and_the_checkpoint_is_good(shapes_dataset, tmp_path):
    config = project_of(shapes_dataset, tmp_path)
    config = replace(config, model=replace(config.model, device="cpu"), num_processes=2)
    run = RunFolder.create(config.output_dir, config)
    with started("-m", "studio", "train", "--gpus", "2", "--config", run.path) as launcher:
        wait(lambda: (run.path / "checkpoints" / "step-000002").exists(), launcher)
        workers = children(launcher)
        (second,) = [process for process in workers if process.environ().get("RANK") == "1"]
        os.kill(second.pid, signal.SIGKILL)
        _, errors = launcher.communicate(timeout=ALL_END_IN)
        assert not any(process.is_running() for process in workers), "nothing is left running"
    assert launcher.returncode == 1
    assert "Process 1 of 2 was ended by SIGKILL, and the others with it." in errors
    assert "Traceback" not in errors
    assert "press Ctrl-C again" not in errors, "nobody pressed it"
    assert run.state() is RunState.FAILED
    assert run.snapshot().failure.message == "One of the 2 processes was lost, so all have ended."
    assert int(newest_whole(run.path / "checkpoints").name[5:]) >= run.snapshot().step - 1


def test_who_is_killed_while_its_processes_start_leaves_none():
    with started("-c", ABOUT_TO_JOIN) as launcher:
        wait(lambda: len(children(launcher)) == 2, launcher)
        workers = children(launcher)
        launcher.kill()
        _, left = psutil.wait_procs(workers, timeout=ALL_END_IN)
        for process in left:
            process.kill()
    assert not left


def project_of(dataset, folder):
    """The run of a project in `hops`, which writes into `folder`, with a checkpoint after each of 500 steps."""
    project = write_project(shutil.copytree(dataset, folder / "hops"))
    settings = json.loads((project / "config.json").read_text())
    settings |= {"max_train_steps": 500, "checkpoint_step_interval": 1, "output_dir": str(folder / "runs")}
    (project / "config.json").write_text(json.dumps(settings))
    return read_project(project).run


class started:
    """A Python program that starts processes; whatever is left of them in the end is killed."""

    def __init__(self, *arguments, **variables):
        self._launcher = subprocess.Popen(
            [sys.executable, *map(str, arguments)], env=environment(**variables), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def __enter__(self):
        return self._launcher

    def __exit__(self, *_):
        for process in children(self._launcher):
            process.kill()
        self._launcher.kill()
        self._launcher.communicate(timeout=SECONDS)


def children(launcher):
    return psutil.Process(launcher.pid).children() if launcher.poll() is None else []


def told(folder, what, launcher):
    """Returns when both processes have left word of it."""
    wait(lambda: len(list(folder.glob(f"*.{what}"))) == 2, launcher)


def wait(condition, launcher):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert launcher.poll() is None, launcher.stderr.read()
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)
