"""Text-to-video, continuations, long videos, distilled and refined samples, on the tiny checkpoint."""

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from studio.core.errors import AdapterError, CheckpointError, ConfigError, DeviceError
from studio.core.events import DenoiseStep, SamplePhase, SampleStarted
from studio.core.model.attention import AttentionChoice
from studio.core.model.load import SampleDefaults
from studio.core.model.lora import LoraFile, adapter_names
from studio.core.model.published_loras import DISTILLED_LORA
from studio.core.sample.request import SampleRequest, default_size, refined_size, resolve_settings
from studio.core.sample.sampler import frames_of, sample
from studio.core.sample.video import read_settings

SMALL = {"height": 32, "width": 32, "num_frames": 17, "num_inference_steps": 2}
SMALLER = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2}
CLIP = np.random.default_rng(0).integers(0, 255, (20, 32, 32, 3), np.uint8)


def rendered(request, bundle, **options):
    """(events, what was rendered)."""
    events, steps = [], frames_of(request, bundle, **options)
    while True:
        try:
            events.append(next(steps))
        except StopIteration as end:
            return events, end.value


@pytest.fixture
def checkpoint(published_checkpoint):
    """The tiny checkpoint with the two published LoRAs, crafted."""
    return published_checkpoint


def test_without_a_picture_it_is_text_to_video(tiny_bundle):
    _, one = rendered(SampleRequest(prompt="a red circle moves right", seed=1, **SMALL), tiny_bundle)
    _, other = rendered(SampleRequest(prompt="a red circle moves right", seed=2, **SMALL), tiny_bundle)
    assert one.frames.shape == (17, 32, 32, 3)
    assert len(one.before) == 0
    assert (one.frames != other.frames).mean() > 0.5


def test_a_continuation_goes_on_from_the_last_frames_and_keeps_those_before(tiny_bundle):
    request = SampleRequest(prompt="it moves", clip=CLIP, schedule="standard", **SMALL)
    events, done = rendered(request, tiny_bundle)
    np.testing.assert_array_equal(done.frames[:20], CLIP)
    assert len(done.frames) == 20 + 17 - 13
    assert [e.name for e in events if isinstance(e, SamplePhase)] == ["encode", "denoise", "decode"]
    earlier = CLIP.copy()
    earlier[:7] = 0
    _, same = rendered(replace(request, clip=earlier), tiny_bundle)
    np.testing.assert_array_equal(same.segments[0], done.segments[0])
    later = CLIP.copy()
    later[8] = 0
    _, changed = rendered(replace(request, clip=later), tiny_bundle)
    assert (changed.segments[0] != done.segments[0]).any()


def test_a_faster_clip_is_taken_at_the_models_rate(tiny_bundle):
    fast = np.repeat(CLIP, 2, axis=0)
    _, slow = rendered(SampleRequest(prompt="it moves", clip=CLIP, schedule="standard", **SMALL), tiny_bundle)
    _, same = rendered(
        SampleRequest(prompt="it moves", clip=fast, clip_fps=29.97, schedule="standard", **SMALL), tiny_bundle
    )
    np.testing.assert_array_equal(slow.frames, same.frames)


def test_continuations_have_detailed_steps_unless_told_otherwise(tiny_bundle):
    request = SampleRequest(prompt="", clip=CLIP, **{**SMALL, "num_inference_steps": 8})
    assert resolve_settings(request, tiny_bundle).schedule == "detailed"
    settings = resolve_settings(replace(request, clip=None, num_segments=2), tiny_bundle)
    assert (settings.schedule, settings.later_schedule) == ("standard", "detailed")
    assert resolve_settings(replace(request, schedule="standard"), tiny_bundle).schedule == "standard"


def test_a_long_video_is_its_segments_and_each_has_its_prompt(tiny_bundle):
    picture = CLIP[0]
    request = SampleRequest(
        prompt="it moves right", start_frame=picture, num_segments=3, later_prompts=("it moves left",), seed=3,
        schedule="standard", **SMALL,
    )  # fmt: skip
    assert request.prompts == ("it moves right", "it moves left", "it moves left")
    events, long = rendered(request, tiny_bundle)
    assert len(long.frames) == 17 + 2 * 4
    steps = [e for e in events if isinstance(e, DenoiseStep)]
    assert [(e.step, e.segment) for e in steps] == [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (6, 3)]
    assert {e.num_steps for e in steps} == {6}
    _, short = rendered(replace(request, num_segments=1, later_prompts=()), tiny_bundle)
    np.testing.assert_array_equal(long.segments[0], short.frames)
    _, by_hand = rendered(
        replace(request, start_frame=None, clip=short.frames, num_segments=1, later_prompts=()), tiny_bundle
    )
    assert len(by_hand.frames) == 21


def test_the_distilled_way_has_16_steps_without_guidance_under_its_lora(checkpoint):
    request = SampleRequest(prompt="it moves", schedule="distilled", **{**SMALL, "num_inference_steps": None})
    settings = resolve_settings(request, checkpoint)
    assert (settings.num_inference_steps, settings.guidance_scale) == (16, 1.0)
    few = replace(request, num_inference_steps=2)
    _, with_lora = rendered(few, checkpoint)
    other = replace(few, schedule="distilled", loras=(LoraFile(path=Path(checkpoint.source) / DISTILLED_LORA),))
    _, twice = rendered(other, checkpoint)
    assert (with_lora.frames != twice.frames).any(), "the distilled LoRA is on, and the other one beside it"
    assert adapter_names(checkpoint.dit) == ()


def test_a_checkpoint_without_the_published_lora_says_so(tiny_bundle):
    with pytest.raises(CheckpointError, match=r"tiny has no lora/cfg_step_lora\.safetensors"):
        rendered(SampleRequest(prompt="", schedule="distilled", **SMALL), tiny_bundle)


@pytest.mark.parametrize(("refinement", "frames", "fps"), [("space", 5, 15), ("space and time", 10, 30)])
def test_a_refined_sample_is_larger_and_where_asked_twice_as_fast(checkpoint, tmp_path, refinement, frames, fps):
    request = SampleRequest(prompt="it moves", start_frame=CLIP[0], refinement=refinement, **SMALLER)
    *events, done = sample(request, checkpoint, tmp_path / "refined.mp4")
    started = next(e for e in events if isinstance(e, SampleStarted))
    steps = [e for e in events if isinstance(e, DenoiseStep)]
    assert started.num_steps == len(steps) == steps[-1].step == steps[-1].num_steps
    assert started.refined_size == (64, 64)
    assert [e.is_refining for e in steps] == [False] * 2 + [True] * 5
    settings = read_settings(done.path)
    assert (settings["refined_height"], settings["refined_width"], settings["fps"]) == (64, 64, fps)
    assert settings["attention"] == "sparse"
    with av.open(str(done.path), format="mov") as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert float(container.streams.video[0].average_rate) == fps
    assert len(shown) == frames
    assert shown[0].shape == (64, 64, 3)
    assert checkpoint.dit.blocks[0].attn.choice is checkpoint.attention


def test_a_refined_continuation_keeps_the_clip_at_the_new_rate(checkpoint):
    clip = np.repeat(CLIP[:14], 2, axis=0)
    request = SampleRequest(
        prompt="it moves", clip=clip, clip_fps=30, schedule="standard", num_segments=2, num_overlap_frames=5,
        refinement="space and time", **{**SMALLER, "num_frames": 9},
    )  # fmt: skip
    _, done = rendered(request, checkpoint)
    assert done.frames.shape == (28 + 2 * (18 - 10), 64, 64, 3)
    assert done.fps == 30


def test_attention_may_differ_for_one_sample(tiny_bundle):
    request = SampleRequest(
        prompt="it moves", attention="sparse", **{**SMALL, "height": 64, "width": 64, "num_inference_steps": 1}
    )
    _, sparse = rendered(request, tiny_bundle)
    _, dense = rendered(replace(request, attention="dense"), tiny_bundle)
    assert (sparse.attention.kind, dense.attention.kind) == ("sparse", "dense")
    assert (sparse.frames != dense.frames).any()
    assert tiny_bundle.dit.blocks[0].attn.choice is tiny_bundle.attention
    elsewhere = replace(
        tiny_bundle, device=torch.device("cuda"), attention=AttentionChoice(setting="auto", refusal="no kernel")
    )
    with pytest.raises(DeviceError, match="no kernel"):
        rendered(request, elsewhere)


@pytest.mark.parametrize(
    ("change", "said", "mend"),
    [
        ({"clip": CLIP, "start_frame": CLIP[0]}, "start frame and a clip", "one of them"),
        ({"clip": CLIP[:9]}, "has 9 frames", "longer clip"),
        ({"clip": CLIP, "clip_fps": 60.0}, "has 5 frames", "longer clip"),
        ({"clip": CLIP, "num_overlap_frames": 6}, "overlap of 6", "Use 13"),
        ({"clip": CLIP, "num_overlap_frames": 17}, "overlap of 17", "Use 13"),
        ({"num_segments": 0}, "0 segments", "1 to 100"),
        ({"later_prompts": ("b",)}, "2 prompts for 1 segments", "fewer"),
        ({"schedule": "refinement"}, "goes on from frames", "refinement"),
        ({"clip": CLIP, "clip_fps": 0.0}, "0.0 frames per second", "rate"),
        ({"clip": CLIP[:0]}, "has 0 frames", "longer clip"),
    ],
)
def test_what_cannot_be_rendered_is_named(tiny_bundle, change, said, mend):
    with pytest.raises(ConfigError, match=said) as caught:
        resolve_settings(replace(SampleRequest(prompt="a", **SMALL), **change), tiny_bundle)
    assert mend in caught.value.remedy


def test_the_size_is_the_published_bucket_of_the_picture_and_the_crop_is_said(tiny_bundle):
    published = replace(tiny_bundle, defaults=SampleDefaults())
    settings = resolve_settings(SampleRequest(prompt="", start_frame=np.zeros((1000, 1000, 3), np.uint8)), published)
    assert (settings.height, settings.width) == (608, 640)
    assert settings.crop == (0, 25, 1000, 975)
    assert default_size(SampleDefaults(), None, 16) == (480, 832)
    assert refined_size(480, 832, published) == (704, 1280)


def test_a_bad_lora_leaves_the_model_free(tiny_bundle, tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(AdapterError):
        list(
            sample(
                SampleRequest(prompt="", loras=(LoraFile(path=tmp_path / "bad.safetensors"),), **SMALL),
                tiny_bundle,
                tmp_path / "x.mp4",
            )
        )
    assert not tiny_bundle.lock.locked()
    assert adapter_names(tiny_bundle.dit) == ()
