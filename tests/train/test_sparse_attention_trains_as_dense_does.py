"""Gradients of a LoRA on the tiny checkpoint under block-sparse attention, with and without checkpointing."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from studio.core.config import LoraSettings
from studio.core.model.attention import AttentionChoice
from studio.core.model.lora import TRAINING, add_lora, remove_lora
from studio.core.train.step import Batch, training_loss

LAYERS = 8


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(5)
    return Batch(
        latents=torch.randn(1, 16, 5, 16, 16, generator=generator),
        start_latent=torch.randn(1, 16, 1, 16, 16, generator=generator),
        text=torch.randn(1, 1, 5, 128, generator=generator),
        text_mask=torch.ones(1, 5, dtype=torch.int64),
    )


@pytest.fixture
def step(tiny_bundle, batch):
    """step(choice, checkpointing=False): loss and gradient of a LoRA that is not zero."""
    dit = tiny_bundle.dit
    parameters = add_lora(dit, LoraSettings(rank=4), seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in parameters:
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)

    def run(choice, *, checkpointing=False):
        dit.set_attention(choice)
        if checkpointing:
            dit.enable_gradient_checkpointing()
        dit.train()
        loss = training_loss(dit, batch, shift=3.0, generators=[torch.Generator().manual_seed(3)])
        gradients = torch.autograd.grad(loss, parameters)
        dit.eval()
        dit.disable_gradient_checkpointing()
        return loss.detach(), torch.cat([gradient.flatten() for gradient in gradients])

    yield run
    dit.disable_gradient_checkpointing()
    dit.eval()
    dit.set_attention(tiny_bundle.attention)
    remove_lora(dit, TRAINING)


class CountedOps(TorchDispatchMode):
    """How often each operator of video_bsa was computed inside."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "video_bsa":
            self.counts[func.name()] += 1
        return func(*args, **(kwargs or {}))


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())


def sparse(sparsity):
    return AttentionChoice(setting="sparse", sparsity=sparsity)


DENSE = AttentionChoice(setting="dense")


def test_a_step_that_skips_nothing_is_the_dense_step(step):
    """2e-6: eight layers of fp32 sums in another order, forward and backward; 2e-7 was seen."""
    loss, gradient = step(sparse(0.0))
    expected_loss, expected = step(DENSE)
    assert relative_error(loss, expected_loss) < 1e-6
    assert relative_error(gradient, expected) < 2e-6
    assert relative_error(step(sparse(0.9375))[1], expected) > 1e-2, "skipping blocks must change something"


@pytest.mark.parametrize("choice", [DENSE, sparse(0.9375)], ids=lambda choice: choice.setting)
def test_checkpointing_changes_no_gradient(step, choice):
    """1e-6: the same operations in the same order."""
    loss, gradient = step(choice)
    again_loss, again = step(choice, checkpointing=True)
    assert torch.equal(loss, again_loss)
    assert relative_error(again, gradient) < 1e-6


def test_the_recomputed_layer_attends_to_the_blocks_that_it_chose_the_first_time(step):
    with CountedOps() as plain:
        step(sparse(0.9375))
    with CountedOps() as checkpointed:
        step(sparse(0.9375), checkpointing=True)
    assert plain.counts["video_bsa::select_blocks"] == LAYERS
    assert checkpointed.counts["video_bsa::select_blocks"] == LAYERS, "chosen once a layer, not again"
    assert checkpointed.counts["video_bsa::attend"] == 2 * LAYERS, "the attention itself is computed again"


def test_dense_attention_is_checkpointed_without_watching_its_operators(tiny_bundle, step):
    with CountedOps() as counted:
        step(DENSE, checkpointing=True)
    assert not counted.counts
