"""The guide's keys for memory fill the model's settings; what they cannot do together, or here, is said."""

import json

import pytest

from studio.core.simpletuner import read_project
from studio.core.types import Severity


@pytest.fixture
def read(tmp_path):
    def read(**keys):
        (tmp_path / "multidatabackend.json").write_text(
            json.dumps([{"id": "clips", "type": "local", "dataset_type": "video", "instance_data_dir": "clips"}])
        )
        (tmp_path / "config.json").write_text(json.dumps({"output_dir": "out"} | keys, indent=1))
        project = read_project(tmp_path / "config.json")
        return project.run.model, [issue for issue in project.issues if issue.subject in keys]

    return read


def test_every_key_fills_its_field(read):
    model, issues = read(
        base_model_precision="int8-quanto",
        gradient_checkpointing=False,
        gradient_checkpointing_keep_attention=True,
        musubi_blocks_to_swap=20,
        musubi_block_swap_device="cuda:1",
        vae_enable_tiling=True,
    )
    assert (model.base_precision, model.gradient_checkpointing, model.keep_attention) == ("int8-quanto", False, True)
    assert (model.blocks_to_swap, model.block_swap_device, model.vae_tiling) == (20, "cuda:1", True)
    assert not issues


def test_what_is_not_written_leaves_everything_on_the_device(read):
    model, _ = read()
    assert (model.base_precision, model.keep_attention, model.blocks_to_swap) == ("no_change", None, 0)
    assert not model.group_offload
    assert not model.vae_tiling


@pytest.mark.parametrize("precision", ["no_change", "fp8-torchao"])
def test_a_precision_under_its_own_name_is_taken_without_a_word(read, precision):
    model, issues = read(base_model_precision=precision)
    assert model.base_precision == precision
    assert not issues


def test_bf16_means_no_change_and_is_said(read):
    model, (issue,) = read(base_model_precision="bf16")
    assert model.base_precision == "no_change"
    assert issue.severity is Severity.NOTICE


@pytest.mark.parametrize("precision", ["int4-quanto", "nf4-bnb", "fp8-quanto", 8])
def test_another_precision_is_an_error_that_names_those_there_are(read, precision):
    _, (issue,) = read(base_model_precision=precision)
    assert issue.severity is Severity.ERROR
    assert '"int8-quanto", "fp8-torchao"' in issue.message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("musubi_blocks_to_swap", -1),
        ("musubi_blocks_to_swap", 1.5),
        ("musubi_block_swap_device", "disk"),
        ("enable_group_offload", "true"),
        ("vae_enable_tiling", 1),
    ],
)
def test_a_value_that_cannot_be_used_is_an_error(read, key, value):
    _, (issue,) = read(**{key: value})
    assert issue.severity is Severity.ERROR
    assert key in issue.message


def test_offload_and_swap_together_are_an_error_that_names_both(read):
    model, (issue,) = read(enable_group_offload=True, musubi_blocks_to_swap=4)
    assert issue.severity is Severity.ERROR
    assert issue.subject == "enable_group_offload"
    assert "musubi_blocks_to_swap 4" in issue.message
    assert model.blocks_to_swap == 4


def test_offload_is_by_layer_and_other_types_are_told_why(read):
    model, issues = read(enable_group_offload=True, group_offload_type="block_level", group_offload_use_stream=True)
    assert model.group_offload
    assert [issue.subject for issue in issues] == ["group_offload_type", "group_offload_use_stream"]
    assert "stay on the device" in issues[0].message
    assert "without streams" in issues[1].message


def test_a_setting_that_has_nothing_to_work_on_is_pointed_out(read):
    _, (kept, place) = read(
        gradient_checkpointing=False, gradient_checkpointing_keep_attention=True, musubi_block_swap_device="cuda:1"
    )
    assert kept.subject == "gradient_checkpointing_keep_attention"
    assert place.subject == "musubi_block_swap_device"
