"""Golden tensors: see golden/README.md."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors import safe_open
from safetensors.torch import load_file

from studio.core.model.attention import AttentionChoice
from studio.core.model.dit import LongCatVideoTransformer3DModel
from studio.core.model.flow import set_schedule
from studio.core.model.text import TextCondition
from studio.core.sample.denoise import denoise

GOLDEN = Path(__file__).parent / "golden" / "dit_i2v.safetensors"
TENSORS = load_file(GOLDEN)


def model(*, zero_pad):
    with safe_open(GOLDEN, "pt") as file:
        config = json.loads(file.metadata()["config"])
    built = LongCatVideoTransformer3DModel(**config, text_tokens_zero_pad=zero_pad)
    built.load_state_dict({k.removeprefix("weights."): v for k, v in TENSORS.items() if k.startswith("weights.")})
    return built.eval().requires_grad_(False)


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("name", "zero_pad", "timestep", "has_mask", "num_cond"),
    [
        ("out.t2v", False, "in.timestep", True, 0),
        ("out.t2v_no_mask", False, "in.timestep", False, 0),
        ("out.t2v_zero_pad", True, "in.timestep", True, 0),
        ("out.i2v", False, "in.timestep_i2v", True, 1),
        ("out.i2v_zero_pad", True, "in.timestep_i2v", True, 1),
        ("out.vc2", False, "in.timestep_vc2", True, 2),
    ],
)
def test_the_output_is_the_published_one(name, zero_pad, timestep, has_mask, num_cond):
    mask = TENSORS["in.prompt_mask"] if has_mask else None
    found = model(zero_pad=zero_pad)(
        TENSORS["in.latents"], TENSORS[timestep], TENSORS["in.prompt_embeds"], mask, num_cond_latents=num_cond
    )
    assert relative_error(found, TENSORS[name]) < 1e-5


def test_the_stream_of_clean_latents_can_be_computed_once():
    dit = model(zero_pad=False)
    latents, timestep = TENSORS["in.latents"], TENSORS["in.timestep_vc2"]
    text = TENSORS["in.prompt_embeds"], TENSORS["in.prompt_mask"]
    joint = dit(latents, timestep, *text, num_cond_latents=2)
    held, cache = dit(latents[:, :, :2], torch.zeros(2), None, return_kv=True)
    noise = dit(latents[:, :, 2:], timestep[:, 2:], *text, kv_cache=cache)
    assert relative_error(noise, TENSORS["out.vc2_cached"]) < 1e-5
    assert relative_error(torch.cat((held, noise), dim=2), joint) < 1e-6


def test_sparse_attention_with_the_cached_stream_is_that_of_the_joint_pass():
    dit = model(zero_pad=False)
    dit.set_attention(AttentionChoice(setting="sparse", block=(2, 2, 2), sparsity=0.75))
    latents, timestep = TENSORS["in.latents"], TENSORS["in.timestep_i2v"]
    text = TENSORS["in.prompt_embeds"], TENSORS["in.prompt_mask"]
    joint = dit(latents, timestep, *text, num_cond_latents=1)
    held, cache = dit(latents[:, :, :1], torch.zeros(2), None, return_kv=True)
    with dit.recorded_attention() as records:
        noise = dit(latents[:, :, 1:], timestep[:, 1:], *text, kv_cache=cache)
    assert len(records) == len(dit.blocks), "the noise tokens are sparse, over all keys"
    assert relative_error(torch.cat((held, noise), dim=2), joint) < 1e-6
    dit.set_attention(AttentionChoice(setting="dense"))
    assert torch.equal(dit(latents[:, :, :1], torch.zeros(2), None), held), "the start frame's stream is dense"


def test_each_layer_notes_what_it_skips_and_only_when_asked():
    dit = model(zero_pad=True)
    arguments = (TENSORS["in.latents"], TENSORS["in.timestep_i2v"], TENSORS["in.prompt_embeds"])
    masses = []
    for sparsity in (0.0, 0.5, 0.9):
        dit.set_attention(AttentionChoice(setting="sparse", block=(2, 2, 2), sparsity=sparsity))
        plain = dit(*arguments, num_cond_latents=1)
        with dit.recorded_attention() as records:
            assert torch.equal(dit(*arguments, num_cond_latents=1), plain)
        assert [record.layer for record in records] == list(range(len(dit.blocks)))
        assert all(0 <= record.overlap <= 1 for record in records)
        masses.append([record.mass for record in records])
        dit(*arguments, num_cond_latents=1)
        assert len(records) == len(dit.blocks), "nothing is noted afterwards"
    assert masses[0] == pytest.approx([1.0] * len(dit.blocks), abs=1e-6)
    assert all(half > few for half, few in zip(masses[1], masses[2], strict=True))


@pytest.mark.parametrize(
    ("name", "num_steps", "guidance", "schedule"),
    [("cfg4_8", 8, 4.0, "standard"), ("nocfg_6", 6, 1.0, "standard"), ("distill_4", 4, 1.0, "distilled")],
)
def test_the_whole_loop_ends_where_the_published_one_does(name, num_steps, guidance, schedule):
    held = TENSORS["sample.cond_latent"]
    *_, found = denoise(
        model(zero_pad=False),
        FlowMatchEulerDiscreteScheduler(shift=12.0),
        noise=TENSORS["sample.noise"],
        held=held,
        prompt=TextCondition(embeds=TENSORS["sample.prompt_embeds"], mask=TENSORS["sample.prompt_mask"]),
        negative=TextCondition(embeds=TENSORS["sample.negative_embeds"], mask=TENSORS["sample.negative_mask"]),
        num_steps=num_steps,
        guidance_scale=guidance,
        schedule=schedule,
    )
    assert relative_error(found, TENSORS[f"sample.{name}.latents"]) < 1e-4
    assert torch.equal(found[:, :, :1], held), "the first latent must stay bit for bit"


@pytest.mark.parametrize("is_batched", [True, False])
def test_a_continuation_ends_where_the_joint_forward_leads(is_batched):
    """Clean latents cached once, and guided over the noisy frames alone: as if both were computed in every step."""
    dit, num_held, scale = model(zero_pad=True), 2, 4.0
    generator = torch.Generator().manual_seed(0)
    noise, held = (torch.randn(1, 16, frames, 8, 12, generator=generator) for frames in (5, num_held))
    texts = [
        TextCondition(embeds=TENSORS[f"sample.{name}_embeds"], mask=TENSORS[f"sample.{name}_mask"])
        for name in ("negative", "prompt")
    ]
    scheduler = FlowMatchEulerDiscreteScheduler(shift=12.0)
    *_, found = denoise(
        dit, scheduler, noise=noise, held=held, prompt=texts[1], negative=texts[0], num_steps=8, guidance_scale=scale,
        schedule="detailed", guides_over_held=False, is_batched=is_batched,
    )  # fmt: skip
    latents, sigmas = noise[:, :, num_held:], scheduler.sigmas
    for sigma, lower in zip(sigmas[:-1], sigmas[1:], strict=True):
        timestep = torch.full((1, 5), 1000 * sigma.item())
        timestep[:, :num_held] = 0
        joint = torch.cat((held, latents), dim=2)
        negative, prompt = (
            dit(joint, timestep, text.embeds, text.mask, num_cond_latents=num_held)[:, :, num_held:] for text in texts
        )
        best = (prompt * negative).sum() / (negative.square().sum() + 1e-8)
        velocity = best * negative + scale * (prompt - best * negative)
        latents = latents + (sigma - lower) * velocity
    assert torch.equal(found[:, :, :num_held], held)
    assert relative_error(found[:, :, num_held:], latents) < 1e-5


def test_a_batch_is_guided_sample_by_sample():
    def run(rows):
        *_, latents = denoise(
            model(zero_pad=True),
            FlowMatchEulerDiscreteScheduler(shift=12.0),
            noise=noise[rows],
            held=held[rows],
            prompt=TextCondition(embeds=TENSORS["in.prompt_embeds"][rows], mask=TENSORS["in.prompt_mask"][rows]),
            negative=TextCondition(
                embeds=TENSORS["in.prompt_embeds"].flip(0)[rows], mask=TENSORS["in.prompt_mask"].flip(0)[rows]
            ),
            num_steps=3,
            guidance_scale=4.0,
        )
        return latents

    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 16, 5, 8, 12, generator=generator)
    held = torch.randn(2, 16, 1, 8, 12, generator=generator)
    both = run([0, 1])
    for row in (0, 1):
        assert relative_error(both[row : row + 1], run([row])) < 1e-5


@pytest.mark.parametrize(
    ("name", "num_steps", "schedule"),
    [("steps40", 40, "standard"), ("steps50", 50, "standard"), ("distill16", 16, "distilled")],
)
def test_the_noise_levels_are_the_published_ones(name, num_steps, schedule):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=12.0)
    set_schedule(scheduler, num_steps, schedule)
    torch.testing.assert_close(scheduler.sigmas, TENSORS[f"schedule.{name}.sigmas"], rtol=1e-6, atol=1e-7)


def test_the_full_configuration_has_the_published_number_of_parameters_and_tensors():
    with torch.device("meta"):
        full = LongCatVideoTransformer3DModel(text_tokens_zero_pad=True)
    assert sum(p.numel() for p in full.parameters()) == 13_581_071_424
    assert len(full.state_dict()) == 1022


def test_sparse_attention_that_skips_nothing_is_dense_attention():
    dit = model(zero_pad=True)
    arguments = (
        TENSORS["in.latents"],
        TENSORS["in.timestep_i2v"],
        TENSORS["in.prompt_embeds"],
        TENSORS["in.prompt_mask"],
    )
    dense = dit(*arguments, num_cond_latents=1)
    dit.set_attention(AttentionChoice(setting="sparse", sparsity=0.0))
    assert relative_error(dit(*arguments, num_cond_latents=1), dense) < 1e-5
    dit.set_attention(AttentionChoice(setting="sparse", sparsity=0.9375))
    assert relative_error(dit(*arguments, num_cond_latents=1), dense) > 1e-4, "skipping blocks must change something"


def test_a_compiled_transformer_is_one_graph_under_sparse_attention_too():
    dit = model(zero_pad=True)
    dit.set_attention(AttentionChoice(setting="sparse", block=(2, 2, 2), sparsity=0.5))
    arguments = (TENSORS["in.latents"], TENSORS["in.timestep_i2v"], TENSORS["in.prompt_embeds"])
    plain = dit(*arguments, num_cond_latents=1)
    compiled = torch.compile(dit, fullgraph=True, backend="aot_eager")(*arguments, num_cond_latents=1)
    assert relative_error(compiled, plain) < 1e-6
