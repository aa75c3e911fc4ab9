"""What tests share: the tiny checkpoint, loaded once, and a small dataset of moving shapes."""

import json
import os
import shutil
from dataclasses import replace

import imageio.v3 as iio
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import save_file

from studio.core.assets import asset_path
from studio.core.config import ModelConfig
from studio.core.data.shapes import BASE_MOTIONS, EFFECT, draw_clips, random_scenes, to_uint8
from studio.core.model.load import load_bundle
from studio.core.model.lora_formats import to_published
from studio.core.model.published_loras import DISTILLED_LORA, REFINEMENT_LORA

# One thread a process: the files run side by side, and threads that outnumber the cores wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def leave_the_home_alone(tmp_path_factory):
    """What checks find is kept in a folder of the tests, also by the processes that they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LONGCAT_STUDIO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", autouse=True)
def stay_at_ordinary_priority():
    """A library that makes the process a real-time one would starve all that the tests start."""
    yield
    if hasattr(os, "sched_getscheduler"):
        assert os.sched_getscheduler(0) == os.SCHED_OTHER


@pytest.fixture(scope="session")
def tiny_bundle():
    """The tiny checkpoint on the CPU; whoever puts an adapter on takes it off again."""
    return load_bundle(ModelConfig(source="tiny", device="cpu"))


@pytest.fixture(scope="session")
def published_checkpoint(tiny_bundle, tmp_path_factory):
    """The tiny checkpoint from a folder that has the published shift and both published LoRAs, crafted, in their own
    layout. The weights are those of `tiny_bundle` themselves.
    """
    folder = tmp_path_factory.mktemp("published") / "checkpoint"
    shutil.copytree(asset_path("tiny"), folder)
    (folder / "lora").mkdir()
    for number, name in enumerate((DISTILLED_LORA, REFINEMENT_LORA)):
        generator = torch.Generator().manual_seed(number)
        state = {}
        for layer, (rows, columns) in {"attn.qkv": (768, 256), "ffn.w2": (256, 768)}.items():
            module = f"blocks.0.{layer}"
            state[f"{module}.lora_A.weight"] = torch.randn(2, columns, generator=generator) / 16
            state[f"{module}.lora_B.weight"] = torch.randn(rows, 2, generator=generator)
        save_file(to_published(state), folder / name)
    settings = folder / "scheduler" / "scheduler_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"shift": 12.0}))
    return replace(tiny_bundle, source=str(folder), scheduler=FlowMatchEulerDiscreteScheduler(shift=12.0))


@pytest.fixture(scope="session")
def draw_shapes_dataset(tmp_path_factory):
    """draw_shapes_dataset(num_clips, size, num_frames, motions): a folder of clips/, start_frames/ and captions."""

    def draw(num_clips=4, size=64, num_frames=9, motions=(EFFECT,)):
        folder = tmp_path_factory.mktemp("shapes")
        scenes = random_scenes(
            num_clips, height=size, width=size, generator=torch.Generator().manual_seed(0), motions=motions
        )
        (folder / "clips").mkdir()
        (folder / "start_frames").mkdir()
        videos = to_uint8(draw_clips(scenes, num_frames))
        for index, (frames, caption) in enumerate(zip(videos, scenes.captions(), strict=True)):
            clip = folder / "clips" / f"shape_{index}.mp4"
            iio.imwrite(clip, frames, fps=15, codec="libx264", macro_block_size=2)
            iio.imwrite(folder / "start_frames" / f"shape_{index}.png", frames[0])
            clip.with_suffix(".txt").write_text(caption)
        return folder

    return draw


@pytest.fixture(scope="session")
def shapes_dataset(draw_shapes_dataset):
    """Four clips of 9 frames, 64x64, in which shapes hop. Not to be changed: copy it first."""
    return draw_shapes_dataset()


@pytest.fixture(scope="session")
def known_shapes_dataset(draw_shapes_dataset):
    """Two clips of 17 frames, 128x128: motions, size and length that the tiny checkpoint was trained on."""
    return draw_shapes_dataset(num_clips=2, size=128, num_frames=17, motions=BASE_MOTIONS)
