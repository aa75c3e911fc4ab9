"""Checkpoints on a disk that fills up or damages files: what was whole before stays whole, and is what is used."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from studio.core.config import DataConfig, LoraSettings, ModelConfig, OptimConfig, RunConfig, ValidationConfig
from studio.core.errors import CheckpointError, DiskFull
from studio.core.events import CheckpointSaved, RunFailed, RunStarted, StepDone
from studio.core.runlog import RunState
from studio.core.train import disk
from studio.core.train.checkpoint import newest_checkpoint, read_checkpoint, remove_leftovers, save_checkpoint

ROOT = Path(__file__).parents[2]
FILES = ("lora.safetensors", "ema.safetensors", "optim.safetensors", "state.json", "manifest.json")
CALLS = ("open", "mkdir", "write", "fsync", "rename")
"""Of `os`, which take room on a disk, or may find that there is none."""


@pytest.fixture
def save(tmp_path):
    """save(step, limit=0): a checkpoint of a small optimiser, with a moving average, in `tmp_path`."""
    weight = torch.nn.Parameter(torch.arange(300_000.0))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.ones_like(weight)

    def build(step, limit=0):
        optimizer.step()
        config = RunConfig(
            model=ModelConfig(source="tiny"),
            data=DataConfig(datasets=()),
            lora=LoraSettings(),
            optim=OptimConfig(checkpoints_total_limit=limit),
            validation=ValidationConfig(),
            output_dir=tmp_path,
        )
        state = {"a.lora_A.weight": weight.detach().clone()}
        return save_checkpoint(tmp_path, step, lora=state, ema=state, optimizer=optimizer, config=config)

    return build


def newest(folder):
    checkpoint, passed_over = newest_checkpoint(folder)
    return (checkpoint.step if checkpoint else None), passed_over


class FailingDisk:
    """Counts the calls of `os` that write; the one of number `at` finds no room."""

    def __init__(self, monkeypatch, at, number=errno.ENOSPC):
        self.count, self.at, self.number = 0, at, number
        for name in CALLS:
            monkeypatch.setattr(os, name, self.counted(getattr(os, name)))

    def counted(self, call):
        def counting(target, *arguments, **options):
            is_reading = call.__name__ == "open" and not arguments[0] & os.O_CREAT
            is_there = call.__name__ == "mkdir" and Path(target).is_dir()
            if not is_reading and not is_there:
                self.count += 1
                if self.count == self.at:
                    raise OSError(self.number, os.strerror(self.number))
            return call(target, *arguments, **options)

        return counting


def test_whichever_write_finds_the_disk_full_the_checkpoint_before_is_whole(save, tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "PIECE", 2**18)
    save(1)
    with monkeypatch.context() as patch:
        trial = FailingDisk(patch, at=None)
        save(2)
    num_writes = trial.count
    assert num_writes > 20, "five files in pieces, each synced"
    shutil.rmtree(tmp_path / "step-000002")
    for at in range(1, num_writes + 1):
        with monkeypatch.context() as patch:
            FailingDisk(patch, at=at, number=(errno.ENOSPC, errno.EFBIG)[at % 2])
            with pytest.raises(DiskFull, match=r"step-000002 needs 4\.8 MB, and .* MB are free"):
                save(2)
        # Only the sync after the rename comes too late to take the new one back.
        assert newest(tmp_path) == ((2 if at == num_writes else 1), ())
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    save(3)
    assert newest(tmp_path) == (3, ())


def test_a_disk_without_room_is_refused_before_anything_is_written(save, tmp_path, monkeypatch):
    save(1)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage._replace(free=3_000_000))
    trial = FailingDisk(monkeypatch, at=None)
    with pytest.raises(DiskFull, match=r"step-000002 needs 4\.8 MB, and 3\.0 MB are free in .*, 1\.8 MB too few"):
        save(2)
    assert trial.count <= 1, "the folder, at most"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "gone"])
def test_a_checkpoint_damaged_in_any_one_file_is_passed_over_and_said(save, tmp_path, name, damage):
    save(1)
    file = save(2) / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    {
        "bit": lambda: file.write_bytes(data),
        "cut": lambda: file.write_bytes(data[: len(data) // 3]),
        "empty": lambda: file.write_bytes(b""),
        "gone": file.unlink,
    }[damage]()
    step, (said,) = newest(tmp_path)
    assert step == 1
    assert said.startswith("step-000002")
    assert said.endswith("It is passed over.")
    with pytest.raises(CheckpointError, match="step-000002"):
        read_checkpoint(tmp_path / "step-000002")


def test_every_bit_of_the_small_files_counts(save, tmp_path):
    checkpoint = save(1)
    for name in ("state.json", "manifest.json"):
        file = checkpoint / name
        whole = file.read_bytes()
        for place in range(0, len(whole), 7):
            data = bytearray(whole)
            data[place] ^= 2
            file.write_bytes(data)
            if newest(tmp_path)[0] is not None:
                assert bytes(data).split() == whole.split(), "spaces between the words of a list mean nothing"
        file.write_bytes(whole)
    assert newest(tmp_path) == (1, ())


def test_old_checkpoints_go_only_once_the_new_one_is_whole(save, tmp_path, monkeypatch):
    for step in (1, 2):
        save(step, limit=2)
    with monkeypatch.context() as patch:
        FailingDisk(patch, at=9)
        with pytest.raises(DiskFull):
            save(3, limit=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000001", "step-000002"]
    save(3, limit=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000002", "step-000003"]


def test_what_a_killed_process_left_half_written_is_removed(save, tmp_path):
    save(1)
    for name in (".step-000002.part", ".step-000000.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lora.safetensors").write_bytes(b"half")
    (tmp_path / ".my-notes").mkdir()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".my-notes", "step-000001"]


def test_a_run_on_a_disk_that_is_full_ends_in_a_sentence_and_goes_on_later(config, run, with_optim):
    config = with_optim(config, max_train_steps=3, checkpoint_step_interval=1)
    unbroken = run(config)

    def fill(event):
        if isinstance(event, CheckpointSaved) and event.step == 1:
            FailingDisk(patch, at=12)

    with pytest.MonkeyPatch.context() as patch:
        folder = run(config, on_event=fill)
    failed = folder.events()[-1][1]
    assert isinstance(failed, RunFailed)
    assert folder.state() is RunState.FAILED
    assert failed.message.startswith("The disk is full: step-000002 needs")
    assert failed.checkpoint == "checkpoints/step-000001"
    assert "The last good checkpoint is step-000001" in failed.remedy
    run(config, resume=folder)
    assert folder.state() is RunState.FINISHED
    assert folder.snapshot().losses == unbroken.snapshot().losses


def test_a_run_says_which_checkpoint_it_passed_over(config, run, with_optim):
    config = with_optim(config, max_train_steps=2, checkpoint_step_interval=1)
    folder = run(config)
    (folder.path / "checkpoints/step-000002/lora.safetensors").write_bytes(b"")
    (folder.path / "checkpoints/.step-000002.part").mkdir()
    run(config, resume=folder)
    started = [event for _, event in folder.events() if isinstance(event, RunStarted)]
    assert [event.from_step for event in started] == [0, 1]
    assert started[1].notices == ("step-000002/lora.safetensors has changed since it was written. It is passed over.",)
    assert [event.step for _, event in folder.events() if isinstance(event, StepDone)] == [1, 2, 2]
    assert not (folder.path / "checkpoints/.step-000002.part").exists()


def test_a_checkpoint_from_before_there_were_manifests_is_read(config, run, with_optim):
    import json

    config = with_optim(config, max_train_steps=1)
    folder = run(config)
    checkpoint = folder.path / "checkpoints/step-000001"
    state = json.loads((checkpoint / "state.json").read_text())
    sums = json.loads((checkpoint / "manifest.json").read_text())
    state["sha256"] = {name: sums[name] for name in ("lora.safetensors", "optim.safetensors")}
    (checkpoint / "state.json").write_text(json.dumps(state))
    (checkpoint / "manifest.json").unlink()
    run(replace(config, optim=replace(config.optim, max_train_steps=2)), resume=folder)
    assert folder.snapshot().step == 2


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_a_limit_on_file_sizes_is_a_full_disk_too(tmp_path):
    """A real one, from the kernel."""
    write = (
        "import sys; from pathlib import Path; from studio.core.train.disk import is_full, write_synced\n"
        "try: write_synced(Path(sys.argv[1]), bytes(3_000_000))\n"
        "except OSError as error: print(is_full(error))"
    )
    done = subprocess.run(
        [sys.executable, "-c", write, str(tmp_path / "file")], cwd=ROOT, capture_output=True, text=True, check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)),
    )  # fmt: skip
    assert done.stdout == "True\n"
