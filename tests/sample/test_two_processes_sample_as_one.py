"""Ulysses on two processes gives the video of one (CPU, fp32): dense and sparse, with a cached start latent."""

import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from studio.cli import main
from studio.core.errors import DeviceError
from studio.core.model.ulysses import Ulysses
from studio.core.sample.video import read_settings
from tests.sample.two_processes_that_sample import latents
from tests.two_processes import run_two

PROGRAM = Path(__file__).with_name("two_processes_that_sample.py")


@pytest.mark.skipif(sys.platform == "win32", reason="launchers and signals of POSIX")
def test_two_processes_give_the_latents_of_one(tiny_bundle, tmp_path):
    said = run_two(PROGRAM, tmp_path)
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    alone = latents(tiny_bundle)
    assert (alone["dense"] - alone["sparse"]).abs().max() > 1e-2, "blocks were skipped"
    for name, expected in alone.items():
        assert first[name].shape == expected.shape
        assert (first[name] - expected).norm() < 1e-5 * expected.norm(), name
        assert first[name].equal(second[name]), name
    assert read_settings(tmp_path / "video.mp4")["height"] == 32
    assert said.count("video.mp4 in") == 1, "one of them speaks"


def test_more_gpus_than_there_are_is_one_sentence(capsys, tmp_path):
    asked = ["--prompt", "it moves", "--out", str(tmp_path / "video.mp4"), "--gpus", "99"]
    assert main(["sample", *asked]) == 1
    assert "99 GPUs were asked for, and there are" in capsys.readouterr().err


def test_heads_that_do_not_divide_are_refused(tiny_bundle):
    with pytest.raises(DeviceError, match=r"The 4 attention heads do not divide by 3 GPUs. Use 2 or 4 GPUs."):
        tiny_bundle.dit.set_ulysses(Ulysses(rank=0, count=3))
    assert tiny_bundle.dit.ulysses is None
