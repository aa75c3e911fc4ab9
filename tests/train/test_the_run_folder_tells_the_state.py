"""What a run folder says about its run, also after a crash."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from studio.core.config import (
    DataConfig,
    DatasetConfig,
    LoraSettings,
    ModelConfig,
    OptimConfig,
    RunConfig,
    ValidationConfig,
)
from studio.core.config_json import read_run_config
from studio.core.errors import ConfigError, JobAlreadyRunning
from studio.core.events import (
    CacheProgress,
    FitProgress,
    RunFailed,
    RunFinished,
    RunStarted,
    RunStopped,
    SampleSaved,
    StepDone,
    encode_event,
)
from studio.core.runlog import RunFolder, RunState, list_runs, newest_unfinished

ROOT = Path(__file__).parents[2]
STARTED = RunStarted(num_steps=10, num_pairs=3, device="cpu", dtype="float32", attention="dense", attention_reason="")


def step(number, loss=1.0, seconds=2.0):
    return StepDone(step=number, num_steps=10, loss=loss, learning_rate=1e-4, grad_norm=0.5, seconds=seconds)


@pytest.fixture
def config(tmp_path):
    clips = DatasetConfig(
        id="clips", kind="video", directory=tmp_path / "clips", conditioning_ids=("frames",), caption_strategy=None
    )
    return RunConfig(
        model=ModelConfig(source="tiny"),
        data=DataConfig(datasets=(clips,)),
        lora=LoraSettings(alpha=4),
        optim=OptimConfig(max_train_steps=10),
        validation=ValidationConfig(resolution=(64, 128), eval_dataset_id="clips"),
        output_dir=tmp_path / "runs",
    )


@pytest.fixture
def folder(config):
    return RunFolder.create(config.output_dir, config)


def write(folder, *events):
    for event in events:
        folder.append(event)
    return folder


def test_the_configuration_reads_back_as_it_was(folder, config):
    assert folder.config() == config
    assert read_run_config(folder.path / "config.json") == config


def test_the_attention_of_a_run_reads_back_also_from_a_log_that_knew_less(folder):
    told = replace(STARTED, attention="sparse", attention_sparsity=0.9375, attention_block=(4, 4, 4))
    write(folder, told)
    assert folder.snapshot().started == told
    events = folder.path / "events.jsonl"
    fields = json.loads(events.read_text())
    events.write_text(json.dumps({k: v for k, v in fields.items() if not k.endswith(("_sparsity", "_block"))}) + "\n")
    assert folder.snapshot().started == replace(told, attention_sparsity=None, attention_block=None)


def test_relative_folders_are_written_from_the_root(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = RunFolder.create(Path("runs"), replace(config, output_dir=Path("runs")))
    assert folder.path.is_absolute()
    assert folder.config().output_dir == tmp_path / "runs"


@pytest.mark.parametrize(
    ("written", "said"),
    [("{", "not the configuration"), ('{"seed": "7"}', "seed is '7'"), ('{"sead": 7}', "sead"), ("[]", "not the")],
)
def test_a_configuration_that_is_none_is_refused(tmp_path, written, said):
    (tmp_path / "config.json").write_text(written)
    with pytest.raises(ConfigError, match=said):
        read_run_config(tmp_path / "config.json")


def test_events_read_back_and_a_torn_last_line_is_passed_over(folder):
    write(folder, STARTED, step(1))
    with (folder.path / "events.jsonl").open("a") as file:
        file.write(encode_event(step(2), time=0)[:25])
    assert [event for _, event in folder.events()] == [STARTED, step(1)]
    write(folder, step(2))
    assert [event for _, event in folder.events()] == [STARTED, step(1), step(2)]


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ([], RunState.NEW),
        ([STARTED], RunState.CACHING),
        ([STARTED, CacheProgress(done=1, total=2)], RunState.CACHING),
        ([STARTED, CacheProgress(done=2, total=2), FitProgress(done=0, total=1)], RunState.MEASURING),
        ([STARTED, CacheProgress(done=2, total=2), step(1)], RunState.RUNNING),
        ([STARTED, step(1), RunStopped(step=1, lora="")], RunState.STOPPED),
        ([STARTED, step(1), RunFailed(step=1, message="m", remedy="r")], RunState.FAILED),
        ([STARTED, step(1), RunFinished(step=1, seconds=1, lora="lora/x")], RunState.FINISHED),
        ([STARTED, step(1), RunStopped(step=1, lora=""), STARTED, step(2)], RunState.RUNNING),
    ],
)
def test_the_last_event_tells_the_state_of_a_run_that_someone_writes(folder, events, state):
    with folder.locked():
        assert write(folder, *events).state() is state


def test_a_run_whose_process_was_killed_is_interrupted(folder):
    write(folder, STARTED, step(1))
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_THE_LOCK, str(folder.path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "locked\n"
        assert folder.state() is RunState.RUNNING
        with pytest.raises(JobAlreadyRunning), folder.locked():
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert folder.state() is RunState.INTERRUPTED
    assert folder.snapshot().seconds_left is None
    with folder.locked():
        assert folder.state() is RunState.RUNNING


HOLD_THE_LOCK = """
import sys, time
from pathlib import Path
from studio.core.runlog import RunFolder
with RunFolder(Path(sys.argv[1])).locked():
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_run_that_died_while_loading_is_interrupted_too(folder):
    with folder.locked():
        assert folder.state() is RunState.NEW
    assert folder.state() is RunState.INTERRUPTED


def test_a_snapshot_holds_what_faces_draw(folder):
    sample = SampleSaved(step=2, path="samples/a.mp4", prompt="hops")
    with folder.locked():
        write(folder, STARTED, CacheProgress(done=4, total=4), step(1, 3.0, 9.0), step(2, 2.0), step(3, 1.0), sample)
        shot = folder.snapshot()
    assert (shot.step, shot.num_steps, shot.num_pairs) == (3, 10, 3)
    assert (shot.cache_done, shot.cache_total) == (4, 4)
    assert shot.losses == ((1, 3.0), (2, 2.0), (3, 1.0))
    assert shot.seconds_per_step == 2.0, "the median: the slow first step does not count"
    assert shot.seconds_left == 14.0
    assert shot.samples == (sample,)
    assert shot.lora is None
    assert shot.failure is None
    assert shot.started == STARTED
    write(folder, RunFailed(step=3, message="m", remedy="r"))
    failure = folder.snapshot().failure
    assert failure is not None
    assert (failure.message, failure.remedy) == ("m", "r")
    write(folder, RunFinished(step=10, seconds=1, lora="lora/file.safetensors"))
    assert folder.snapshot().lora == folder.path / "lora/file.safetensors"


def test_steps_done_again_after_a_resume_count_once(folder):
    write(folder, STARTED, step(1, 3.0), step(2, 2.0), step(3, 1.0), STARTED, step(2, 5.0))
    assert folder.snapshot().losses == ((1, 3.0), (2, 5.0))


def test_runs_are_listed_newest_first(config, tmp_path):
    assert list_runs(tmp_path / "nowhere") == ()
    runs = [RunFolder.create(config.output_dir, config) for _ in range(3)]
    (config.output_dir / "cache").mkdir()
    assert list_runs(config.output_dir) == tuple(reversed(runs))


def test_only_a_run_of_the_same_data_that_ended_half_way_is_gone_on_with(config, tmp_path):
    other = replace(config.data.datasets[0], directory=tmp_path / "elsewhere")
    ours = write(RunFolder.create(config.output_dir, config), STARTED, RunStopped(step=1, lora=""))
    write(RunFolder.create(config.output_dir, config), STARTED, RunFinished(step=1, seconds=1, lora="lora/x"))
    theirs = replace(config, data=replace(config.data, datasets=(other,)))
    write(RunFolder.create(config.output_dir, theirs), STARTED, RunStopped(step=1, lora=""))
    live = write(RunFolder.create(config.output_dir, config), STARTED)
    with live.locked():
        assert newest_unfinished(config.output_dir, config.data) == ours
        write(ours, RunFinished(step=2, seconds=1, lora="lora/x"))
        with pytest.raises(ConfigError, match="no unfinished run of this dataset") as caught:
            newest_unfinished(config.output_dir, config.data)
    assert caught.value.remedy == "Leave out --resume."
