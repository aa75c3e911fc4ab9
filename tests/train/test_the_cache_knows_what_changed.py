"""Latents are computed once, and again when what they were made from is another."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from studio.core.config_json import with_absolute_paths
from studio.core.data.cache import LatentCache, fingerprint
from studio.core.data.check import check_dataset, check_project
from studio.core.data.encode import Encoders, PairEncoder


class Counting:
    """Encoders that count what they were asked for and look at the pixels."""

    def __init__(self, video_id="vae 1", text_id="text 1"):
        self.clips = self.images = self.texts = 0
        self.encoders = Encoders(video=self.video, video_id=video_id, text=self.text, text_id=text_id)

    def video(self, frames, generator):
        self.clips += len(frames) > 1
        self.images += len(frames) == 1
        return torch.full((16, (len(frames) - 1) // 4 + 1, 8, 8), float(frames.mean())) + torch.rand(
            (), generator=generator
        )

    def text(self, caption):
        self.texts += 1
        return torch.full((3, 8), float(len(caption)))

    @property
    def counts(self):
        return self.clips, self.images, self.texts


@pytest.fixture
def dataset(shapes_dataset, tmp_path):
    return shutil.copytree(shapes_dataset, tmp_path / "dataset")


@pytest.fixture
def fill(data_of, dataset, tmp_path):
    """fill(data=None, **ids): what had to be computed, as (clips, start frames, captions)."""

    def run(data=None, **ids):
        data = data or data_of(dataset)
        counting = Counting(**ids)
        pairs = check_dataset(data).pairs
        progress = list(PairEncoder(data, counting.encoders, tmp_path / "cache").fill(pairs))
        assert progress[-1][0] == progress[-1][1] == len(progress)
        return counting.counts

    return run


def test_a_second_run_computes_nothing(fill, dataset):
    captions = {file.read_text() for file in dataset.rglob("*.txt")}
    assert fill() == (4, 4, len(captions))
    assert fill() == (0, 0, 0)


def test_a_clip_with_other_bytes_is_computed_again_under_the_same_name(fill, dataset):
    fill()
    shutil.copy(dataset / "clips/shape_1.mp4", dataset / "clips/shape_0.mp4")
    assert fill() == (0, 0, 0), "the bytes of shape_1 are known already"
    with (dataset / "clips/shape_0.mp4").open("ab") as file:
        file.write(b"\0\0\0\x08free")
    assert fill() == (1, 0, 0)


def test_another_start_frame_bucket_or_checkpoint_is_computed_again(fill, dataset, data_of):
    fill()
    Image.new("RGB", (64, 64), "white").save(dataset / "start_frames/shape_0.png")
    assert fill() == (0, 1, 0)
    assert fill(data_of(dataset, num_frames=5)) == (4, 0, 0)
    assert fill(video_id="vae 2") == (4, 4, 0)
    assert fill(text_id="text 2")[:2] == (0, 0)


def test_clips_and_start_frames_go_to_the_cache_of_their_own_dataset(fill, dataset, data_of, tmp_path):
    data = data_of(dataset)
    clips, frames = data.datasets
    data = replace(
        data,
        datasets=(replace(clips, cache_dir=tmp_path / "a"), replace(frames, cache_dir=tmp_path / "b")),
    )
    fill(data)
    count = {name: len(list((tmp_path / name).rglob("*.safetensors"))) for name in ("a", "b")}
    assert count == {"a": 4, "b": 4}


def test_a_damaged_entry_is_computed_again_and_an_unfinished_one_is_never_seen(tmp_path):
    cache = LatentCache(tmp_path)
    key = "ab" * 32
    cache.get_or_compute(key, lambda: torch.ones(3))
    file = next(tmp_path.rglob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:20])
    assert cache.get_or_compute(key, lambda: torch.zeros(3)).sum() == 0
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [f"{key}.safetensors"]


def test_tensors_from_inference_mode_can_be_trained_on(tmp_path):
    def compute():
        with torch.inference_mode():
            return torch.ones(3)

    tensor = LatentCache(tmp_path).get_or_compute("ab", compute)
    weight = torch.ones(3, requires_grad=True)
    (weight * tensor).sum().backward()
    assert weight.grad is not None


def test_another_checkpoint_has_another_fingerprint():
    layer = torch.nn.Linear(4, 4)
    before = fingerprint(layer)
    assert fingerprint(layer) == before
    with torch.no_grad():
        layer.bias[0] += 1
    assert fingerprint(layer) != before


def test_start_frames_are_kept_in_their_own_cache_when_paths_are_relative(dataset, tmp_path, monkeypatch):
    sets = [
        {"id": "clips", "dataset_type": "video", "instance_data_dir": "dataset/clips", "conditioning_data": "frames",
         "cache_dir_vae": "cache/clips", "resolution": 64, "video": {"num_frames": 5}},
        {"id": "frames", "dataset_type": "conditioning", "instance_data_dir": "dataset/start_frames",
         "cache_dir_vae": "cache/frames"},
    ]  # fmt: skip
    (tmp_path / "sets.json").write_text(json.dumps(sets))
    monkeypatch.chdir(tmp_path)
    project, report = check_project(Path("sets.json"))
    data = with_absolute_paths(project.run).data  # as a run does
    list(PairEncoder(data, Counting().encoders, tmp_path / "cache" / "texts").fill(report.pairs))
    assert len(list((tmp_path / "cache" / "frames").rglob("*.safetensors"))) == 4
    assert len(list((tmp_path / "cache" / "clips").rglob("*.safetensors"))) == 4
