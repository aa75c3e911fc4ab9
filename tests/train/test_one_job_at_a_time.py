"""The background job: one at a time, stopped on request, failures told in the run folder."""

import subprocess
import sys
import threading
import time
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


def wait_for(condition):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def test_a_job_runs_in_the_background_and_stops_on_request(config, with_optim, tiny_bundle):
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
