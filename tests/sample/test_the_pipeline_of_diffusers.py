import re

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import save_file

from studio.core.errors import AdapterError, ConfigError
from studio.core.model.lora import LORA_FILE, LoraFile, adapter_names
from studio.core.sample.pipeline import LongCatVideoPipeline
from studio.core.sample.request import SampleRequest
from studio.core.sample.sampler import sample
from studio.core.sample.video import read_video, write_video

SMALL = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2}
PICTURE = np.random.default_rng(0).integers(0, 255, (64, 80, 3), np.uint8)


@pytest.fixture
def pipe(tiny_bundle):
    made = LongCatVideoPipeline.from_bundle(tiny_bundle)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def lora(tmp_path):
    state = {"blocks.0.ffn.w2.lora_A.weight": torch.ones(2, 768), "blocks.0.ffn.w2.lora_B.weight": torch.ones(256, 2)}
    save_file(state, tmp_path / LORA_FILE)
    return tmp_path / LORA_FILE


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def stack(pictures):
    return np.stack([np.asarray(picture) for picture in pictures])


def test_the_five_lines_of_its_docstring_run_and_give_the_video_of_sample(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("diffusers.utils.export_to_video", lambda frames, name, fps: write_video(
        tmp_path / name, stack(frames), fps, {}
    ))  # fmt: skip
    block = re.search(r"```python\n(.*?)```", LongCatVideoPipeline.__doc__, re.DOTALL)[1]
    lines = [line.strip() for line in block.strip().splitlines()]
    assert len(lines) == 5
    exec("import torch\n" + "\n".join(lines), {})
    request = SampleRequest(prompt="a red circle moves right", num_frames=5, seed=1)
    list(sample(request, tiny_bundle, tmp_path / "sampled.mp4"))
    ours, theirs = read_video(tmp_path / "sampled.mp4"), read_video(tmp_path / "circle.mp4")
    np.testing.assert_array_equal(ours[0], theirs[0])
    assert ours[1] == theirs[1] == 15


def test_image_clip_and_lora_give_the_frames_of_sample(pipe, tiny_bundle, lora, tmp_path):
    assert isinstance(pipe, DiffusionPipeline)
    pipe.load_lora_weights(lora.parent, adapter_name="ones")
    pipe.set_adapters("ones", 0.25)
    clip = np.repeat(PICTURE[None], 13, axis=0)
    ways = [
        ({"image": Image.fromarray(PICTURE)}, {"start_frame": PICTURE}),
        ({"video": [Image.fromarray(frame) for frame in clip], "video_fps": 15}, {"clip": clip, "clip_fps": 15}),
    ]
    small = {**SMALL, "num_frames": 17, "schedule": "standard"}
    for number, (call, asked) in enumerate(ways):
        theirs = stack(pipe("it moves", generator=seeded(3), guidance_scale=3.0, **call, **small).frames[0])
        request = SampleRequest(
            prompt="it moves", seed=3, guidance_scale=3.0, loras=(LoraFile(path=lora, strength=0.25),), **asked, **small
        )
        list(sample(request, tiny_bundle, tmp_path / f"{number}-ours.mp4"))
        write_video(tmp_path / f"{number}-theirs.mp4", theirs, 15, {})
        np.testing.assert_array_equal(*(read_video(tmp_path / f"{number}-{of}.mp4")[0] for of in ("ours", "theirs")))
    assert adapter_names(tiny_bundle.dit) == ()


def test_adapters_are_loaded_chosen_and_forgotten(pipe, lora):
    def frames():
        return pipe("it moves", generator=seeded(0), output_type="np", **SMALL).frames[0]

    bare = frames()
    pipe.load_lora_weights(lora)
    pipe.load_lora_weights(lora, adapter_name="again")
    assert pipe.get_active_adapters() == ["default_0", "again"]
    twice = frames()
    pipe.set_adapters(["again"], [2.0])
    assert np.abs(frames() - twice).max() < 0.05
    assert (frames() != bare).any()
    with pytest.raises(AdapterError, match=r"no adapter gone; loaded: default_0, again"):
        pipe.set_adapters("gone")
    with pytest.raises(AdapterError, match="adapter again already"):
        pipe.load_lora_weights(lora, adapter_name="again")
    with pytest.raises(AdapterError, match="2 weights for 1"):
        pipe.set_adapters("again", [1.0, 2.0])
    pipe.unload_lora_weights()
    np.testing.assert_array_equal(frames(), bare)


def test_outputs_are_what_diffusers_calls_them(pipe):
    def output(kind, **options):
        return pipe("it moves", generator=seeded(0), output_type=kind, **SMALL, **options)

    floats = output("np").frames[0]
    assert (floats.shape, floats.dtype) == ((5, 32, 32, 3), np.float32)
    tensors = output("pt", return_dict=False)[0][0]
    torch.testing.assert_close(tensors.permute(0, 2, 3, 1), torch.from_numpy(floats))
    np.testing.assert_array_equal(stack(output("pil").frames[0]), (floats * 255).round())
    assert output("latent").frames[0].shape == (1, 16, 2, 4, 4)


def test_a_callback_sees_every_step_may_change_latents_and_may_interrupt(pipe):
    seen = []

    def watch(owner, step, timestep, tensors):
        seen.append((owner is pipe, step, timestep.item(), tuple(tensors["latents"].shape)))

    plain = pipe("it moves", generator=seeded(0), output_type="latent", callback_on_step_end=watch, **SMALL).frames[0]
    assert [(mine, step) for mine, step, _, _ in seen] == [(True, 0), (True, 1)]
    assert seen[0][2:] == (1000.0, (1, 16, 2, 4, 4))
    changed = pipe(
        "it moves", generator=seeded(0), output_type="latent",
        callback_on_step_end=lambda _pipe, _step, _at, tensors: {"latents": tensors["latents"] * 0}, **SMALL,
    ).frames[0]  # fmt: skip
    assert not changed.any()
    assert plain.any()

    def interrupt(owner, step, timestep, tensors):
        seen.append(step)
        owner._interrupt = True

    seen.clear()
    assert pipe("it moves", callback_on_step_end=interrupt, **SMALL).frames is None
    assert seen == [0]
    assert pipe("it moves", **SMALL).frames is not None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image": np.zeros((8, 8), np.uint8)}, r"uint8 \[8, 8\]"),
        ({"video": []}, "no frames"),
        ({"video": [PICTURE, PICTURE[:8]]}, "several sizes"),
        ({"output_type": "latent", "refinement": "space"}, "no latents"),
        ({"num_frames": 4}, "4 frames"),
    ],
)
def test_what_does_not_fit_is_one_sentence(pipe, options, said):
    with pytest.raises(ConfigError, match=said):
        pipe("it moves", **{**SMALL, **options})
