"""What can be done with a run once it lies there: figures, differences, a branch, an export, a CSV, deletion."""

import csv
import random
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from studio.core.config import NoiseConfig
from studio.core.errors import AdapterError, CheckpointError, ConfigError, JobAlreadyRunning
from studio.core.model.lora import LoraFile, loras_applied
from studio.core.runlog import RunFolder, RunState, list_runs
from studio.core.train import export as exporting
from studio.core.train.export import Layout, export_lora
from studio.core.train.runs import Difference, branch_run, delete_run, differences, figures, thinned, write_csv


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


def test_thinned_points_keep_the_extremes_the_ends_and_the_order():
    draw = random.Random(0)
    points = [(float(i), draw.random()) for i in range(20_000)]
    points[7_777], points[12_345] = (7_777.0, 50.0), (12_345.0, -50.0)
    thin = thinned(points)
    assert len(thin) <= 1000
    assert {points[0], points[-1], points[7_777], points[12_345]} <= set(thin)
    assert list(thin) == sorted(thin)
    assert thinned(points[:1000]) == tuple(points[:1000])


def test_the_series_as_csv(trained, tmp_path):
    write_csv(trained, tmp_path / "series.csv")
    with (tmp_path / "series.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["step"]), float(row["loss"])) for row in rows] == list(trained.snapshot().losses)
    assert rows[0]["clips"].startswith("clips/shape_")
    with pytest.raises(ConfigError, match=r"series\.csv is there already"):
        write_csv(trained, tmp_path / "series.csv")
