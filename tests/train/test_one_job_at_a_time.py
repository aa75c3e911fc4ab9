"""The background job: one at a time, stopped on request, failures told in the run folder."""

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from studio.core.errors import CheckpointError, DatasetError, JobAlreadyRunning
from studio.core.events import RunFailed, RunStopped, StepDone
from studio.core.filelock import is_locked
from studio.core.runlog import RunState
from studio.core.train.job import TrainJob, run_inline
from studio.core.train.onerun import LOCK_FILE

ROOT = Path(__file__).parents[2]
SECONDS = 60


def test_a_job_runs_in_the_background_and_stops_on_request(config, with_optim, tiny_bundle, wait_for):
    job = TrainJob(with_optim(config, max_train_steps=1000), lambda: tiny_bundle)
    folder = job.start()
    assert job.folder == folder
    wait_for(lambda: folder.snapshot().step >= 1)
    assert folder.state() is RunState.RUNNING
    assert job.is_alive
    job.stop()
    job.join(SECONDS)
    assert not job.is_alive
    assert folder.state() is RunState.STOPPED
    last = folder.events()[-1][1]
    assert isinstance(last, RunStopped)
    assert last.step == max(event.step for _, event in folder.events() if isinstance(event, StepDone))
    assert not is_locked(config.output_dir / LOCK_FILE)


def test_of_eight_starts_at_once_one_wins(config, tiny_bundle, report):
    may_load = threading.Event()

    def load():
        may_load.wait(SECONDS)
        return tiny_bundle

    jobs = [TrainJob(config, load, report=report) for _ in range(8)]
    refused = []

    def start(job):
        try:
            job.start()
        except JobAlreadyRunning as error:
            refused.append(error)

    threads = [threading.Thread(target=start, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [job for job in jobs if job.folder is not None]
    winners[0].stop()
    may_load.set()
    winners[0].join(SECONDS)
    assert len(winners) == 1
    assert len(refused) == 7
    assert len(list(config.output_dir.glob("*/config.json"))) == 1


START = """
import sys
from pathlib import Path
from studio.core.config import DataConfig, LoraSettings, ModelConfig, OptimConfig, RunConfig, ValidationConfig
from studio.core.errors import JobAlreadyRunning
from studio.core.runlog import RunFolder
from studio.core.train.onerun import TrainingLock
import os

config = RunConfig(model=ModelConfig(source="tiny", device="cpu"), data=DataConfig(datasets=()), lora=LoraSettings(),
                   optim=OptimConfig(), validation=ValidationConfig(), output_dir=Path(sys.argv[1]))
children = []
for number in range(8):
    go_read, go_write = os.pipe()
    told_read, told_write = os.pipe()
    if os.fork() == 0:
        os.close(go_write)
        for _ in range(50):
            os.read(go_read, 1)
            try:
                lock = TrainingLock(config)
                run = RunFolder.create(config.output_dir, config)
                lock.tell(run)
                os.write(told_write, f"trains {run.name}\\n".encode())
                os.read(go_read, 1)
                lock.release()
            except JobAlreadyRunning as error:
                os.write(told_write, f"refused {error.message}\\n".encode())
                os.read(go_read, 1)
            os.write(told_write, b"over\\n")
        os._exit(0)
    children.append((os.fdopen(go_write, "wb", buffering=0), os.fdopen(told_read)))
for _ in range(50):
    for go, _told in children:
        go.write(b"x")
    print("|".join(told.readline().strip() for _go, told in children), flush=True)
    for go, _told in children:
        go.write(b"x")
    for _go, told in children:
        told.readline()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_of_eight_processes_that_start_at_once_one_trains_and_the_others_are_told_which(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", START, str(tmp_path / "runs")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    rounds = [line.split("|") for line in done.stdout.splitlines()]
    assert len(rounds) == 50
    for said in rounds:
        (winner,) = [words.removeprefix("trains ") for words in said if words.startswith("trains ")]
        refused = [words for words in said if words.startswith(f"refused The run {winner} (since ")]
        assert len(refused) == 7, said
    assert len(list((tmp_path / "runs").glob("*/config.json"))) == 50


def test_another_process_that_trains_here_is_noticed(config, tiny_bundle, report):
    config.output_dir.mkdir(parents=True)
    lock = config.output_dir / LOCK_FILE
    hold = (
        "import sys, time; from pathlib import Path; from studio.core.filelock import FileLock; "
        "lock = FileLock(Path(sys.argv[1])); print(lock.acquire(), flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", hold, str(lock)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "True\n"
        with pytest.raises(JobAlreadyRunning):
            run_inline(config, lambda: tiny_bundle, report=report)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert not is_locked(config.output_dir / LOCK_FILE), "a killed process leaves no stale lock"


def test_a_dataset_with_errors_is_refused_before_anything_is_made(config, data_of, tmp_path, draw_shapes_dataset):
    broken = draw_shapes_dataset(num_clips=5)
    for index in range(4):
        (broken / "start_frames" / f"shape_{index}.png").unlink()
    config = replace(config, data=data_of(broken))
    with pytest.raises(DatasetError, match=r"4 errors.*shape_0.mp4 has no start frame.*And 1 more") as caught:
        TrainJob(config, lambda: pytest.fail("the model must not be loaded")).start()
    assert "shape_3" not in caught.value.message
    assert not list(config.output_dir.glob("*/config.json"))
    assert not is_locked(config.output_dir / LOCK_FILE)


@pytest.mark.parametrize(
    ("error", "message", "remedy", "is_traced"),
    [
        (CheckpointError("vae is missing.", "Copy it."), "vae is missing.", "Copy it.", False),
        (ZeroDivisionError("secret"), "Something unexpected went wrong after step 0 (ZeroDivisionError).", "The", True),
    ],
)
def test_a_failure_becomes_the_last_event_and_is_logged(config, report, caplog, error, message, remedy, is_traced):
    def load():
        raise error

    job = TrainJob(config, load, report=report)
    folder = job.start()
    job.join(SECONDS)
    assert folder.state() is RunState.FAILED
    failed = folder.events()[-1][1]
    assert isinstance(failed, RunFailed)
    assert failed.message == message
    assert failed.remedy.startswith(remedy)
    assert f"run={folder.name} failed after step=0" in caplog.text
    assert ("Traceback" in caplog.text) is is_traced, "what the user can mend needs no traceback"
    assert not is_locked(config.output_dir / LOCK_FILE)
