"""Pause, save and sample on demand, from this process or any other: a file each in the run folder."""

import av
import numpy as np
import pytest

from studio.core.data.decode import read_image
from studio.core.events import CheckpointSaved, RunContinued, RunPaused, RunStopped, SampleSaved, StepDone
from studio.core.model.lora import LoraFile
from studio.core.runlog import RunFolder, RunState
from studio.core.sample.sampler import SampleRequest, sample
from studio.core.train.job import TrainJob
from studio.core.train.requests import Request, ask, is_asked, withdraw

SECONDS = 60


def events_of(folder, kind):
    return [event for _, event in folder.events() if isinstance(event, kind)]


def frames_of(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def asking(folder_of, at_step, requests):
    """on_event that leaves the requests once `at_step` is done."""

    def on_event(event):
        if isinstance(event, StepDone) and event.step == at_step:
            for request in requests:
                ask(folder_of(), request)

    return on_event


def test_a_paused_job_waits_with_the_device_free_and_goes_on(config, with_optim, tiny_bundle, wait_for):
    job = TrainJob(with_optim(config, max_train_steps=1000), lambda: tiny_bundle)
    folder = job.start()
    wait_for(lambda: folder.snapshot().step >= 1)
    job.pause()
    wait_for(lambda: folder.state() is RunState.PAUSED)
    snapshot = folder.snapshot()
    assert snapshot.checkpoints == (snapshot.step,), "what was trained is safe while it waits"
    assert snapshot.seconds_left is None
    assert tiny_bundle.lock.acquire(timeout=SECONDS)
    tiny_bundle.lock.release()
    job.sample_now()
    wait_for(lambda: folder.snapshot().samples)
    assert folder.state() is RunState.PAUSED
    assert folder.snapshot().step == snapshot.step
    job.go_on()
    wait_for(lambda: folder.snapshot().step > snapshot.step)
    assert folder.state() is RunState.RUNNING
    job.stop()
    job.join(SECONDS)
    assert folder.state() is RunState.STOPPED


def test_a_pause_can_be_ended_by_a_stop_from_elsewhere(config, with_optim, tiny_bundle, wait_for):
    job = TrainJob(with_optim(config, max_train_steps=1000), lambda: tiny_bundle)
    folder = job.start()
    (folder.path / "requests").mkdir(exist_ok=True)
    (folder.path / "requests" / "pause").touch()
    wait_for(lambda: folder.state() is RunState.PAUSED)
    (folder.path / "requests" / "stop").touch()
    job.join(SECONDS)
    assert isinstance(folder.events()[-1][1], RunStopped)


def test_what_is_asked_for_happens_at_once_and_changes_no_loss(config, run, with_validation):
    config = with_validation(config, num_pairs=1)
    calm = run(config)

    def newest():
        return max(config.output_dir.glob("*/config.json"), key=lambda path: path.stat().st_mtime_ns).parent

    folder = run(config, on_event=asking(lambda: RunFolder(newest()), 2, [Request.SAVE, Request.SAMPLE]))
    assert [event.step for event in events_of(folder, CheckpointSaved)] == [2, 4]
    assert [event.step for event in events_of(folder, SampleSaved)] == [2, 4]
    assert not any(is_asked(folder, request) for request in Request)
    assert folder.snapshot().losses == calm.snapshot().losses


def test_requests_of_an_earlier_attempt_are_forgotten(config, run):
    seen = []
    folder = run(
        config, on_event=lambda e: seen.append(e), should_stop=lambda: any(isinstance(e, StepDone) for e in seen)
    )
    ask(folder, Request.STOP)
    ask(folder, Request.PAUSE)
    run(config, resume=folder)
    assert folder.state() is RunState.FINISHED
    assert not events_of(folder, RunPaused)
    assert not events_of(folder, RunContinued)
    withdraw(folder, Request.PAUSE)


def test_a_sample_is_what_the_run_leaves_and_carries_its_figures(
    config, run, with_optim, with_validation, tiny_bundle, report
):
    config = with_optim(with_validation(config, num_pairs=1), use_ema=True, ema_decay=0.5, learning_rate=0.05)
    folder = run(config)
    (saved,) = events_of(folder, SampleSaved)
    pair = report.pairs[0]
    request = SampleRequest(
        prompt=pair.captions[0], start_frame=read_image(pair.start_frame.path), height=64, width=64, num_frames=5,
        num_inference_steps=1, loras=(LoraFile(path=folder.snapshot().lora),),
    )  # fmt: skip
    again = folder.path / "again.mp4"
    list(sample(request, tiny_bundle, again))
    frames, base = frames_of(folder.path / saved.path), frames_of(folder.path / saved.base)
    assert np.abs(frames_of(again).astype(int) - frames).mean() < 0.5, "the saved LoRA gives the sample"
    expected = np.abs(frames.astype(int) - base).mean()
    assert saved.drift == pytest.approx(expected, abs=0.01)
    assert saved.drift > 0, "a rate of 0.05 must change something"
    error = np.square(frames[0].astype(float) - request.start_frame).mean()
    assert saved.start_psnr == pytest.approx(10 * np.log10(255**2 / error), abs=0.05)
    moved = max(np.abs(frames[0].astype(int) - frame).mean() for frame in frames[1:])
    assert saved.motion == pytest.approx(moved, abs=0.01)


def test_the_base_is_rendered_once_and_a_lora_that_does_nothing_has_no_drift(config, run, with_optim, with_validation):
    config = with_optim(with_validation(config, num_pairs=1, step_interval=2), learning_rate=1e-12, weight_decay=0.0)
    folder = run(config)
    samples = events_of(folder, SampleSaved)
    assert [sample.step for sample in samples] == [2, 4]
    assert len({sample.base for sample in samples}) == 1
    assert [sample.drift for sample in samples] == [0.0, 0.0]
    assert len(list((folder.path / "samples").glob("base-*.mp4"))) == 1
