import gc
import random
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from studio.core.events import DenoiseStep, SampleDone
from studio.core.model.lora import LoraFile, adapter_names
from studio.core.sample import sampler
from studio.core.sample.request import SampleRequest
from studio.core.sample.sampler import sample
from studio.core.sample.video import read_video

REQUEST = SampleRequest(
    prompt="it moves", start_frame=np.full((64, 64, 3), 90, np.uint8), height=32, width=32, num_frames=5,
    num_inference_steps=3, num_segments=2, num_overlap_frames=1, schedule="standard", preview_steps=1,
)  # fmt: skip


@pytest.fixture
def request_(tmp_path_factory):
    file = tmp_path_factory.mktemp("lora") / "lora.safetensors"
    state = {"blocks.0.ffn.w2.lora_A.weight": torch.ones(2, 768), "blocks.0.ffn.w2.lora_B.weight": torch.ones(256, 2)}
    save_file(state, file)
    return replace(REQUEST, loras=(LoraFile(path=file),))


@pytest.fixture
def made_of(monkeypatch):
    """Weak references to the latents of every step."""
    seen, denoise = [], sampler.denoise

    def watched(*args, **kwargs):
        for latents in denoise(*args, **kwargs):
            seen.append(weakref.ref(latents))
            yield latents

    monkeypatch.setattr(sampler, "denoise", watched)
    return seen


@pytest.mark.parametrize("moment", range(20))
def test_at_any_moment_within_one_step(tiny_bundle, request_, tmp_path, made_of, moment):
    """Asked to stop, or left alone as when a page is closed: memory is free, no file is there, the lock is open."""
    chance = random.Random(moment)
    stop_at, is_closed = chance.randint(1, 6), chance.random() < 0.5
    events = sample(
        request_, tiny_bundle, tmp_path / "video.mp4", should_stop=lambda: not is_closed and done >= stop_at
    )
    done, after = 0, 0
    for event in events:
        if isinstance(event, DenoiseStep):
            after += done >= stop_at
            done += 1
        if is_closed and done >= stop_at:
            events.close()
            break
        assert not isinstance(event, SampleDone)
    del event, events
    gc.collect()
    assert done == stop_at
    assert after == 0, "no step begins after the stop"
    assert made_of
    assert not any(latents() is not None for latents in made_of)
    assert list(tmp_path.iterdir()) == []
    assert not tiny_bundle.lock.locked()
    assert adapter_names(tiny_bundle.dit) == ()


def test_the_same_seed_gives_the_same_video_bit_for_bit(tiny_bundle, request_, tmp_path):
    for name in ("one.mp4", "two.mp4", "three.mp4"):
        request = request_ if name != "three.mp4" else replace(request_, seed=1)
        list(sample(request, tiny_bundle, tmp_path / name))
    one, two, three = (read_video(tmp_path / f"{name}.mp4")[0] for name in ("one", "two", "three"))
    np.testing.assert_array_equal(one, two)
    assert (one != three).any()
