"""The panel of samples and the sparse dial: what they do with a real small model, and what they show."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from studio.core.errors import ConfigError, JobAlreadyRunning
from studio.core.model.lora import LoraFile
from studio.core.sample.gallery import list_videos, settings_again
from studio.core.sample.request import PUBLISHED_NEGATIVE_PROMPT, SampleRequest
from studio.core.sample.sampler import frames_of

pytest.importorskip("ipywidgets")
from studio.nb.attention import dial_panel, path_panel  # noqa: E402
from studio.nb.sampling import sample_panel  # noqa: E402

SECONDS = 60
SMALL = SampleRequest(
    prompt="it <b>moves", start_frame=np.full((64, 64, 3), 90, np.uint8), height=32, width=32, num_frames=17,
    num_inference_steps=2, seed=5,
)  # fmt: skip


@pytest.fixture
def lora(tmp_path):
    state = {"blocks.0.ffn.w2.lora_A.weight": torch.ones(2, 768), "blocks.0.ffn.w2.lora_B.weight": torch.ones(256, 2)}
    save_file(state, tmp_path / "lora.safetensors")
    return LoraFile(path=tmp_path / "lora.safetensors")


def wait_for(condition):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def test_a_comparison_is_two_videos_of_one_group_with_what_the_form_says(tiny_bundle, lora, tmp_path):
    gallery = tmp_path / "samples"
    request = replace(SMALL, loras=(lora,))
    panel = sample_panel(request, model=tiny_bundle, out=gallery, compare="lora", language="es")
    panel.published.click()
    panel.strength.value, panel.seed.value = 0.5, 6
    previews = []
    panel.preview.observe(lambda change: previews.append(bytes(change["new"])), names="value")
    panel.start.click()
    with pytest.raises(JobAlreadyRunning):
        panel.render()
    assert len(panel.wait()) == 2
    assert panel.bar.value == 1
    assert previews
    assert all(preview[8:12] == b"WEBP" for preview in previews)
    assert "Hecho" in panel.status.value
    assert [player.children[1].value.partition("</b>")[0] for player in panel.players.children] == [
        "<b>Sin LoRA · sample-0001", "<b>Con LoRA · sample-0002",
    ]  # fmt: skip
    assert (panel.start.disabled, panel.cancel.disabled) == (False, True)
    found = [settings_again(gallery, video.name) for video in list_videos(gallery)]
    assert [(r.label, r.seed, r.negative_prompt == PUBLISHED_NEGATIVE_PROMPT) for r in found] == [
        ("with LoRA", 6, True), ("without LoRA", 6, True),
    ]  # fmt: skip
    assert [lora.strength for lora in found[0].loras] == [0.5]
    assert found[0].group == found[1].group != ""


def test_cancel_ends_it_after_its_step_and_leaves_nothing(tiny_bundle, tmp_path):
    panel = sample_panel(SMALL, model=tiny_bundle, out=tmp_path)
    panel.steps.value = 500
    panel.render()
    wait_for(lambda: "step" in panel.status.value)
    assert "left" in panel.status.value
    panel.cancel.click()
    assert panel.wait() == ()
    assert panel.status.value == "Cancelled; nothing was written."
    assert list(tmp_path.iterdir()) == []
    assert not tiny_bundle.lock.locked()
    panel.steps.value = 1
    panel.render()
    assert len(panel.wait()) == 1


def test_what_cannot_be_rendered_is_said_in_the_panel(tiny_bundle, tmp_path):
    panel = sample_panel(SMALL, model=tiny_bundle, out=tmp_path)
    panel.steps.value = -1
    panel.render()
    assert panel.wait() == ()
    assert "-1 steps" in panel.status.value
    assert not panel.start.disabled
    with pytest.raises(ConfigError, match="no LoRA"):
        sample_panel(SMALL, model=tiny_bundle, out=tmp_path, compare="lora")


def test_the_dial_says_how_far_and_how_long_and_by_which_path(tiny_bundle):
    points = dial_panel(SMALL, tiny_bundle, (0.0, 0.75))
    assert [point.kept for point in points] == [(2, 2), (1, 2)]
    assert points[0].error < 1e-4, "what skips nothing is dense"
    assert points[1].error > 1e-3
    assert points[0].psnr > points[1].psnr
    assert all(point.seconds > 0 for point in points)
    shown = path_panel(SMALL, tiny_bundle).value
    assert "2 key blocks; sparse keeps 1" in shown
    if not torch.cuda.is_available():
        assert "the plain PyTorch reference, exact but slower than dense" in shown


def test_a_record_of_attention_has_the_blocks_that_were_kept(tiny_bundle):
    request = SampleRequest(
        prompt="it moves", start_frame=SMALL.start_frame, height=128, width=128, num_frames=33, num_inference_steps=1,
        attention="sparse", sparsity=0.75,
    )  # fmt: skip
    with tiny_bundle.lock, tiny_bundle.dit.recorded_attention() as records:
        for _ in frames_of(request, tiny_bundle, should_stop=lambda: True):
            pass
    record = records[-1]
    assert (record.grid_q, record.grid_k) == ((8, 8, 8), (9, 8, 8))
    assert record.chosen.shape == (8, 12)
    torch.testing.assert_close(record.chosen.sum(1), torch.full((8,), 3.0))
    assert record.kept_by(record.middle).shape == (3, 2, 2)
    assert [record.place_of(query) for query in (0, 3, 4, 7)] == [(0, 0, 0), (0, 1, 1), (1, 0, 0), (1, 1, 1)]
