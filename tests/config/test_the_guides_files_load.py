"""The two JSON files of the guide, byte for byte, comments and all; what was assumed is said."""

from pathlib import Path

import pytest

from studio.core.config import PUBLISHED_MODEL
from studio.core.simpletuner import read_project
from studio.core.types import IssueCode, Severity

HERE = Path(__file__).parent


@pytest.fixture
def guide(tmp_path):
    (tmp_path / "config.json").write_bytes((HERE / "guide_config.jsonc").read_bytes())
    (tmp_path / "multidatabackend.json").write_bytes((HERE / "guide_multidatabackend.jsonc").read_bytes())
    return read_project(tmp_path / "config.json")


def notices(project, subject):
    return [i.message for i in project.issues if i.subject == subject and i.severity is Severity.NOTICE]


def test_every_value_of_the_guide_reaches_the_run(guide):
    run = guide.run
    assert run.model.source == PUBLISHED_MODEL
    assert run.model.gradient_checkpointing is True
    assert (run.data.train_batch_size, run.data.aspect_bucket_alignment) == (1, 64)
    assert (run.lora.rank, run.lora.resolved_alpha, run.lora.dropout) == (8, 8.0, 0.0)
    assert run.optim.learning_rate == 1e-4
    validation = run.validation
    assert validation.resolution == (480, 832)
    assert (validation.num_frames, validation.num_inference_steps, validation.guidance_scale) == (93, 40, 4.0)
    assert validation.using_datasets is True


def test_both_datasets_are_read_and_linked(guide):
    clips, start_frames = guide.run.data.datasets
    assert (clips.id, clips.kind, clips.is_i2v) == ("longcat-video-train", "video", True)
    assert clips.conditioning_ids == ("longcat-video-cond",)
    assert clips.directory == Path("/data/video-clips")
    assert clips.caption_strategy == "textfile"
    assert (clips.resolution, clips.resolution_type, clips.num_frames) == (480.0, "pixel_area", 93)
    assert clips.cache_dir == Path("/cache/vae/longcat/video")
    assert (start_frames.kind, start_frames.caption_strategy) == ("conditioning", None)
    assert start_frames.directory == Path("/data/video-start-frames")


def test_the_guide_has_no_errors(guide):
    assert [i for i in guide.issues if i.severity is Severity.ERROR] == []


def test_what_was_normalised_is_said(guide):
    assert "480 high and 832 wide" in notices(guide, "validation_resolution")[0]
    assert "not on the 64 px grid" in notices(guide, "validation_resolution")[1]
    assert "as if it stood in the video block" in notices(guide, "longcat-video-train.is_i2v")[0]
    assert "93 frames" in notices(guide, "longcat-video-train.video.num_frames")[0]
    assert "480x832 clips become 384x704" in notices(guide, "longcat-video-train.resolution")[0]
    assert notices(guide, "data_backend_config")
    assert notices(guide, "output_dir")


def test_the_validation_dataset_that_the_guide_never_defines_is_named_with_those_that_exist(guide):
    issue = next(i for i in guide.issues if i.subject == "eval_dataset_id")
    assert issue.code is IssueCode.DATASET_UNKNOWN
    assert issue.severity is Severity.WARNING
    assert "longcat-video-val" in issue.message
    assert "longcat-video-train" in issue.message
    assert guide.run.validation.eval_dataset_id is None


def test_a_list_of_datasets_can_be_opened_by_itself(tmp_path):
    path = tmp_path / "multidatabackend.json"
    path.write_bytes((HERE / "guide_multidatabackend.jsonc").read_bytes())
    project = read_project(path)
    assert len(project.run.data.datasets) == 2
    assert project.run.lora.rank == 8


def test_forcing_xformers_as_the_guide_says_is_accepted(tmp_path):
    text = (HERE / "guide_config.jsonc").read_text().replace("{", '{ "attention_implementation": "xformers",', 1)
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "multidatabackend.json").write_bytes((HERE / "guide_multidatabackend.jsonc").read_bytes())
    project = read_project(tmp_path)
    assert project.run.model.attention == "dense"
    assert any("xformers" in message for message in notices(project, "attention_mechanism"))
