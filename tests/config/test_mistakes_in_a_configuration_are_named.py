"""Every wrong key and value is named with its line, all of them in one reading."""

import json

import pytest

from studio.core.errors import ConfigError
from studio.core.simpletuner import read_project
from studio.core.types import IssueCode, Severity

CLIPS = {
    "id": "clips",
    "type": "local",
    "dataset_type": "video",
    "instance_data_dir": "clips",
    "caption_strategy": "textfile",
    "resolution": 448,
    "conditioning_data": "frames",
    "video": {"num_frames": 93, "is_i2v": True},
}
FRAMES = {"id": "frames", "type": "local", "dataset_type": "conditioning", "instance_data_dir": "frames"}


@pytest.fixture
def read(tmp_path):
    def read(config=None, datasets=(CLIPS, FRAMES)):
        (tmp_path / "multidatabackend.json").write_text(json.dumps(list(datasets), indent=1))
        text = config if isinstance(config, str) else json.dumps({"output_dir": "out", **(config or {})}, indent=1)
        (tmp_path / "config.json").write_text(text)
        return read_project(tmp_path / "config.json")

    return read


def about(project, subject):
    return [issue for issue in project.issues if issue.subject == subject]


def errors(project):
    return [issue for issue in project.issues if issue.severity is Severity.ERROR]


def test_a_sound_configuration_raises_no_issue_but_the_file_beside_it(read):
    project = read()
    assert [issue.subject for issue in project.issues] == ["data_backend_config"]
    assert project.run.data.datasets[0].num_frames == 93


def test_samples_that_are_not_rendered_are_said(read):
    (issue,) = about(read({"validation_using_datasets": False}), "validation_using_datasets")
    assert "no samples are rendered" in issue.message
    assert not about(read({"validation_using_datasets": False, "eval_dataset_id": "clips"}), issue.subject)


def test_an_unknown_key_is_a_warning_with_the_nearest_name(read):
    (issue,) = about(read({"learning_rat": 1e-4}), "learning_rat")
    assert (issue.code, issue.severity) == (IssueCode.KEY_UNKNOWN, Severity.WARNING)
    assert "learning_rate" in issue.remedy
    assert "config.json, line 3" in issue.message


def test_all_mistakes_come_in_one_reading(read):
    project = read(
        {"lora_rank": 0, "learning_rate": "fast", "gradient_checkpointing": "False", "model_type": "full"},
        [{**CLIPS, "resolution_type": "edge", "video": {"num_frames": 3}}, {**FRAMES, "id": "clips"}],
    )
    wrong = {issue.subject for issue in errors(project)}
    assert wrong == {
        "lora_rank",
        "learning_rate",
        "gradient_checkpointing",
        "model_type",
        "clips.resolution_type",
        "clips.video.num_frames",
        "clips.id",
        "clips.conditioning_data",
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lora_rank", 8.5),
        ("lora_rank", True),
        ("lora_rank", "8"),
        ("lora_alpha", 0),
        ("lora_dropout", 1),
        ("learning_rate", -1e-4),
        ("train_batch_size", 0),
        ("aspect_bucket_alignment", 24),
        ("validation_resolution", "480x830"),
        ("validation_resolution", "wide"),
        ("validation_resolution", True),
        ("attention_mechanism", "sla"),
        ("model_family", "wan"),
        ("model_flavour", "distilled"),
        ("output_dir", "s3://bucket/runs"),
        ("output_dir", ""),
        ("output_dir", "x" * 300),
        ("lora_type", "lycoris"),
    ],
)
def test_a_value_that_cannot_be_used_is_an_error_naming_its_key_and_line(read, key, value):
    (issue,) = [issue for issue in about(read({key: value}), key) if issue.severity is Severity.ERROR]
    assert key in issue.message
    assert "config.json, line" in issue.message
    assert issue.remedy


def test_null_means_that_a_key_is_not_there(read):
    assert about(read({"lora_alpha": None, "validation_resolution": None}), "lora_alpha") == []


def test_leading_dashes_and_older_names_are_understood_and_said(read):
    project = read({"--lora_rank": 4, "validation_steps": 7, "checkpointing_steps": 9})
    assert project.run.lora.rank == 4
    assert project.run.validation.step_interval == 7
    assert project.run.optim.checkpoint_step_interval == 9
    assert about(project, "lora_rank")
    assert about(project, "validation_step_interval")


def test_two_names_of_one_key_with_different_values_are_an_error(read):
    project = read({"validation_steps": 7, "validation_step_interval": 8})
    assert [issue.subject for issue in errors(project)] == ["validation_step_interval"]


def test_a_key_written_twice_is_an_error_with_both_lines(read):
    (issue,) = errors(read('{\n "lora_rank": 4,\n "output_dir": "x",\n "lora_rank": 8\n}'))
    assert issue.subject == "lora_rank"
    assert "line 4" in issue.message
    assert "line 2" in issue.message


def test_known_keys_without_effect_are_said_and_louder_when_they_change_the_result(read):
    project = read({"vae_batch_size": 4, "optimizer": "lion", "report_to": "wandb"})
    assert [issue.severity for issue in about(project, "vae_batch_size")] == [Severity.NOTICE]
    assert [issue.severity for issue in about(project, "optimizer")] == [Severity.WARNING]
    assert [issue.code for issue in about(project, "report_to")] == [IssueCode.KEY_NOT_USED]
    assert about(read({"optimizer": "adamw"}), "optimizer") == []


def test_trackers_that_are_known_are_taken_and_the_others_named(read):
    assert read({"report_to": "tensorboard, trackio"}).run.sharing.report_to == ("tensorboard", "trackio")
    assert read({"report_to": "none"}).run.sharing.report_to == ()
    project = read({"report_to": ["wandb", "trackio"]})
    assert project.run.sharing.report_to == ("trackio",)
    assert [issue.message.partition(": ")[2] for issue in about(project, "report_to")] == [
        "report_to names wandb, which nothing is sent to; tensorboard and trackio are."
    ]


def test_a_name_for_the_hub_is_a_name_of_the_hub(read):
    project = read({"push_to_hub": True, "hub_model_id": "me/my-lora"})
    assert (project.run.sharing.push_to_hub, project.run.sharing.hub_model_id) == (True, "me/my-lora")
    assert about(project, "hub_model_id") == []
    assert [issue.severity for issue in about(read({"hub_model_id": "my-lora"}), "hub_model_id")] == [Severity.NOTICE]
    assert [issue.subject for issue in errors(read({"hub_model_id": "../x"}))] == ["hub_model_id"]


def test_steps_win_over_epochs_and_both_zero_is_an_error(read):
    project = read({"max_train_steps": 10, "num_train_epochs": 2})
    assert project.run.optim.max_train_steps == 10
    assert about(project, "max_train_steps")
    assert read({"max_train_steps": 0}).run.optim.max_train_steps is None
    assert errors(read({"max_train_steps": 0, "num_train_epochs": 0}))


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("480x832", (480, 832)),
        ("832x480", (480, 832)),
        ("512X512", (512, 512)),
        (480, (480, 480)),
        ("480", (480, 480)),
        ("0.25", (496, 496)),
        ("448x832,512x512", (448, 832)),
    ],
)
def test_a_validation_resolution_is_height_by_width_and_says_which_was_taken(read, written, size):
    project = read({"validation_resolution": written})
    assert project.run.validation.resolution == size
    said = " ".join(issue.message for issue in about(project, "validation_resolution"))
    assert f"{size[0]} high and {size[1]} wide" in said


def test_90_frames_become_89_and_name_89_and_93(read):
    project = read(
        {"validation_num_video_frames": 90}, [{**CLIPS, "video": {"num_frames": 90, "is_i2v": True}}, FRAMES]
    )
    assert project.run.validation.num_frames == 89
    assert project.run.data.datasets[0].num_frames == 89
    for subject in ("validation_num_video_frames", "clips.video.num_frames"):
        (issue,) = about(project, subject)
        assert issue.code is IssueCode.FRAMES_OFF_STRIDE
        assert "89" in issue.remedy
        assert "93" in issue.remedy


def test_is_i2v_in_both_places_must_agree(read):
    agreeing = read(None, [{**CLIPS, "is_i2v": True}, FRAMES])
    assert errors(agreeing) == []
    (issue,) = errors(read(None, [{**CLIPS, "is_i2v": False}, FRAMES]))
    assert issue.subject == "clips.is_i2v"


def test_start_frames_that_are_not_defined_are_an_error_listing_the_datasets(read):
    (issue,) = errors(read(None, [{**CLIPS, "conditioning_data": ["stills"]}]))
    assert issue.code is IssueCode.DATASET_UNKNOWN
    assert "stills" in issue.message
    assert "clips" in issue.message


def test_datasets_that_cannot_be_trained_on_are_refused_and_caches_passed_over(read):
    project = read(
        None,
        [
            CLIPS,
            FRAMES,
            {"id": "pictures", "dataset_type": "image", "instance_data_dir": "x"},
            {"id": "cloud", "type": "aws", "dataset_type": "video", "instance_data_dir": "x"},
            {"id": "text", "dataset_type": "text_embeds", "cache_dir": "x", "default": True},
            {"id": "off", "dataset_type": "video", "instance_data_dir": "x", "disabled": True},
        ],
    )
    assert {issue.subject for issue in errors(project)} == {"pictures.dataset_type", "cloud.type"}
    assert [dataset.id for dataset in project.run.data.datasets][:2] == ["clips", "frames"]
    assert about(project, "off")


def test_a_dataset_list_without_clips_says_so(read):
    assert any(issue.code is IssueCode.NO_CLIPS for issue in errors(read(None, [FRAMES])))


def test_a_missing_dataset_file_and_a_broken_one_are_issues_beside_the_others(read, tmp_path):
    project = read({"data_backend_config": "elsewhere.json", "lora_rank": 0})
    assert {issue.subject for issue in errors(project)} == {"data_backend_config", "lora_rank"}
    (tmp_path / "broken.json").write_text('[\n {"id": }\n]')
    project = read({"data_backend_config": "broken.json", "lora_rank": 0})
    assert {issue.subject for issue in errors(project)} == {"data_backend_config", "lora_rank"}
    assert any("broken.json, line 2, column 9" in issue.message for issue in project.issues)


def test_instanceprompt_without_a_prompt_is_an_error(read):
    (issue,) = errors(read(None, [{**CLIPS, "caption_strategy": "instanceprompt"}, FRAMES]))
    assert issue.subject == "clips.instance_prompt"


def test_a_resolution_in_the_wrong_unit_is_an_error(read):
    (issue,) = errors(read(None, [{**CLIPS, "resolution": 480, "resolution_type": "area"}, FRAMES]))
    assert "megapixels" in issue.message
    (issue,) = errors(read(None, [{**CLIPS, "resolution": 0.4}, FRAMES]))
    assert issue.subject == "clips.resolution"


@pytest.mark.parametrize("text", ["3", '"text"', "null"])
def test_a_file_that_is_neither_object_nor_list_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_project(tmp_path)


def test_a_clip_instead_of_its_folder_is_refused_with_what_to_give(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"\x00\xff")
    with pytest.raises(ConfigError, match="clip.mp4 is neither a folder nor a configuration") as caught:
        read_project(tmp_path / "clip.mp4")
    assert "folder of the dataset, its config.json or its multidatabackend.json" in caught.value.remedy


def test_a_path_that_leads_nowhere_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        read_project(tmp_path / "nothing.json")
