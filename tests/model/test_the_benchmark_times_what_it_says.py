"""`python -m studio bench`, as far as a machine without a GPU shows it."""

from __future__ import annotations

import pytest
import torch
from peft.tuners.lora.layer import Linear as PlainLora

from studio.bench.paths import time_forward, time_step, use_fast_path, use_plain_path
from studio.cli import main
from studio.core.model.dit import LongCatVideoTransformer3DModel
from studio.core.model.lora_linear import LoraLinear
from studio.core.types import Bucket

SMALL = Bucket(num_frames=9, height=64, width=64)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so_in_one_line(capsys):
    assert main(["bench"]) == 1
    assert capsys.readouterr().err.startswith("The benchmark times the full-size transformer")


@pytest.fixture
def dit():
    return LongCatVideoTransformer3DModel(
        hidden_size=128, depth=2, num_heads=2, caption_channels=16, adaln_tembed_dim=32
    ).requires_grad_(False)


@pytest.mark.parametrize("setting", ["dense", "sparse"])
@pytest.mark.parametrize("is_cached", [False, True])
def test_it_runs_the_attention_that_it_names(dit, setting, is_cached):
    calls = []
    dit.blocks[0].register_forward_hook(lambda block, *_: calls.append(block.attn.choice.setting))
    use_fast_path(dit, setting)
    timing = time_forward(dit, SMALL, is_cached=is_cached)
    assert timing.seconds > 0
    assert timing.peak_bytes == 0
    assert calls == [setting] * (4 + is_cached)


def test_the_plain_step_has_no_layer_of_ours_and_leaves_the_model_bare(dit):
    layers = []
    dit.blocks[0].attn.register_forward_pre_hook(lambda attn, _: layers.append(type(attn.qkv)))
    before = [name for name, _ in dit.named_parameters()]
    time_step(dit, use_plain_path, size=SMALL)
    time_step(dit, use_fast_path, size=SMALL)
    assert set(layers) == {PlainLora, LoraLinear}
    assert [name for name, _ in dit.named_parameters()] == before
    assert not dit.gradient_checkpointing
