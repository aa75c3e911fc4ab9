"""At which size and length a clip is trained, and what is said about it."""

from dataclasses import replace
from pathlib import Path

import pytest

from studio.core.config import DataConfig, DatasetConfig
from studio.core.data.bucket import aspect_issue, assign_bucket, small_buckets
from studio.core.types import Bucket, Clip, IssueCode, Pair, Severity, StartFrame

EMPTY = Path("clips")


def clip(height=448, width=832, num_frames=120, fps=15.0):
    return Clip(
        path=Path("a.mp4"),
        num_frames=num_frames,
        fps=fps,
        height=height,
        width=width,
        reader="pyav",
        reader_reason="drawn for a test",
        codec="h264",
        rotation=0,
        slowest_fps=fps,
        fastest_fps=fps,
        cuts=(),
        motion=20.0,
        signature="",
    )


def dataset(**fields):
    return DatasetConfig(**{"id": "clips", "kind": "video", "directory": EMPTY, **fields})


def assign(a_clip, alignment=64, framerate=None, **fields):
    data = DataConfig(datasets=(dataset(**fields),), aspect_bucket_alignment=alignment, framerate=framerate)
    found = assign_bucket(a_clip, "a.mp4", data.datasets[0], data)
    return found.bucket, {issue.code: issue for issue in found.issues}


@pytest.mark.parametrize(
    ("width", "height", "as_written", "pixel", "area"),
    [
        (832, 480, (704, 384), (832, 512), (832, 512)),
        (848, 480, (704, 384), (832, 512), (832, 512)),
        (1280, 720, (704, 384), (832, 512), (832, 448)),
        (1920, 1080, (704, 384), (832, 512), (832, 448)),
        (480, 832, (384, 704), (512, 832), (512, 832)),
        (640, 480, (576, 448), (640, 512), (768, 576)),
        (512, 512, (512, 512), (512, 512), (640, 640)),
    ],
)
def test_buckets_are_those_of_simpletuner(width, height, as_written, pixel, area):
    settings = [
        ({"resolution": 480}, as_written),
        ({"resolution": 480, "resolution_type": "pixel"}, pixel),
        ({"resolution": 480 * 832 / 1e6, "resolution_type": "area"}, area),
    ]
    for fields, (bucket_width, bucket_height) in settings:
        bucket, _ = assign(clip(height, width), **fields)
        assert (bucket.width, bucket.height) == (bucket_width, bucket_height)


@pytest.mark.parametrize(("wanted", "taken"), [(93, 93), (92, 89), (90, 89), (89, 89), (5, 5)])
def test_a_datasets_frame_count_is_floored_to_4k_plus_1(wanted, taken):
    bucket, _ = assign(clip(), num_frames=wanted)
    assert bucket.num_frames == taken


@pytest.mark.parametrize(("held", "taken"), [(93, 93), (92, 89), (90, 89), (89, 89), (8, 5), (5, 5)])
def test_a_shorter_clip_gives_the_most_frames_it_holds(held, taken):
    bucket, issues = assign(clip(num_frames=held))
    assert bucket.num_frames == taken
    assert (IssueCode.FRAMES_TRIMMED in issues) == (taken < 93)


def test_what_is_trimmed_is_a_notice_with_the_numbers():
    issue = assign(clip(num_frames=90))[1][IssueCode.FRAMES_TRIMMED]
    assert issue.severity is Severity.NOTICE
    assert "90 frames" in issue.message
    assert "89 are taken" in issue.message


@pytest.mark.parametrize("held", [1, 4])
def test_a_clip_under_5_frames_has_no_bucket(held):
    bucket, issues = assign(clip(num_frames=held))
    assert bucket is None
    assert issues[IssueCode.CLIP_TOO_SHORT].severity is Severity.ERROR


def test_a_clip_of_500x300_is_neither_legal_nor_on_the_grid_and_both_are_said():
    bucket, issues = assign(clip(300, 500))
    legal, grid = issues[IssueCode.SIZE_NOT_LEGAL], issues[IssueCode.SIZE_OFF_GRID]
    assert (legal.severity, grid.severity) == (Severity.WARNING, Severity.NOTICE)
    assert "multiples of 16" in legal.message
    assert "64 px grid" in grid.message
    for issue in (legal, grid):
        assert "300x500" in issue.message
        assert f"{bucket.height}x{bucket.width}" in issue.message
        assert "cropped" in issue.message


def test_480x832_is_legal_but_not_on_the_grid():
    _, issues = assign(clip(480, 832))
    assert IssueCode.SIZE_NOT_LEGAL not in issues
    assert issues[IssueCode.SIZE_OFF_GRID].severity is Severity.NOTICE


@pytest.mark.parametrize(
    ("alignment", "resolution_type", "words"),
    [
        (16, "pixel", "it keeps its size; its bucket 480x832 is not on that grid either"),
        (32, "published", "it keeps its size; its bucket 480x832 is not on that grid either"),
        (64, "pixel", "it is resized to 512x832 and 6% is cropped."),
    ],
)
def test_a_bucket_that_is_not_on_the_grid_either_is_said_to_leave_attention_blocks_partial(
    alignment, resolution_type, words
):
    _, issues = assign(clip(480, 832), alignment=alignment, resolution=480, resolution_type=resolution_type)
    message = issues[IssueCode.SIZE_OFF_GRID].message
    assert words in message
    assert ("attention blocks" in message) == (alignment != 64)


def test_a_clip_that_fits_its_bucket_raises_nothing():
    bucket, issues = assign(clip(448, 896), resolution=0.4, resolution_type="area")
    assert (bucket.height, bucket.width) == (448, 896)
    assert issues == {}


def test_an_alignment_of_16_is_honoured():
    bucket, _ = assign(clip(480, 832), alignment=16, resolution=480, resolution_type="pixel")
    assert (bucket.height, bucket.width) == (480, 832)


def test_a_strip_has_no_bucket():
    bucket, issues = assign(clip(16, 2000))
    assert bucket is None
    assert issues[IssueCode.SIZE_NOT_LEGAL].severity is Severity.ERROR


@pytest.mark.parametrize(("fps", "is_other"), [(15.0, False), (15000 / 1001, False), (25.0, True), (8.0, True)])
def test_another_frame_rate_is_a_warning_with_the_speed_it_gives(fps, is_other):
    issue = assign(clip(fps=fps))[1].get(IssueCode.FRAME_RATE_OTHER)
    assert (issue is not None) == is_other
    if fps == 25.0:
        assert issue.severity is Severity.WARNING
        assert "0.6 times" in issue.message


@pytest.mark.parametrize(("size", "fits"), [((448, 832), True), ((896, 1664), True), ((1024, 1024), False)])
def test_a_start_frame_of_another_aspect_is_a_warning_naming_both_sizes(size, fits):
    start_frame = StartFrame(path=Path("a.png"), height=size[0], width=size[1])
    issue = aspect_issue(clip(448, 832), start_frame, "a.mp4")
    assert (issue is None) == fits
    if issue:
        assert "448x832" in issue.message
        assert "1024x1024" in issue.message


def ready_pair(dataset_id="clips"):
    return Pair(
        dataset_id=dataset_id,
        name="a",
        clip=clip(),
        clip_path=Path("a.mp4"),
        start_frame=None,
        captions=("",),
        bucket=Bucket(num_frames=93, height=448, width=832),
        issues=(),
    )


def test_a_bucket_that_does_not_fill_a_batch_is_a_warning_and_repeats_count():
    pair = ready_pair()
    (issue,) = small_buckets([pair], DataConfig(datasets=(dataset(),), train_batch_size=2))
    assert issue.code is IssueCode.BUCKET_TOO_SMALL
    assert small_buckets([pair], DataConfig(datasets=(dataset(repeats=1),), train_batch_size=2)) == ()


@pytest.mark.parametrize(("is_eval", "eval_dataset_id"), [(True, None), (False, "held")])
def test_held_out_clips_fill_no_batch_and_need_not_fill_one(is_eval, eval_dataset_id):
    data = DataConfig(datasets=(dataset(), dataset(id="held", is_eval=is_eval)), train_batch_size=4)
    held = [ready_pair("held")] * 3
    (issue,) = small_buckets([ready_pair(), *held], data, eval_dataset_id)
    assert "holds 1, fewer than the batch size 4" in issue.message
    assert (
        small_buckets(
            [ready_pair()] * 4 + [replace(held[0], bucket=Bucket(num_frames=93, height=832, width=448))],
            data,
            eval_dataset_id,
        )
        == ()
    )
    (issue,) = small_buckets(held, data, eval_dataset_id)
    assert "holds 3" in issue.message, "they are trained on when there is no other"
