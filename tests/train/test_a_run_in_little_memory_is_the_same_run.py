"""Runs on eight-bit weights and on swapped blocks: they resume, and a swap may come and go on the way."""

from dataclasses import replace

import pytest
import torch

from studio.core.config import ModelConfig
from studio.core.errors import ConfigError
from studio.core.model.load import load_bundle
from studio.core.model.swap import BlockSwap
from studio.core.train.job import run_inline
from studio.core.train.loop import train

INT8 = ModelConfig(source="tiny", device="cpu", gradient_checkpointing=False, base_precision="int8-quanto")


@pytest.fixture(scope="module")
def int8_bundle():
    return load_bundle(INT8)


def losses(folder):
    return dict(folder.snapshot().losses)


def stopped_after(step, run, **arguments):
    seen = []
    return run(
        on_event=lambda event: seen.append(getattr(event, "step", 0)), should_stop=lambda: step in seen, **arguments
    )


def test_a_run_on_int8_weights_resumes_bit_for_bit(config, int8_bundle):
    config = replace(config, model=INT8)

    def run(**arguments):
        return run_inline(config, lambda: int8_bundle, **arguments)

    whole = run()
    broken = stopped_after(2, run)
    assert run(resume=broken) == broken
    assert losses(broken) == losses(whole)
    assert len(losses(whole)) == 4


def test_a_run_may_go_on_with_blocks_swapped(config, tiny_bundle):
    whole = run_inline(config, lambda: tiny_bundle)
    broken = stopped_after(2, lambda **arguments: run_inline(config, lambda: tiny_bundle, **arguments))
    swapping = replace(config, model=replace(config.model, blocks_to_swap=5, vae_tiling=True))
    cpu = torch.device("cpu")
    swap = BlockSwap(list(tiny_bundle.dit.blocks)[-5:], cpu, cpu)
    try:
        run_inline(swapping, lambda: tiny_bundle, resume=broken)
    finally:
        swap.remove()
    assert losses(broken) == losses(whole)


def test_another_precision_is_another_run(config, report, int8_bundle):
    folder = run_inline(replace(config, optim=replace(config.optim, max_train_steps=1)), lambda: int8_bundle)
    with pytest.raises(ConfigError, match="model.base_precision no_change, now int8-quanto"):
        list(train(replace(config, model=INT8), folder, int8_bundle, report, resume=True))
