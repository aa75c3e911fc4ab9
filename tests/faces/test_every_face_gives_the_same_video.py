"""One request through every face: the same frames before they are encoded, and the same in the mp4, bit for bit."""

import hashlib
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from studio.cli import main
from studio.core.model.lora import LoraFile
from studio.core.sample import sampler
from studio.core.sample.desk import SampleDesk
from studio.core.sample.queue import EntryState
from studio.core.sample.request import PUBLISHED_NEGATIVE_PROMPT, SampleRequest
from studio.core.sample.sampler import sample
from studio.core.sample.video import read_video

SECONDS = 120
PICTURE = np.random.default_rng(0).integers(60, 200, (40, 48, 3), np.uint8)


def digest(frames):
    return hashlib.sha256(np.ascontiguousarray(frames).tobytes()).hexdigest()


@pytest.fixture
def raw(monkeypatch):
    """Digests of the frames that are given to the encoder, in the order in which videos are written."""
    seen, write_video = [], sampler.write_video

    def watched(path, frames, fps, settings):
        seen.append(digest(frames))
        write_video(path, frames, fps, settings)

    monkeypatch.setattr(sampler, "write_video", watched)
    return seen


@pytest.fixture
def lora(tmp_path):
    generator = torch.Generator().manual_seed(0)
    layer = "blocks.0.attn.qkv"
    state = {
        f"{layer}.lora_A.weight": torch.randn(4, 256, generator=generator) / 16,
        f"{layer}.lora_B.weight": torch.randn(768, 4, generator=generator),
    }
    save_file(state, tmp_path / "lora.safetensors")
    return tmp_path / "lora.safetensors"


@pytest.fixture(params=["from a start frame, with a LoRA", "a long one, from a prompt alone, sparse"])
def asked(request, lora, tmp_path):
    """(request, the same as options of the command)."""
    small = {"height": 32, "width": 32, "num_frames": 17, "num_inference_steps": 2}
    options = ["--size", "32x32", "--frames", "17", "--steps", "2", "--prompt", "it moves"]
    if "LoRA" in request.param:
        Image.fromarray(PICTURE).save(tmp_path / "start.png")
        return SampleRequest(
            prompt="it moves", start_frame=PICTURE, loras=(LoraFile(path=lora, strength=0.5),), guidance_scale=3.5,
            negative_prompt=PUBLISHED_NEGATIVE_PROMPT, seed=7, **small,
        ), [
            *options, "--image", str(tmp_path / "start.png"), "--lora", str(lora), "--lora-strength", "0.5",
            "--guidance", "3.5", "--published-negative-prompt", "--seed", "7",
        ]  # fmt: skip
    return SampleRequest(
        prompt="it moves", num_segments=2, later_prompts=("it stops",), schedule="standard", attention="sparse",
        sparsity=0.5, seed=2**40, **small,
    ), [
        *options, "--segments", "2", "--next-prompt", "it stops", "--schedule", "standard", "--attention", "sparse",
        "--sparsity", "0.5", "--seed", str(2**40),
    ]  # fmt: skip


def test_core_command_notebook_and_the_desk_of_the_app(asked, tiny_bundle, tmp_path, raw):
    pytest.importorskip("ipywidgets")
    from studio.nb.sampling import sample_panel

    request, options = asked
    list(sample(request, tiny_bundle, tmp_path / "core.mp4"))
    assert main(["sample", *options, "--out", str(tmp_path / "command.mp4")]) == 0

    panel = sample_panel(request, model=tiny_bundle, out=tmp_path / "notebook")
    panel.start.click()
    (notebook,) = panel.wait()

    # What the app holds: its room Sample puts requests into this queue, and this thread renders them.
    desk = SampleDesk(tmp_path / "gallery", lambda _: tiny_bundle)
    desk.queue.add(request)
    desk.start()
    try:
        deadline = time.monotonic() + SECONDS
        while desk.snapshot().is_busy:
            assert time.monotonic() < deadline, "waited too long"
            time.sleep(0.02)
    finally:
        desk.stop()
    (entry,) = desk.queue.entries()
    assert entry.state is EntryState.DONE, entry.message

    videos = [tmp_path / "core.mp4", tmp_path / "command.mp4", notebook, tmp_path / "gallery" / f"{entry.video}.mp4"]
    assert len(raw) == len(videos)
    assert len(set(raw)) == 1
    assert len({digest(read_video(path)[0]) for path in videos}) == 1
