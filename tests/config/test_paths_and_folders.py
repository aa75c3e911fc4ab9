"""Where things are looked for, and what a folder without configuration means."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from studio.core.config import PUBLISHED_MODEL
from studio.core.simpletuner import read_project
from studio.core.types import Severity


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def test_relative_paths_start_at_the_file_they_are_written_in(tmp_path):
    write(tmp_path / "config.json", {"data_backend_config": "data/sets.json", "output_dir": "out", "seed": 3})
    write(
        tmp_path / "data" / "sets.json",
        [{"id": "a", "dataset_type": "video", "instance_data_dir": "clips", "cache_dir_vae": "cache"}],
    )
    run = read_project(tmp_path / "config.json").run
    assert run.output_dir == tmp_path / "out"
    assert run.data.datasets[0].directory == tmp_path / "data" / "clips"
    assert run.data.datasets[0].cache_dir == tmp_path / "data" / "cache"
    assert run.seed == 3


def test_a_path_from_simpletuners_working_directory_is_found_beside_the_config(tmp_path):
    write(tmp_path / "config" / "config.json", {"data_backend_config": "config/multidatabackend.json"})
    write(tmp_path / "config" / "multidatabackend.json", [])
    project = read_project(tmp_path / "config" / "config.json")
    assert any("is taken" in i.message for i in project.issues if i.subject == "data_backend_config")


@pytest.mark.parametrize("written", ["tiny", PUBLISHED_MODEL, "someone/else"])
def test_the_shipped_checkpoint_and_hub_ids_stay_as_written(tmp_path, written):
    write(tmp_path / "config.json", {"pretrained_model_name_or_path": written})
    write(tmp_path / "multidatabackend.json", [])
    assert read_project(tmp_path).run.model.source == written


def test_a_model_folder_is_found_next_to_the_config_and_a_wrong_one_named(tmp_path):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    write(tmp_path / "multidatabackend.json", [])
    write(tmp_path / "config.json", {"pretrained_model_name_or_path": "models/mine"})
    assert read_project(tmp_path).run.model.source == str(tmp_path / "models" / "mine")
    write(tmp_path / "config.json", {"pretrained_model_name_or_path": "./models/none"})
    issues = read_project(tmp_path).issues
    assert any(i.severity is Severity.ERROR and i.subject == "pretrained_model_name_or_path" for i in issues)


def test_a_folder_is_read_through_its_config_first(tmp_path):
    write(tmp_path / "multidatabackend.json", [{"id": "a", "dataset_type": "video", "instance_data_dir": "x"}])
    assert read_project(tmp_path).run.lora.rank == 8
    write(tmp_path / "config.json", {"lora_rank": 4})
    project = read_project(tmp_path)
    assert project.run.lora.rank == 4
    assert project.run.data.datasets[0].id == "a"


def test_a_folder_of_clips_and_start_frames_needs_no_configuration(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "start_frames").mkdir()
    project = read_project(tmp_path)
    clips, start_frames = project.run.data.datasets
    assert clips.directory == tmp_path / "clips"
    assert clips.conditioning_ids == (start_frames.id,)
    assert "93 frames" in project.issues[0].message


def test_a_flat_folder_holds_its_start_frames_beside_the_clips(tmp_path):
    (dataset,) = read_project(tmp_path).run.data.datasets
    assert dataset.directory == tmp_path
    assert dataset.conditioning_ids == ()
    assert dataset.is_i2v


def test_reading_a_configuration_loads_neither_torch_nor_a_decoder():
    code = "import studio.core.simpletuner, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert loaded.isdisjoint({"torch", "av", "PIL", "numpy", "decord", "gradio"})


def test_two_validation_datasets_mean_the_first_and_eval_type_is_enough(tmp_path):
    datasets = [
        {"id": "a", "dataset_type": "video", "instance_data_dir": "x"},
        {"id": "b", "dataset_type": "eval", "instance_data_dir": "y"},
    ]
    write(tmp_path / "multidatabackend.json", datasets)
    write(tmp_path / "config.json", {})
    assert read_project(tmp_path).run.validation.eval_dataset_id == "b"
    write(tmp_path / "config.json", {"eval_dataset_id": ["a", "b"]})
    assert read_project(tmp_path).run.validation.eval_dataset_id == "a"


def test_every_validation_dataset_is_held_out(tmp_path):
    kinds = {"a": "video", "b": "video", "c": "eval", "d": "eval", "e": "video"}
    datasets = [{"id": name, "dataset_type": kind, "instance_data_dir": name} for name, kind in kinds.items()]
    write(tmp_path / "multidatabackend.json", datasets)
    write(tmp_path / "config.json", {"eval_dataset_id": ["d", "b"]})
    run = read_project(tmp_path).run
    assert [dataset.id for dataset in run.data.datasets if dataset.is_eval] == ["b", "c", "d"]
    assert run.validation.eval_dataset_id == "d"


def test_a_home_path_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "config.json", {"output_dir": "~/runs"})
    write(tmp_path / "multidatabackend.json", [])
    assert read_project(tmp_path).run.output_dir == Path(tmp_path / "runs")
