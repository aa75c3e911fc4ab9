"""`python -m studio bench`, as far as a machine without a GPU shows it."""

from __future__ import annotations

import pytest
import torch

from studio.bench import time_forward
from studio.cli import main
from studio.core.model.attention import AttentionChoice
from studio.core.model.dit import LongCatVideoTransformer3DModel


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so_in_one_line(capsys):
    assert main(["bench"]) == 1
    assert capsys.readouterr().err.startswith("The benchmark times the full-size transformer")


@pytest.mark.parametrize("setting", ["dense", "sparse"])
def test_it_runs_the_attention_that_it_names(setting):
    dit = LongCatVideoTransformer3DModel(
        hidden_size=128, depth=2, num_heads=2, caption_channels=16, adaln_tembed_dim=32
    )
    calls = []
    dit.blocks[0].register_forward_hook(lambda block, *_: calls.append(block.attn.choice.setting))
    seconds, peak = time_forward(dit, AttentionChoice(setting=setting), frames=9, height=64, width=64)
    assert seconds > 0
    assert peak == 0
    assert calls == [setting] * 4
