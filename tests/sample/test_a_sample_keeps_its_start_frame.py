from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from PIL import Image

from studio.core.data.shapes import (
    BASE_MOTIONS,
    COLORS,
    MOTIONS,
    SHAPES,
    draw_background,
    draw_clips,
    random_scenes,
    to_uint8,
    track,
)
from studio.core.errors import ConfigError, MediaError
from studio.core.events import DenoiseStep, SampleDone
from studio.core.model.attention import AttentionChoice
from studio.core.model.load import SampleDefaults
from studio.core.model.vae import encode_video, frames_to_video
from studio.core.sample.denoise import denoise
from studio.core.sample.sampler import SampleRequest, resolve_settings, sample
from studio.core.sample.video import read_settings, write_video


@pytest.fixture(scope="module")
def scene():
    return random_scenes(1, height=128, width=128, generator=torch.Generator().manual_seed(3), motions=("moves right",))


@pytest.fixture
def request_(scene):
    start = to_uint8(draw_clips(scene, 2))[0, 0]
    return SampleRequest(prompt=scene.captions()[0], start_frame=start, num_inference_steps=6, seed=1)


def frames_of(path):
    with av.open(str(path), format="mov") as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_the_shape_moves_as_the_prompt_says_and_the_first_frame_is_the_start_frame(
    tiny_bundle, request_, scene, tmp_path
):
    events = list(sample(request_, tiny_bundle, tmp_path / "right.mp4"))
    assert [e.step for e in events if isinstance(e, DenoiseStep)] == [1, 2, 3, 4, 5, 6]
    done = events[-1]
    assert isinstance(done, SampleDone)
    assert done.attention == "dense"
    assert done.attention_reason
    frames = frames_of(done.path)
    assert frames.shape == (17, 128, 128, 3)
    error = np.square(frames[0].astype(float) - request_.start_frame).mean()
    assert 10 * np.log10(255**2 / error) > 27
    seen = track(frames, to_uint8(draw_background(scene).unsqueeze(2))[0, 0])
    assert seen.follows("moves right")
    assert not seen.follows("moves left")
    assert seen.keeps(list(COLORS)[scene.color[0]], SHAPES[scene.shape[0]])


def test_a_video_carries_its_settings_and_the_same_settings_give_the_same_video(tiny_bundle, request_, tmp_path):
    for name in ("one.mp4", "two.mp4"):
        list(sample(request_, tiny_bundle, tmp_path / name))
    settings = read_settings(tmp_path / "one.mp4")
    assert settings["prompt"] == request_.prompt
    assert (settings["seed"], settings["num_inference_steps"], settings["guidance_scale"]) == (1, 6, 2.0)
    assert settings["attention"] == "dense"
    np.testing.assert_array_equal(frames_of(tmp_path / "one.mp4"), frames_of(tmp_path / "two.mp4"))


def test_a_sparse_sample_says_so_in_the_event_and_in_the_video(tiny_bundle, request_, tmp_path):
    bundle = replace(tiny_bundle, attention=AttentionChoice(setting="sparse", refusal="no kernel"))
    bundle.dit.set_attention(bundle.attention)
    try:
        *_, done = sample(replace(request_, num_inference_steps=1), bundle, tmp_path / "sparse.mp4")
    finally:
        bundle.dit.set_attention(tiny_bundle.attention)
    assert isinstance(done, SampleDone)
    assert (done.attention, done.attention_sparsity, done.attention_block) == ("sparse", 0.9375, (4, 4, 4))
    settings = read_settings(tmp_path / "sparse.mp4")
    assert (settings["attention"], settings["attention_sparsity"]) == ("sparse", 0.9375)
    assert settings["attention_block"] == [4, 4, 4]
    assert settings["attention_reason"] == done.attention_reason


def test_the_first_latent_is_the_same_to_the_last_bit_after_every_step(tiny_bundle, request_):
    generator = torch.Generator().manual_seed(0)
    held = encode_video(tiny_bundle.vae, frames_to_video(request_.start_frame[None]), generator)
    text = tiny_bundle.prompt_encoder.encode([request_.prompt])
    for latents in denoise(
        tiny_bundle.dit, tiny_bundle.scheduler, noise=torch.randn(1, 16, 5, 16, 16, generator=generator), held=held,
        prompt=text, negative=tiny_bundle.prompt_encoder.encode([""]), num_steps=3, guidance_scale=2.0,
    ):  # fmt: skip
        assert torch.equal(latents[:, :, :1], held)


def test_a_stop_between_two_steps_leaves_no_file(tiny_bundle, request_, tmp_path):
    events = list(sample(request_, tiny_bundle, tmp_path / "stopped.mp4", should_stop=lambda: True))
    assert [e.step for e in events if isinstance(e, DenoiseStep)] == [1]
    assert not any(isinstance(e, SampleDone) for e in events)
    assert list(tmp_path.iterdir()) == []
    assert not tiny_bundle.lock.locked()


@pytest.mark.parametrize(
    ("change", "said", "mend"),
    [
        ({"num_frames": 90}, "90 frames", "89 or 93"),
        ({"height": 300, "width": 500}, "300x500", "304x496"),
        ({"num_inference_steps": 0}, "0 steps", "1 step"),
        ({"num_frames": 1}, "1 frames", "5 or 9"),
        ({"height": 64000, "width": 64}, "64000x64", "4096"),
        ({"seed": 10**20}, "out of range", "2^63"),
    ],
)
def test_what_the_model_cannot_take_is_named_with_the_nearest_that_it_can(tiny_bundle, request_, change, said, mend):
    with pytest.raises(ConfigError, match=said) as caught:
        resolve_settings(replace(request_, **change), tiny_bundle)
    assert mend in caught.value.remedy


def test_a_landscape_default_turns_with_a_portrait_start_frame(tiny_bundle):
    published = replace(tiny_bundle, defaults=SampleDefaults())
    portrait = SampleRequest(prompt="", start_frame=np.zeros((900, 500, 3), np.uint8))
    assert (resolve_settings(portrait, published).height, resolve_settings(portrait, published).width) == (832, 480)
    landscape = replace(portrait, start_frame=np.zeros((500, 900, 3), np.uint8))
    assert (resolve_settings(landscape, published).height, resolve_settings(landscape, published).width) == (480, 832)


def test_a_video_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path):
    target = tmp_path / "folder.mp4"
    target.mkdir()
    with pytest.raises(MediaError, match=r"folder\.mp4"):
        write_video(target, np.zeros((5, 64, 64, 3), np.uint8), 15, {})
    assert [p.name for p in tmp_path.iterdir()] == ["folder.mp4"]


def test_the_tracker_tells_every_motion_shape_and_colour_apart():
    scenes = random_scenes(40, height=128, width=128, generator=torch.Generator().manual_seed(1), motions=MOTIONS)
    clips, plates = to_uint8(draw_clips(scenes, 17)), to_uint8(draw_background(scenes).unsqueeze(2))[:, 0]
    noisy = (clips + np.random.default_rng(0).normal(0, 6, clips.shape)).clip(0, 255).astype(np.uint8)
    for index, frames in enumerate(noisy):
        seen = track(frames, plates[index])
        assert [m for m in MOTIONS if seen.follows(m)] == [MOTIONS[scenes.motion[index]]]
        kept = [(c, s) for c in COLORS for s in SHAPES if seen.keeps(c, s)]
        assert kept == [(list(COLORS)[scenes.color[index]], SHAPES[scenes.shape[index]])]


def test_the_tracker_sees_when_the_shape_is_gone():
    scenes = random_scenes(1, height=64, width=64, generator=torch.Generator().manual_seed(1))
    plate = to_uint8(draw_background(scenes).unsqueeze(2))[0, 0]
    frames = np.repeat(plate[None], 9, axis=0)
    frames[0] = to_uint8(draw_clips(scenes, 1))[0, 0]
    seen = track(frames, plate)
    assert not any(seen.follows(m) for m in BASE_MOTIONS)
    assert not any(seen.keeps(c, s) for c in COLORS for s in SHAPES)


def test_a_start_frame_of_another_shape_is_cropped_not_squeezed(tiny_bundle, request_, tmp_path):
    wide = np.zeros((128, 256, 3), np.uint8)
    wide[:, 64:192] = request_.start_frame
    Image.fromarray(wide).save(tmp_path / "wide.png")
    list(sample(replace(request_, start_frame=wide, num_inference_steps=2), tiny_bundle, tmp_path / "wide.mp4"))
    first = frames_of(tmp_path / "wide.mp4")[0].astype(float)
    assert 10 * np.log10(255**2 / np.square(first - request_.start_frame).mean()) > 27


def test_two_prompts_one_after_the_other_give_the_video_of_both_in_one_batch(tiny_bundle, request_):
    bundle = tiny_bundle
    held = encode_video(bundle.vae, frames_to_video(request_.start_frame[None]), torch.Generator().manual_seed(0))
    noise = torch.randn(1, held.shape[1], 5, *held.shape[3:], generator=torch.Generator().manual_seed(1))

    def last(is_batched, noise=noise):
        texts = [bundle.prompt_encoder.encode([text] * len(noise)) for text in (request_.prompt, "")]
        *_, latents = denoise(
            bundle.dit, bundle.scheduler, noise=noise, held=held, prompt=texts[0], negative=texts[1], num_steps=2,
            guidance_scale=3.0, is_batched=is_batched,
        )  # fmt: skip
        return latents

    error = (last(True) - last(False)).norm() / last(True).norm()
    assert error < 1e-5
    two = torch.cat((noise, noise))
    assert (last(True, two)[0] - last(False, two)[1]).norm() / last(True).norm() < 1e-5


def test_a_video_says_that_its_prompts_ran_one_after_the_other(tiny_bundle, request_, tmp_path, monkeypatch):
    small = replace(request_, height=64, width=64, num_frames=5, num_inference_steps=1, guidance_scale=2.0)
    together = list(sample(small, tiny_bundle, tmp_path / "together.mp4"))[-1]
    monkeypatch.setattr("studio.core.sample.sampler.has_room_for_both", lambda _bundle, _size, _held: False)
    apart = list(sample(small, tiny_bundle, tmp_path / "apart.mp4"))[-1]
    assert (together.is_batched, apart.is_batched) == (True, False)
    assert "guidance_batched" not in read_settings(together.path)
    assert read_settings(apart.path)["guidance_batched"] is False
