"""What can be done with a run once it lies there: figures, differences, a branch, an export, a CSV, deletion."""

import csv
import errno
import io
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from studio.cli import main
from studio.cli_runs import LAYOUTS
from studio.core.config import NoiseConfig
from studio.core.errors import AdapterError, CheckpointError, ConfigError, DiskFull, JobAlreadyRunning
from studio.core.events import RunResumed, SampleSaved
from studio.core.model.lora import LoraFile, loras_applied
from studio.core.runlog import RunFolder, RunState, list_runs
from studio.core.train import export as exporting
from studio.core.train.export import Layout, export_lora
from studio.core.train.runs import (
    Difference,
    RunCache,
    branch_run,
    delete_run,
    differences,
    figures,
    find_run,
    sample_file,
    side_by_side,
    write_csv,
)


@pytest.fixture
def trained(config, run, with_optim):
    return run(with_optim(config, checkpoint_step_interval=1, learning_rate=1e-2))


def velocity(dit):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        return dit(
            torch.randn(1, 16, 3, 8, 8, generator=generator), torch.tensor([[0.0, 400.0, 400.0]]),
            torch.randn(1, 1, 4, 128, generator=generator), torch.ones(1, 4, dtype=torch.int64), num_cond_latents=1,
        )  # fmt: skip


@pytest.mark.parametrize("layout", list(Layout))
def test_an_exported_lora_does_what_the_lora_of_the_run_does(trained, tiny_bundle, tmp_path, layout):
    file = export_lora(trained, layout, tmp_path / "out")
    bare = velocity(tiny_bundle.dit)
    found = []
    for path in (trained.snapshot().lora, file):
        with loras_applied(tiny_bundle.dit, [LoraFile(path=path)]):
            found.append(velocity(tiny_bundle.dit))
    torch.testing.assert_close(found[1], found[0])
    assert (found[0] - bare).abs().max() > 1e-3
    with pytest.raises(ConfigError, match="out holds something already"):
        export_lora(trained, layout, tmp_path / "out")


def test_an_export_that_loses_or_changes_something_is_not_handed_out(trained, tmp_path, monkeypatch):
    def twice(state):
        return {f"transformer.{name}": tensor * 2 for name, tensor in state.items()}

    def without_one(state):
        lost = next(iter(state)).partition(".lora_")[0]
        return {f"transformer.{name}": tensor for name, tensor in state.items() if not name.startswith(lost)}

    for number, (broken, said) in enumerate([(twice, "changes .* otherwise"), (without_one, "got lost on the way")]):
        monkeypatch.setitem(exporting._CONVERT, Layout.DIFFUSERS, broken)
        with pytest.raises(AdapterError, match=said):
            export_lora(trained, Layout.DIFFUSERS, tmp_path / str(number))
        assert not any((tmp_path / str(number)).iterdir())


def test_where_nothing_can_be_written_nothing_is_exported(trained, tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file/deep"):
        with pytest.raises(ConfigError, match="cannot be written"):
            export_lora(trained, Layout.PEFT, folder)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_without_a_lora_has_nothing_to_export(config, tmp_path):
    with pytest.raises(AdapterError, match="has no LoRA yet"):
        export_lora(RunFolder.create(config.output_dir, config), Layout.PEFT, tmp_path / "out")


def test_a_branch_goes_on_from_its_checkpoint_and_leaves_the_run_alone(trained, run):
    before = sorted((path, path.stat().st_mtime_ns) for path in trained.path.rglob("*"))
    branch = branch_run(trained, 2)
    assert branch.state() is RunState.INTERRUPTED
    assert branch.state().can_resume
    assert [step for step, _ in branch.snapshot().losses] == [1, 2]
    run(branch.config(), resume=branch)
    assert branch.snapshot().losses == trained.snapshot().losses
    files = [folder.path / "checkpoints/step-000004/lora.safetensors" for folder in (trained, branch)]
    first, second = map(load_file, files)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert sorted((path, path.stat().st_mtime_ns) for path in trained.path.rglob("*")) == before


def test_a_checkpoint_that_is_not_there_or_is_damaged_gives_no_branch(trained):
    with pytest.raises(CheckpointError, match="no checkpoint of step 9") as caught:
        branch_run(trained, 9)
    assert caught.value.remedy == "There are: 1, 2, 3, 4."
    (trained.path / "checkpoints/step-000002/state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has changed"):
        branch_run(trained, 2)
    assert list_runs(trained.path.parent) == (trained,)


def test_a_branch_that_has_no_room_or_cannot_be_written_leaves_nothing(trained, monkeypatch):
    def gone(*_, **__):
        raise shutil.Error([("from", "to", "it is gone")])

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copytree", gone)
        with pytest.raises(ConfigError, match="the checkpoint cannot be copied"):
            branch_run(trained, 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(DiskFull, match="The disk is full: the checkpoint needs"):
        branch_run(trained, 2)
    assert list_runs(trained.path.parent) == (trained,)


def test_a_run_is_deleted_unless_it_lives(trained):
    with trained.locked(), pytest.raises(JobAlreadyRunning):
        delete_run(trained)
    assert trained.state() is RunState.FINISHED
    other = trained.path.parent / "kept"
    other.mkdir()
    delete_run(trained)
    assert not trained.path.exists()
    assert other.is_dir()
    with pytest.raises(ConfigError):
        delete_run(RunFolder(other))
    assert other.is_dir(), "what is no run is not deleted"


def test_what_is_half_deleted_is_no_run_any_more(trained, monkeypatch):
    def refuse(path, **_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(ConfigError, match="cannot be deleted: Permission denied") as caught:
        delete_run(trained)
    assert caught.value.remedy == f"Delete the folder .{trained.name}.deleted."
    assert list_runs(trained.path.parent) == ()


def test_the_figures_of_a_run(trained):
    row = figures(trained)
    losses = [loss for _, loss in trained.snapshot().losses]
    assert (row.name, row.state, row.step, row.num_steps, row.num_checkpoints) == (
        trained.name, RunState.FINISHED, 4, 4, 4,
    )  # fmt: skip
    assert row.loss == pytest.approx(sum(losses) / 4)
    assert row.seconds > 0
    assert row.held_out is None
    assert row.num_bytes > sum(file.stat().st_size for file in trained.path.rglob("optim.safetensors"))


def test_configurations_differ_in_simpletuners_words(config, with_optim):
    clips = replace(config.data.datasets[0], num_frames=9)
    other = replace(
        with_optim(config, adam_beta1=0.5),
        data=replace(config.data, datasets=(clips, *config.data.datasets[1:])),
        lora=replace(config.lora, rank=16),
        noise=NoiseConfig(shift=3.0),
        seed=8,
    )
    assert differences(config, other) == (
        Difference(key="adam_beta1", first=0.9, second=0.5),
        Difference(key="clips.video.num_frames", first=5, second=9),
        Difference(key="flow_schedule_shift", first=None, second=3.0),
        Difference(key="lora_rank", first=4, second=16),
        Difference(key="seed", first=7, second=8),
    )
    assert differences(config, config) == ()


def test_the_series_as_csv(trained, tmp_path):
    write_csv(trained, tmp_path / "series.csv")
    with (tmp_path / "series.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["step"]), float(row["loss"])) for row in rows] == list(trained.snapshot().losses)
    assert rows[0]["clips"].startswith("clips/shape_")
    with pytest.raises(ConfigError, match=r"series\.csv is there already"):
        write_csv(trained, tmp_path / "series.csv")


def test_a_damaged_checkpoint_is_said_and_looked_at_again_once_it_changes(trained):
    cache = RunCache()
    assert [(one.step, one.damage) for one in cache.checkpoints(trained)] == [(4, ""), (3, ""), (2, ""), (1, "")]
    (trained.path / "checkpoints/step-000003/optim.safetensors").write_bytes(b"cut off")
    found = {one.step: one.damage for one in cache.checkpoints(trained)}
    assert found[3] == "step-000003/optim.safetensors has changed since it was written."
    assert not any(damage for step, damage in found.items() if step != 3)


def test_figures_are_kept_until_something_happens_to_the_run(trained):
    cache = RunCache()
    first = cache.figures(trained)
    assert cache.figures(trained) is first
    trained.append(RunResumed())
    assert cache.figures(trained).state is RunState.INTERRUPTED
    with trained.locked():
        assert cache.figures(trained).state is RunState.NEW
    assert cache.figures(trained).state is RunState.INTERRUPTED


def add_sample(run, step, name, base="0123abcd"):
    path = f"samples/step-{step:06d}-{name}.mp4"
    (run.path / "samples").mkdir(exist_ok=True)
    (run.path / path).write_bytes(b"a video")
    run.append(SampleSaved(step=step, path=path, prompt="", base=f"samples/base-{name}-{base}.mp4"))


def test_samples_of_one_start_frame_lie_side_by_side(config):
    first, second = (RunFolder.create(config.output_dir, config) for _ in range(2))
    for run, samples in (
        (first, [(2, "cat"), (4, "cat"), (6, "cat"), (2, "dog"), (2, "gone"), (2, "alone")]),
        (second, [(2, "cat"), (4, "cat"), (8, "cat"), (3, "dog"), (2, "gone")]),
    ):
        for step, name in samples:
            add_sample(run, step, name, base="00000000" if (run, name) == (second, "dog") else "0123abcd")
    (second.path / "samples/step-000002-gone.mp4").unlink()
    found = [(pair.name, pair.first.step, pair.second.step, pair.is_alike) for pair in side_by_side(first, second)]
    assert found == [("cat", 4, 4, True), ("dog", 2, 3, False)]


def test_a_sample_outside_its_run_is_none(config, tmp_path):
    run = RunFolder.create(config.output_dir, config)
    (config.output_dir / "secret.mp4").write_bytes(b"")
    for path in ("../secret.mp4", str(config.output_dir / "secret.mp4"), "samples/none.mp4"):
        assert sample_file(run, SampleSaved(step=1, path=path, prompt="")) is None


def test_a_run_is_found_by_the_beginning_of_its_name(config):
    runs = [RunFolder.create(config.output_dir, config) for _ in range(2)]
    assert find_run(config.output_dir, runs[0].name) == runs[0]
    assert find_run(config.output_dir, runs[1].name[:-1]) == runs[1]
    for name, said in (("2", "begins several"), ("", "is no run"), ("..", "is no run"), ("x" * 300, "is no run")):
        with pytest.raises(ConfigError, match=said):
            find_run(config.output_dir, name)
    with pytest.raises(ConfigError, match="is no run"):
        find_run(config.output_dir, runs[0].name[:-1], is_whole=True)


def test_the_command_line_shows_compares_and_hands_on(trained, config, run, tmp_path, capsys):
    def said(*arguments, code=0):
        assert main(["runs", *map(str, arguments), "--runs", str(config.output_dir)]) == code
        return capsys.readouterr()

    assert tuple(Layout) == LAYOUTS
    other = run(replace(config, seed=8))
    listed = said("list").out.splitlines()
    assert [trained.name in line for line in listed] == [False, False, True]
    assert "4 of 4" in listed[2]
    shown = said("show", trained.name).out
    assert "Checkpoint: step 4 · whole" in shown
    assert "  learning_rate: 0.01" in shown
    assert "  seed  " not in said("diff", trained.name, trained.name).out
    assert said("diff", trained.name, other.name).out.splitlines()[-1].split() == ["seed", "7", "8"]
    assert "every key landed" in said("export", trained.name, "--layout", "comfyui", "--into", tmp_path / "lora").out
    assert said("csv", trained.name, "--out", tmp_path / "steps.csv").out.strip() == str(tmp_path / "steps.csv")
    assert said("card", trained.name, "--into", tmp_path / "card").out.strip() == str(tmp_path / "card/README.md")
    assert "is no run in" in said("show", "nothing", code=1).err


def test_the_command_line_continues_and_deletes(trained, config, capsys, monkeypatch):
    folder = ["--runs", str(config.output_dir)]
    assert main(["runs", "continue", trained.name, *folder]) == 1
    assert "Give --from-step to go on from a checkpoint." in capsys.readouterr().err
    assert main(["runs", "continue", trained.name, "--from-step", "2", *folder]) == 0
    (branch,) = [run for run in list_runs(config.output_dir) if run.name != trained.name]
    assert branch.snapshot().losses == trained.snapshot().losses
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert main(["runs", "delete", branch.name, *folder]) == 1
    assert capsys.readouterr().err.endswith("Give --yes.\n")
    assert main(["runs", "delete", branch.name[:-1], "--yes", *folder]) == 1
    assert "is no run in" in capsys.readouterr().err
    assert branch.path.is_dir()
    assert main(["runs", "delete", branch.name, "--yes", *folder]) == 0
    assert list_runs(config.output_dir) == (trained,)
