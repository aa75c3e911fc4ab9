"""Everything that `python -m studio sample` can be asked for, on the tiny checkpoint."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from studio.cli import main
from studio.core.sample.sampler import SampleRequest, sample
from studio.core.sample.video import read_settings, read_video, write_video

SMALL = ["--size", "32x32", "--frames", "5", "--steps", "1"]


@pytest.fixture
def lora(tmp_path):
    state = {"blocks.0.ffn.w2.lora_A.weight": torch.ones(2, 768), "blocks.0.ffn.w2.lora_B.weight": torch.ones(256, 2)}
    save_file(state, tmp_path / "lora.safetensors")
    return str(tmp_path / "lora.safetensors")


def test_the_same_seed_gives_the_video_of_the_core(tiny_bundle, tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "start.png")
    arguments = ["sample", "--image", str(tmp_path / "start.png"), "--prompt", "it moves", "--seed", "7", *SMALL]
    assert main([*arguments, "--out", str(tmp_path / "command.mp4")]) == 0
    request = SampleRequest(
        prompt="it moves", start_frame=picture, seed=7, height=32, width=32, num_frames=5, num_inference_steps=1
    )
    list(sample(request, tiny_bundle, tmp_path / "core.mp4"))
    np.testing.assert_array_equal(*(read_video(tmp_path / f"{name}.mp4")[0] for name in ("command", "core")))


def test_a_prompt_alone_and_long_videos(tmp_path, lora):
    arguments = ["sample", "--prompt", "one", "--segments", "2", "--next-prompt", "two", "--published-negative-prompt"]
    arguments += ["--lora", lora, "--lora", lora, "--lora-strength", "1", "--lora-strength", "-1"]
    small = ["--size", "32x32", "--frames", "17", "--steps", "1", "--schedule", "standard"]
    assert main([*arguments, *small, "--out", str(tmp_path / "long.mp4")]) == 0
    settings = read_settings(tmp_path / "long.mp4")
    assert (settings["num_segments"], settings["later_prompts"]) == (2, ["two"])
    assert [one["strength"] for one in settings["loras"]] == [1, -1]
    assert settings["negative_prompt"].startswith("Bright tones")
    assert len(read_video(tmp_path / "long.mp4")[0]) == 21


def test_a_clip_is_gone_on_from(tmp_path):
    clip = np.random.default_rng(0).integers(100, 140, (40, 32, 32, 3), np.uint8)
    write_video(tmp_path / "clip.mp4", clip, 30, {})
    arguments = ["sample", "--clip", str(tmp_path / "clip.mp4"), "--prompt", "on", "--schedule", "standard"]
    small = ["--size", "32x32", "--frames", "17", "--steps", "1"]
    assert main([*arguments, *small, "--out", str(tmp_path / "on.mp4")]) == 0
    frames, fps = read_video(tmp_path / "on.mp4")
    assert (len(frames), fps) == (24, 15)


def test_a_strength_sweep_and_a_comparison_write_a_video_each(tmp_path, lora, capsys):
    out = tmp_path / "out.mp4"
    assert main(["sample", "--prompt", "a", "--lora", lora, "--strengths", "0", "1.5", *SMALL, "--out", str(out)]) == 0
    assert sorted(file.name for file in tmp_path.glob("*.mp4")) == ["out-0.mp4", "out-1.5.mp4"]
    assert read_settings(tmp_path / "out-1.5.mp4")["loras"][0]["strength"] == 1.5
    large = ["--size", "64x64", "--frames", "17", "--steps", "1"]
    assert main(["sample", "--prompt", "a", "--compare-attention", *large, "--out", str(out)]) == 0
    assert [read_settings(tmp_path / f"out-{kind}.mp4")["attention"] for kind in ("dense", "sparse")] == [
        "dense",
        "sparse",
    ]
    assert "under sparse attention are off by 0." in capsys.readouterr().out
    assert main(["sample", "--prompt", "a", "--compare-attention", *large, "--out", str(out)]) == 1
    assert "out-dense.mp4 exists already" in capsys.readouterr().err


def test_without_and_with_the_lora(tmp_path, lora):
    out = tmp_path / "hop.mp4"
    assert main(["sample", "--prompt", "a", "--lora", lora, "--compare-lora", *SMALL, "--out", str(out)]) == 0
    bare, lent = tmp_path / "hop-without-LoRA.mp4", tmp_path / "hop-with-LoRA.mp4"
    assert [len(read_settings(path)["loras"]) for path in (bare, lent)] == [0, 1]
    assert (read_video(bare)[0] != read_video(lent)[0]).any()


def test_a_distilled_sample_is_refined_with_the_attention_that_was_asked_for(published_checkpoint, tmp_path):
    arguments = ["sample", "--model", published_checkpoint.source, "--prompt", "a", "--schedule", "distilled"]
    arguments += [*SMALL, "--refine", "space-time", "--attention", "dense", "--out", str(tmp_path / "out.mp4")]
    assert main(arguments) == 0
    settings = read_settings(tmp_path / "out.mp4")
    assert (settings["schedule"], settings["guidance_scale"]) == ("distilled", 1)
    assert (settings["refinement"], settings["refined_height"], settings["fps"]) == ("space and time", 64, 30)
    assert settings["attention"] == "dense", "left to itself, a refinement is sparse"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--lora-strength", "1"], "0 --lora and 1 --lora-strength"),
        (["--strengths", "1"], "no LoRA"),
        (["--strengths", "1", "--compare-attention"], "do not go together"),
        (["--schedule", "distilled"], "has no lora/cfg_step_lora.safetensors"),
        (["--refine", "space"], "has no lora/refinement_lora.safetensors"),
        (["--compare-lora"], "no LoRA"),
        (["--segments", "0"], "0 segments"),
        (["--sparsity", "1"], "sparsity of 1 cannot be"),
        (["--attention", "dense", "--sparsity", "0.5"], "Dense attention has no sparsity"),
        (["--image", "missing.png"], "missing.png"),
        (["--size", "32"], "size 32 cannot be read"),
        (["--swap", "-1"], "--swap is -1"),
        (["--clip", "missing.mp4"], "missing.mp4"),
    ],
)
def test_what_cannot_be_done_is_one_line(tmp_path, capsys, arguments, said):
    assert main(["sample", "--prompt", "a", *SMALL, *arguments, "--out", str(tmp_path / "out.mp4")]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not list(tmp_path.glob("*.mp4"))


def test_a_name_that_is_no_mp4_is_refused_before_anything_is_rendered(tmp_path, capsys):
    assert main(["sample", "--prompt", "a", *SMALL, "--out", str(tmp_path / "out.gif")]) == 1
    assert capsys.readouterr().err.endswith("out.gif does not end with .mp4. Name it out.mp4.\n")
