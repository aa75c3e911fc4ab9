"""The training step: start frame in front, sign, what counts in the loss."""

import pytest
import torch

from studio.core.config import LoraSettings
from studio.core.data.check import check_dataset
from studio.core.data.encode import PairEncoder
from studio.core.model.flow import shift_sigma
from studio.core.model.lora import TRAINING, add_lora, remove_lora
from studio.core.train.learner import make_encoders
from studio.core.train.step import Batch, collate, training_loss

SHIFT = 3.0


def generators(count=2):
    return [torch.Generator().manual_seed(index) for index in range(count)]


def draws(batch, count=2):
    """(sigma [B], noise) that `training_loss` draws from `generators`: first the level, then the noise."""
    sigma, noise = [], []
    for generator in generators(count):
        sigma.append(torch.rand((), generator=generator))
        noise.append(torch.randn(batch.latents[0].shape, generator=generator))
    return shift_sigma(torch.stack(sigma), SHIFT), torch.stack(noise)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(99)
    return Batch(
        latents=torch.randn(2, 16, 3, 8, 8, generator=generator),
        start_latent=torch.randn(2, 16, 1, 8, 8, generator=generator),
        text=torch.randn(2, 1, 5, 128, generator=generator),
        text_mask=torch.ones(2, 5, dtype=torch.int64),
    )


def loss_of(predict, batch):
    return training_loss(predict, batch, shift=SHIFT, generators=generators())


def test_a_model_that_predicts_clean_minus_noise_has_no_loss(batch):
    _, noise = draws(batch)
    assert loss_of(lambda *_, **__: batch.latents - noise, batch) == 0
    assert loss_of(lambda *_, **__: noise - batch.latents, batch) > 1


def test_the_model_sees_the_start_frame_clean_at_timestep_0_and_the_rest_noisy(batch):
    seen = {}

    def predict(hidden_states, timestep, text, mask, num_cond_latents=0):
        seen.update(x=hidden_states, timestep=timestep, text=text, mask=mask, num_cond_latents=num_cond_latents)
        return torch.zeros_like(hidden_states)

    loss_of(predict, batch)
    sigma, noise = draws(batch)
    level = sigma.view(-1, 1, 1, 1, 1)
    noisy = (1 - level) * batch.latents + level * noise
    assert seen["num_cond_latents"] == 1
    assert torch.equal(seen["x"][:, :, :1], batch.start_latent)
    torch.testing.assert_close(seen["x"][:, :, 1:], noisy[:, :, 1:])
    assert torch.equal(seen["timestep"][:, 0], torch.zeros(2))
    torch.testing.assert_close(seen["timestep"][:, 1:], (1000 * sigma)[:, None].expand(2, 2))
    assert seen["text"] is batch.text
    assert seen["mask"] is batch.text_mask


def test_the_first_latent_has_no_part_in_the_loss(batch):
    prediction = torch.zeros_like(batch.latents).requires_grad_()
    loss_of(lambda *_, **__: prediction, batch).backward()
    assert prediction.grad is not None
    assert prediction.grad[:, :, 0].abs().max() == 0
    assert (prediction.grad[:, :, 1:] != 0).all()

    before = loss_of(lambda *_, **__: prediction, batch)
    changed = prediction.detach().clone()
    changed[:, :, 0] = 1e6
    assert loss_of(lambda *_, **__: changed, batch) == before
    batch.latents[:, :, 0] += 1e6  # the target of the first latent
    assert loss_of(lambda *_, **__: prediction, batch) == before


def test_each_sample_draws_from_its_own_generator(batch):
    alone = Batch(
        latents=batch.latents[:1],
        start_latent=batch.start_latent[:1],
        text=batch.text[:1],
        text_mask=batch.text_mask[:1],
    )
    seen = []

    def predict(x, *_, **__):
        seen.append(x[:1])
        return torch.zeros_like(x)

    loss_of(predict, batch)
    training_loss(predict, alone, shift=SHIFT, generators=generators(1))
    assert torch.equal(*seen)


def test_texts_are_padded_with_zeros_and_the_mask_says_where_they_end():
    texts = [torch.ones(2, 8), torch.ones(4, 8)]
    latents = [torch.zeros(16, 2, 4, 4)] * 2
    batch = collate(latents, [t[:, :1] for t in latents], texts, text_length=6, device=torch.device("cpu"))
    assert batch.text.shape == (2, 1, 6, 8)
    assert batch.text_mask.tolist() == [[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0]]
    assert batch.text.squeeze(1).sum(-1).tolist() == (8.0 * batch.text_mask).tolist()


@pytest.fixture
def known_batch(tiny_bundle, known_shapes_dataset, data_of, tmp_path):
    """Clips that the tiny checkpoint knows, through files, caches and the collation of a real run."""
    data = data_of(known_shapes_dataset, size=128, num_frames=17)
    pairs = check_dataset(data).pairs
    encoder = PairEncoder(data, make_encoders(tiny_bundle), tmp_path)
    return collate(
        [encoder.pair(pair).latents for pair in pairs],
        [encoder.pair(pair).start_latent for pair in pairs],
        [encoder.text(pair.captions[0]) for pair in pairs],
        text_length=tiny_bundle.prompt_encoder.max_length,
        device=tiny_bundle.device,
    )


def test_the_trained_checkpoint_has_a_small_loss_only_with_its_start_frame_and_sign(tiny_bundle, known_batch):
    dit = tiny_bundle.dit
    shift = tiny_bundle.scheduler.config["shift"]
    seen = []

    @torch.inference_mode()
    def measure(predict, batch):
        return training_loss(predict, batch, shift=shift, generators=generators()).item()

    def remember(*inputs, **options):
        seen.append(dit(*inputs, **options))
        return seen[-1]

    right = measure(remember, known_batch)
    reversed_sign = measure(lambda *_, **__: -seen[0], known_batch)
    swapped = Batch(
        latents=known_batch.latents,
        start_latent=known_batch.start_latent.flip(0),
        text=known_batch.text,
        text_mask=known_batch.text_mask,
    )
    assert right < 0.2
    assert measure(dit, swapped) > 5 * right
    assert reversed_sign > 5 * right


def test_ten_steps_lower_the_loss_on_fixed_noise_and_touch_nothing_but_the_lora(tiny_bundle, batch, weights_hash):
    dit = tiny_bundle.dit
    before = weights_hash(dit)
    parameters = add_lora(dit, LoraSettings(rank=4), seed=0)
    try:
        assert {id(p) for p in dit.parameters() if p.requires_grad} == {id(p) for p in parameters}
        optimizer = torch.optim.AdamW(parameters, lr=3e-3)
        losses = []
        for _ in range(10):
            loss = training_loss(dit, batch, shift=SHIFT, generators=generators())
            losses.append(loss.item())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    finally:
        remove_lora(dit, TRAINING)
    assert losses[-1] < 0.9 * losses[0]
    assert weights_hash(dit) == before
