"""Before a run starts its plan says what it will take and choose, and what is wrong with it; a failed one is mended."""

import json
from collections import namedtuple
from dataclasses import replace

import pytest
import torch

from studio.cli import USER_ERROR, main
from studio.core.config import ModelConfig
from studio.core.events import RunFailed, decode_event, encode_event
from studio.core.remedy import Change
from studio.core.runlog import RunState
from studio.core.settings_text import changed
from studio.core.train.checkpoint import list_checkpoints
from studio.core.train.learner import attach, detach
from studio.core.train.preflight import preflight
from studio.core.train.retry import can_continue_with, change_run, concrete, offered_settings
from studio.core.types import Severity
from studio.view.plan import plan_rows
from studio.view.words import words
from tests.memory_that_runs_out import failing

CHECKPOINTING = ("config.json", "gradient_checkpointing", True)


def without_cache(config):
    """The configuration with its latents beside its runs, where no other run has left any."""
    return replace(config, data=replace(config.data, datasets=tuple(
        replace(dataset, cache_dir=None) for dataset in config.data.datasets
    )))  # fmt: skip


def num_bytes(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_what_is_told_is_what_the_run_then_takes_and_does(config, report, run, tiny_bundle, with_optim):
    config = with_optim(without_cache(config), checkpoint_step_interval=1, checkpoints_total_limit=2, use_ema=True)
    plan = preflight(config, report)
    assert (plan.num_pairs, plan.num_steps, plan.num_passes, plan.seconds_per_step) == (4, 4, 2, None)
    parameters = attach(config, tiny_bundle)
    detach(tiny_bundle)
    assert plan.num_parameters == sum(parameter.numel() for parameter in parameters)

    folder = run(config)
    started = folder.snapshot().started
    assert (plan.device, plan.dtype) == (started.device, started.dtype)
    assert (plan.attention.kind, plan.attention.reason) == (started.attention, started.attention_reason)
    cache = num_bytes(config.output_dir / "cache")
    assert cache <= plan.disk.cache <= 3 * cache, "captions are estimated from above"
    checkpoints = list_checkpoints(folder.path / "checkpoints")
    assert len(checkpoints) == plan.disk.num_checkpoints - 1, "while one is written the oldest is there still"
    assert num_bytes(checkpoints[-1]) == pytest.approx(plan.disk.checkpoint, rel=0.1)
    assert num_bytes(folder.path / "lora") == pytest.approx(plan.disk.lora, rel=0.1)

    again = preflight(config, report)
    assert (again.disk.cache, again.pace_from) == (0, "run")
    assert again.seconds == 4 * folder.snapshot().seconds_per_step
    larger = preflight(replace(config, data=replace(config.data, train_batch_size=1)), report)
    assert (larger.disk.cache, larger.seconds) == (0, None), "a step of another size takes another time"


def blocked(config, report):
    """{subject: message} of what blocks."""
    plan = preflight(config, report)
    found = {issue.subject: issue.message for issue in plan.issues if issue.severity is Severity.ERROR}
    assert plan.is_ok is not bool(found)
    return found


def test_what_cannot_work_blocks_before_anything_is_loaded(config, report, tmp_path, monkeypatch):
    assert blocked(config, report) == {}
    (tmp_path / "file").touch()
    assert "is no folder" in blocked(replace(config, output_dir=tmp_path / "file" / "runs"), report)["output_dir"]
    lora = replace(config.lora, init_from=tmp_path / "no.safetensors")
    assert "no.safetensors" in blocked(replace(config, lora=lora), report)["init_lora"]
    (tmp_path / "half").mkdir()
    half = replace(config, model=replace(config.model, source=str(tmp_path / "half")))
    assert "lacks dit/config.json" in blocked(half, report)["pretrained_model_name_or_path"]
    if not torch.cuda.is_available():
        cuda = replace(config, model=ModelConfig(source="tiny", device="cuda"))
        assert "no CUDA device" in blocked(cuda, report)["device"]
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("studio.core.train.preflight.shutil.disk_usage", lambda _: usage(0, 0, 1_000_000))
    assert "1.0 MB are free" in blocked(config, report)["output_dir"]


def test_a_model_that_is_not_here_is_said_and_not_fetched(config, report, monkeypatch):
    monkeypatch.setattr("studio.core.model.load._download", lambda _: pytest.fail("it is fetched"))
    assert preflight(replace(config, model=replace(config.model, source="final")), report).source == "final"
    plan = preflight(replace(config, model=replace(config.model, source="nobody/has-this-model")), report)
    assert (plan.is_here, plan.disk.total, plan.attention, plan.is_ok) == (False, None, None, True)
    rows = dict(plan_rows(plan, words("es")))
    assert rows["Modelo"] == "nobody/has-this-model, se descarga del hub al empezar"
    assert rows["Disco"].startswith("desconocido")


@pytest.mark.parametrize(
    ("section", "fields", "subject"),
    [
        ("optim", {"lr_scheduler": "cosine", "lr_warmup_steps": 4}, "lr_warmup_steps"),
        ("optim", {"lr_scheduler": "linear", "lr_end": 1.0}, "lr_end"),
        ("optim", {"checkpoint_step_interval": 500}, "checkpoint_step_interval"),
        ("validation", {"eval_step_interval": 5}, "eval_steps_interval"),
        ("model", {"blocks_to_swap": 3}, "musubi_blocks_to_swap"),
        ("data", {"train_batch_size": 9}, "5f 64x64"),
    ],
)
def test_settings_that_do_nothing_or_contradict_are_named(config, report, section, fields, subject):
    plan = preflight(replace(config, **{section: replace(getattr(config, section), **fields)}), report)
    assert subject in [issue.subject for issue in plan.issues]
    assert plan.is_ok


def test_the_command_says_the_same_and_starts_nothing_that_is_blocked(shapes_dataset, tmp_path, capsys):
    datasets = [{
        "id": "clips", "type": "local", "dataset_type": "video", "instance_data_dir": str(shapes_dataset / "clips"),
        "caption_strategy": "textfile", "resolution": 64, "resolution_type": "pixel",
        "video": {"num_frames": 9, "is_i2v": False},
    }]  # fmt: skip
    settings = {"pretrained_model_name_or_path": "tiny", "max_train_steps": 3, "init_lora": "no.safetensors"}
    (tmp_path / "config.json").write_text(json.dumps(settings | {"output_dir": "runs"}))
    (tmp_path / "multidatabackend.json").write_text(json.dumps(datasets))
    assert main(["train", "--config", str(tmp_path)]) == USER_ERROR
    said = capsys.readouterr().out
    assert "every clip about 0.8 times" in said
    assert "unknown until it is measured" in said
    assert "no.safetensors" in said
    assert not (tmp_path / "runs").exists()


def test_a_run_out_of_memory_offers_settings_and_goes_on_with_them(config, run, tiny_bundle, with_optim):
    config = with_optim(config, checkpoint_step_interval=1)
    with failing(tiny_bundle.dit.blocks[1], at_call=2):
        folder = run(config)
    snapshot = folder.snapshot()
    assert snapshot.failure.remedy.startswith(str(Change((CHECKPOINTING,))))
    settings = offered_settings(snapshot)
    assert settings == (CHECKPOINTING,)
    assert can_continue_with(settings)
    change_run(folder, settings)
    assert folder.config() == changed(config, settings)
    run(folder.config(), resume=folder)
    assert folder.state() is RunState.FINISHED
    assert folder.snapshot().started.from_step == 1
    assert offered_settings(folder.snapshot()) == ()


def test_a_line_of_an_older_run_has_no_settings_and_loads():
    event = RunFailed(step=3, message="m", remedy="r", settings=(CHECKPOINTING,))
    line = encode_event(event, time=1.0)
    assert decode_event(line) == (1.0, event)
    old = {key: value for key, value in json.loads(line).items() if key != "settings"}
    assert decode_event(json.dumps(old)) == (1.0, RunFailed(step=3, message="m", remedy="r"))


@pytest.mark.parametrize(
    ("kind", "resolution", "expected"), [("pixel", 128, 64), ("pixel_area", 128, 64), ("area", 0.016384, 0.004096)]
)
def test_a_smaller_size_is_a_resolution_that_gives_it(config, report, kind, resolution, expected):
    clips, frames = config.data.datasets
    large = replace(clips, resolution=float(resolution), resolution_type=kind, num_frames=9)
    config = replace(config, data=replace(config.data, datasets=(large, frames)))
    wanted = (
        ("multidatabackend.json", "video.num_frames", 5),
        ("multidatabackend.json", "resolution", "96x96"),
    )
    settings = concrete(wanted, config, report.pairs)
    assert settings == (
        ("multidatabackend.json", "clips.video.num_frames", 5),
        ("multidatabackend.json", "clips.resolution", expected),
    )
    assert not can_continue_with(settings)
    dataset = changed(config, settings).data.datasets[0]
    assert (dataset.num_frames, dataset.resolution) == (5, expected)
