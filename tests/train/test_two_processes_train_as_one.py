"""DDP and FSDP2 on two processes take the steps that one process takes with all of their clips (CPU, fp32)."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from studio.core.config_json import write_run_config
from studio.core.data.dataset import BatchSampler, TrainingItem
from studio.core.errors import ConfigError, DeviceError
from studio.core.events import CheckpointSaved, RunContinued, RunPaused, RunStopped, SampleSaved, StepDone
from studio.core.model.lora import LORA_FILE
from studio.core.model.processes import ALONE, Processes, joined, too_few_gpus
from studio.core.runlog import RunFolder, RunState, list_runs
from studio.core.train.checkpoint_files import newest_whole
from studio.core.train.distributed import leaves_idle, notices_of, require_one_run, shares_of
from tests.two_processes import run_two

PROGRAM = Path(__file__).with_name("two_processes_that_train.py")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="launchers and signals of POSIX")


@pytest.fixture(scope="module")
def three_clips(draw_shapes_dataset):
    """An odd number: one process has nothing to do in every second step."""
    return draw_shapes_dataset(num_clips=3)


def losses(folder):
    return [done.clip_losses for done in folder.snapshot().steps]


def lora(folder):
    return load_file(folder.path / "lora" / LORA_FILE)


def assert_same(folder, other):
    assert [len(step) for step in losses(folder)] == [2, 1, 2, 1], "a step has the clips of both processes"
    for step, expected in zip(losses(folder), losses(other), strict=True):
        assert step == pytest.approx(expected, rel=1e-6, abs=1e-6)
    # AdamW divides by the size of a gradient, so that where it is nearly zero its rounding counts.
    weights = lora(folder)
    for name, tensor in lora(other).items():
        assert (weights[name] - tensor).norm() < 1e-3 * tensor.norm(), name


def test_ddp_and_fsdp_are_one_process_with_the_gathered_batch_and_obey_as_one_does(
    config, run, data_of, three_clips, tmp_path, with_validation, tiny_bundle
):
    cache = config.data.datasets[0].cache_dir

    def data(batch_size):
        of = data_of(three_clips, num_frames=5, batch_size=batch_size)
        return replace(of, datasets=tuple(replace(dataset, cache_dir=cache) for dataset in of.datasets))

    alone = run(replace(config, data=data(2)))
    shared = replace(config, data=data(1), num_processes=2)
    write_run_config(tmp_path / "ddp.json", shared)
    sampled = with_validation(shared, num_pairs=1, using_datasets=True)
    sampled = replace(sampled, model=replace(config.model, gradient_checkpointing=True))
    write_run_config(tmp_path / "fsdp.json", replace(sampled, output_dir=tmp_path / "sharded"))
    fails = replace(shared, optim=replace(shared.optim, checkpoint_step_interval=1), output_dir=tmp_path / "failing")
    write_run_config(tmp_path / "fails.json", fails)
    run_two(PROGRAM, tmp_path)
    heard = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]

    stopped, sharded = RunFolder(Path(heard[0]["ddp"])), RunFolder(Path(heard[0]["fsdp"]))
    assert heard[0]["ddp"] == heard[1]["ddp"], "both work in one folder"
    assert stopped.state() is RunState.STOPPED
    assert [(type(event), event.step) for _, event in stopped.events() if hasattr(event, "step")] == [
        (StepDone, 1), (CheckpointSaved, 1), (SampleSaved, 1),
        (StepDone, 2), (CheckpointSaved, 2), (RunPaused, 2), (SampleSaved, 2), (RunContinued, 2),
        (StepDone, 3), (CheckpointSaved, 3), (RunStopped, 3),
    ], "each request is answered once"  # fmt: skip
    notices = " ".join(stopped.snapshot().started.notices)
    assert "up to 2 clips of one bucket, 1 for each of 2 processes" in notices
    assert "the seed (7)" in notices

    assert sharded.state() is RunState.FINISHED
    assert_same(sharded, alone)
    assert all(0.4 < of["held"] < 0.6 for of in heard), "each holds half of the blocks"
    assert len(sharded.snapshot().samples) == 1

    continued = run(stopped.config(), resume=stopped)
    assert continued.state() is RunState.FINISHED
    assert_same(continued, alone)
    notices = " ".join(continued.snapshot().started.notices)
    assert "begun with 2 and goes on with 1 process: clips, order, captions and noise" in notices

    assert {of["mismatch"] for of in heard} == {"Process 1 of 2 has another configuration than process 0."}
    assert [of["sum"] for of in heard] == [[3.0], [3.0]]
    assert [of["all"] for of in heard] == [[True, False, False]] * 2

    (failed,) = list_runs(tmp_path / "failing")
    assert failed.state() is RunState.FAILED
    failure = failed.snapshot().failure
    assert failure.message == "The device ran out of memory in step 2, for 5f 64x64 with batch size 1."
    assert failure.settings == (("config.json", "gradient_checkpointing", True),), "as the process said that failed"
    assert failure.checkpoint == "checkpoints/step-000001"
    assert newest_whole(failed.path / "checkpoints").name == "step-000001"


def test_every_clip_of_a_step_is_counted_once_and_all_processes_keep_in_step():
    def batch(*names):
        return tuple(TrainingItem(pair=name, caption="") for name in names)

    batches = (batch("a", "b", "c", "d", "e"), batch("f"))
    for count in (1, 2, 3, 4):
        for batch_size in (1, 2):
            of_all = [shares_of(batches, Processes(rank=rank, count=count), batch_size) for rank in range(count)]
            counted = [
                (position, item.pair)
                for shares in of_all
                for share in shares if share.counts
                for position, item in zip(share.positions, share.items, strict=True)
            ]  # fmt: skip
            assert sorted(counted) == list(enumerate("abcdef"))
            assert len({len(shares) for shares in of_all}) == 1
            assert all(len(share.items) <= batch_size for shares in of_all for share in shares)
            assert all(share.items for shares in of_all for share in shares)
    assert [share.items for share in shares_of(batches, ALONE, 5)] == list(batches)


def test_a_bucket_that_leaves_a_process_without_clips_is_known():
    for clips in range(1, 10):
        for count in (1, 2, 3, 4):
            for batch_size in (1, 2):
                # The largest batch that a bucket of so many clips gives.
                batch = (TrainingItem(pair="clip", caption=""),) * min(clips, count * batch_size)
                of_all = [shares_of([batch], Processes(rank=rank, count=count), batch_size) for rank in range(count)]
                has_none = any(not any(share.counts for share in shares) for shares in of_all)
                assert leaves_idle(clips, batch_size, count) == has_none, (clips, count, batch_size)


def test_a_batch_of_several_processes_has_clips_for_each(config, report):
    data = replace(config.data, train_batch_size=1)
    sampler = BatchSampler(report.pairs, data, seed=7, num_processes=3)
    as_one = BatchSampler(report.pairs, replace(data, train_batch_size=3), seed=7)
    assert [sampler.batch_for_step(step) for step in range(1, 9)] == [as_one.batch_for_step(s) for s in range(1, 9)]
    assert sampler.steps_per_epoch == 2
    assert {clips for _, clips in sampler.batches} == {1}, "one clip at a time on each"
    assert sum(sampler.batches.values()) == 2


def test_more_processes_than_a_step_has_clips_are_refused(config, report, monkeypatch):
    monkeypatch.setattr(Processes, "require_same", lambda *_: None)
    begun = replace(config, data=replace(config.data, train_batch_size=1))
    with pytest.raises(ConfigError, match="learns from 1 clip, too few for 2 processes"):
        require_one_run(begun, report.pairs, 0, Processes(count=2))
    require_one_run(replace(begun, num_processes=2), report.pairs, 0, Processes(count=2))
    assert list(notices_of(begun, ALONE)) == []


@pytest.mark.parametrize(
    ("variables", "device", "error", "words"),
    [
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "auto", ConfigError, "Set fsdp_version to 2"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "auto", ConfigError, "DEEPSPEED, which is not used here"),
        ({}, "cuda:1", ConfigError, "The device is cuda:1, and there are several processes"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(monkeypatch, variables, device, error, words):
    for name, value in ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"} | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(error, match=words), joined(device):
        pass


def test_a_port_in_use_is_named(monkeypatch):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(DeviceError, match=f"The port 127.0.0.1:{port} is in use"), joined("cpu"):
            pass


def test_fewer_gpus_than_asked_for_is_one_sentence():
    assert str(too_few_gpus(4, 2)) == "4 GPUs were asked for, and there are 2 here. Ask for 2."
    assert "there are 0 here" in str(too_few_gpus(2, 0))
