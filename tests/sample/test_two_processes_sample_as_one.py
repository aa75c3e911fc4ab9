"""Ulysses on two processes gives the video of one (CPU, fp32): dense and sparse, with a cached start latent."""

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from studio.cli import main
from studio.core.errors import DeviceError
from studio.core.model.ulysses import Ulysses
from studio.core.sample.video import read_settings
from tests.sample.two_processes_that_sample import latents
from tests.two_processes import SECONDS, environment, run_two

PROGRAM = Path(__file__).with_name("two_processes_that_sample.py")
ONE_HANGS = """
import sys
from studio.core.model.starting import start_processes
sys.exit(start_processes(sys.argv[1:], 2, module="tests.sample.one_of_two_that_hangs"))
"""
posix = pytest.mark.skipif(sys.platform == "win32", reason="launchers and signals of POSIX")


@posix
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


@posix
def test_the_command_says_why_another_process_ended_though_the_first_one_hangs(tmp_path):
    asked = ["--prompt", "it moves", "--out", tmp_path / "video.mp4", "--size", "32x32", "--frames", "5", "--gpus", "2"]
    ended = subprocess.run(
        [sys.executable, "-c", ONE_HANGS, "sample", *asked], env=environment(), capture_output=True, text=True,
        timeout=SECONDS,
    )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stderr.count("The device ran out of memory while a video of 5 frames of 32x32 was rendered.") == 1
    assert "Traceback" not in ended.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("gpus", "said"), [("99", "99 GPUs were asked for, and there are"), ("0", "--gpus is 0. Give a number of GPUs")]
)
def test_gpus_that_cannot_be_had_are_one_sentence(capsys, tmp_path, gpus, said):
    asked = ["--prompt", "it moves", "--out", str(tmp_path / "video.mp4"), "--gpus", gpus]
    assert main(["sample", *asked]) == 1
    assert said in capsys.readouterr().err


def test_heads_that_do_not_divide_are_refused(tiny_bundle):
    with pytest.raises(DeviceError, match=r"The 4 attention heads do not divide by 3 GPUs. Use 2 or 4 GPUs."):
        tiny_bundle.dit.set_ulysses(Ulysses(rank=0, count=3))
    assert tiny_bundle.dit.ulysses is None
