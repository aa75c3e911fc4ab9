"""What a dataset's owner writes about clips, captions and crops reaches the run, or the reason why not is said."""

import json

import pytest

from studio.core.simpletuner import read_project
from studio.core.types import IssueCode, Severity

CLIPS = {
    "id": "clips",
    "type": "local",
    "dataset_type": "video",
    "instance_data_dir": "clips",
    "caption_strategy": "textfile",
    "resolution": 448,
    "is_i2v": False,
    "video": {"num_frames": 93},
}


@pytest.fixture
def read(tmp_path):
    """read(config, **keys of the dataset): the project."""

    def read(config=None, **keys):
        video = {**CLIPS["video"], **keys.pop("video", {})}
        (tmp_path / "multidatabackend.json").write_text(json.dumps([{**CLIPS, **keys, "video": video}]))
        (tmp_path / "config.json").write_text(json.dumps({"output_dir": "out", **(config or {})}))
        return read_project(tmp_path)

    return read


def about(project, key):
    return [issue for issue in project.issues if issue.subject.removeprefix("clips.") == key]


@pytest.mark.parametrize(
    ("keys", "field", "value"),
    [
        ({"video": {"min_frames": 49}}, "min_frames", 49),
        ({"video": {"max_frames": 200}}, "max_frames", 200),
        ({"minimum_aspect_ratio": 0.5}, "min_aspect", 0.5),
        ({"maximum_aspect_ratio": 2}, "max_aspect", 2.0),
        ({"minimum_image_size": 256}, "min_size", 256.0),
        ({"max_num_samples": 3}, "max_samples", 3),
        ({"disable_multiline_split": True}, "split_captions", False),
        ({"disable_multiline_split": False}, "split_captions", True),
        ({"prepend_instance_prompt": True, "instance_prompt": "sks"}, "prepend_instance_prompt", True),
        ({"only_instance_prompt": True, "instance_prompt": "sks"}, "caption_strategy", "instanceprompt"),
        ({"caption_strategy": "instanceprompt", "instance_prompt": "sks"}, "caption_strategy", "instanceprompt"),
        ({"caption_strategy": "filename"}, "caption_strategy", "filename"),
        ({"caption_strategy": None}, "caption_strategy", None),
        ({"resolution_type": "published", "resolution": 480}, "resolution_type", "published"),
    ],
)
def test_a_key_reaches_the_run_and_nothing_is_said(read, keys, field, value):
    project = read(**keys)
    assert getattr(project.run.data.datasets[0], field) == value
    assert not [issue for key in keys for issue in about(project, key)]


def test_keys_of_the_configuration_are_those_of_every_dataset_that_has_none(read):
    config = {"framerate": 15, "minimum_image_size": 300}
    assert read(config).run.data.framerate == 15
    assert read(config).run.data.datasets[0].min_size == 300
    assert read(config, minimum_image_size=0).run.data.datasets[0].min_size == 0
    assert read().run.data.framerate is None


@pytest.mark.parametrize("value", [0, -15, "15", 1000, True])
def test_a_frame_rate_that_is_none_is_an_error(read, value):
    (issue,) = about(read({"framerate": value}), "framerate")
    assert (issue.code, issue.severity) == (IssueCode.VALUE_INVALID, Severity.ERROR)


@pytest.mark.parametrize(
    ("low", "high", "keys"),
    [
        ("video.min_frames", "video.max_frames", {"video": {"min_frames": 93, "max_frames": 49}}),
        ("minimum_aspect_ratio", "maximum_aspect_ratio", {"minimum_aspect_ratio": 2, "maximum_aspect_ratio": 1}),
    ],
)
def test_limits_that_leave_nothing_are_an_error(read, low, high, keys):
    (issue,) = about(read(**keys), low)
    assert issue.severity is Severity.ERROR
    assert high in issue.message


@pytest.mark.parametrize("keys", [{"prepend_instance_prompt": True}, {"only_instance_prompt": True}])
def test_a_prompt_that_is_wanted_and_not_there_is_an_error(read, keys):
    (issue,) = about(read(**keys), "instance_prompt")
    assert issue.severity is Severity.ERROR


@pytest.mark.parametrize("strategy", ["parquet", "huggingface", "webshart", "text"])
def test_captions_from_elsewhere_are_refused_with_those_that_are_known(read, strategy):
    found = about(read(caption_strategy=strategy), "caption_strategy")
    (issue,) = (issue for issue in found if issue.severity is Severity.ERROR)
    assert all(known in issue.message for known in ("textfile", "filename", "instanceprompt"))


def test_buckets_by_aspect_are_accepted_and_it_is_said_that_frames_separate_them_too(read):
    (issue,) = about(read(video={"bucket_strategy": "aspect_ratio"}), "video.bucket_strategy")
    assert issue.severity is Severity.NOTICE
    assert "the number of frames separates buckets too" in issue.message
    assert about(read(video={"bucket_strategy": "resolution_frames"}), "video.bucket_strategy") == []
    (issue,) = about(read(video={"bucket_strategy": "size"}), "video.bucket_strategy")
    assert issue.severity is Severity.ERROR


@pytest.mark.parametrize(("crop", "says"), [(False, "nothing is stretched"), (True, "keep the aspect")])
def test_what_happens_to_what_hangs_over_is_said(read, crop, says):
    (issue,) = about(read(crop=crop), "crop")
    assert issue.severity is Severity.NOTICE
    assert says in issue.message


def test_a_crop_in_quotes_is_an_error_since_simpletuner_takes_it_as_true(read):
    (issue,) = about(read(crop="False"), "crop")
    assert issue.severity is Severity.ERROR
    assert "without quotes" in issue.message


@pytest.mark.parametrize(
    ("key", "silent", "loud"),
    [("crop_style", "center", "random"), ("crop_aspect", "preserve", "square"), ("train_batch_size", None, 2)],
)
def test_what_would_change_the_training_and_does_not_is_a_warning(read, key, silent, loud):
    assert about(read(**{key: silent}), key) == []
    (issue,) = about(read(**{key: loud}), key)
    assert (issue.code, issue.severity) == (IssueCode.KEY_NOT_USED, Severity.WARNING)


@pytest.mark.parametrize(("resolution", "alignment"), [(500, 64), (480, 48), (0.4, 64)])
def test_a_published_table_that_does_not_exist_is_an_error_and_the_rest_is_still_read(read, resolution, alignment):
    project = read({"aspect_bucket_alignment": alignment}, resolution_type="published", resolution=resolution)
    (issue,) = about(project, "resolution_type")
    assert issue.severity is Severity.ERROR
    assert "480 or 720" in issue.remedy
    assert project.run.data.datasets[0].resolution_type == "pixel_area"


@pytest.mark.parametrize("place", ["beside", "inside", "both"])
def test_is_i2v_is_read_in_both_its_places(tmp_path, place):
    keys = {key: value for key, value in CLIPS.items() if key != "is_i2v"}
    if place != "inside":
        keys["is_i2v"] = False
    if place != "beside":
        keys["video"] = {**CLIPS["video"], "is_i2v": False}
    (tmp_path / "multidatabackend.json").write_text(json.dumps([keys]))
    assert read_project(tmp_path).run.data.datasets[0].is_i2v is False


def test_clips_and_start_frames_have_caches_of_their_own_and_datasets_their_uses(tmp_path):
    def dataset(name, kind, **keys):
        return {"id": name, "dataset_type": kind, "instance_data_dir": name, "cache_dir_vae": f"cache/{name}", **keys}

    datasets = [
        dataset("train", "video", conditioning_data="frames"),
        dataset("frames", "conditioning"),
        dataset("val", "video", conditioning_data=["frames"]),
        dataset("held", "eval", conditioning_data="frames"),
    ]
    (tmp_path / "multidatabackend.json").write_text(json.dumps(datasets))
    (tmp_path / "config.json").write_text(json.dumps({"eval_dataset_id": "val"}))
    run = read_project(tmp_path).run
    assert [d.cache_dir for d in run.data.datasets] == [tmp_path / "cache" / d["id"] for d in datasets]
    assert [d.kind for d in run.data.datasets] == ["video", "conditioning", "video", "video"]
    assert [d.is_eval for d in run.data.datasets] == [False, False, True, True]
    assert run.validation.eval_dataset_id == "val"
