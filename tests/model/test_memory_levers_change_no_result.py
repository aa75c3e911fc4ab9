"""Swap, offload and checkpointing give the numbers of a resident model, bit for bit; eight bits give nearly them."""

import gc
from contextlib import contextmanager

import pytest
import torch
from torch.utils.checkpoint import CheckpointPolicy

from studio.core.config import LoraSettings, ModelConfig
from studio.core.errors import ConfigError, DeviceError
from studio.core.model import attention
from studio.core.model.fp8 import Fp8Linear
from studio.core.model.load import load_bundle, resolve_device
from studio.core.model.lora import TRAINING, add_lora, lora_applied, lora_state, remove_lora, restore_lora, save_lora
from studio.core.model.placement import offload_layers, place
from studio.core.model.swap import BlockSwap
from studio.core.model.vae import decode_latents, encode_video
from studio.core.sample.denoise import denoise
from studio.core.train.step import collate, training_loss

CPU = torch.device("cpu")


def needs_cuda(test):
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")(test))


needs_fp8 = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9), reason="needs fp8 tensor cores"
)


@contextmanager
def swapped(dit, count):
    swap = BlockSwap(list(dit.blocks)[-count:], CPU, CPU)
    try:
        yield swap
    finally:
        swap.remove()


def step(bundle, *, checkpointing):
    """(loss, gradients) of a LoRA that is no longer zero."""
    dit = bundle.dit
    parameters = add_lora(dit, LoraSettings(rank=4), seed=0)
    generator = torch.Generator().manual_seed(1)
    try:
        for parameter in parameters:
            parameter.data.add_(0.02 * torch.randn(parameter.shape, generator=generator).to(parameter.device))
        if checkpointing:
            dit.enable_gradient_checkpointing()
        batch = collate(
            [torch.randn(16, 3, 8, 8, generator=generator)],
            [torch.randn(16, 1, 8, 8, generator=generator)],
            [torch.randn(6, 128, generator=generator)],
            text_length=8,
            device=bundle.device,
        )
        loss = training_loss(dit, batch, shift=3.0, generators=[generator])
        loss.backward()
        return loss.item(), [parameter.grad.cpu() for parameter in parameters]
    finally:
        dit.disable_gradient_checkpointing()
        remove_lora(dit, TRAINING)


def latents(bundle):
    """What two guided steps make of noise."""
    generator = torch.Generator().manual_seed(2)
    noise, held = torch.randn(1, 16, 3, 8, 8, generator=generator), torch.randn(1, 16, 1, 8, 8, generator=generator)
    text = bundle.prompt_encoder
    *_, last = denoise(
        bundle.dit,
        bundle.scheduler,
        noise=noise.to(bundle.device),
        held=held.to(bundle.device),
        prompt=text.encode(["a red circle moves right"]),
        negative=text.encode([""]),
        num_steps=2,
        guidance_scale=2.0,
    )
    return last.cpu()


def same(found, expected):
    return found[0] == expected[0] and all(map(torch.equal, found[1], expected[1]))


def distance(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.fixture(scope="module")
def resident(tiny_bundle):
    """(step, latents) with everything where it is used."""
    return step(tiny_bundle, checkpointing=False), latents(tiny_bundle)


@pytest.fixture(scope="module")
def int8_bundle():
    return load_bundle(ModelConfig(source="tiny", device="cpu", base_precision="int8-quanto"))


@pytest.mark.parametrize(("count", "checkpointing"), [(7, False), (4, True)])
def test_swapped_blocks_give_the_loss_gradients_and_latents_of_resident_ones(
    tiny_bundle, resident, count, checkpointing
):
    with swapped(tiny_bundle.dit, count):
        assert same(step(tiny_bundle, checkpointing=checkpointing), resident[0])
        assert torch.equal(latents(tiny_bundle), resident[1])
        assert same(step(tiny_bundle, checkpointing=checkpointing), resident[0])


def test_attention_that_is_kept_gives_the_same_gradients(tiny_bundle, resident):
    kept = []
    tiny_bundle.dit.keep_attention = True
    try:
        with pytest.MonkeyPatch.context() as patch:
            policy = attention._what_to_keep
            patch.setattr(attention, "_what_to_keep", lambda *a, **k: kept.append(policy(*a, **k)) or kept[-1])
            assert same(step(tiny_bundle, checkpointing=True), resident[0])
    finally:
        tiny_bundle.dit.keep_attention = False
    # Self-attention of the noise and of the start latent in each block; cross-attention is cheap.
    assert kept.count(CheckpointPolicy.MUST_SAVE) == 2 * len(tiny_bundle.dit.blocks)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_blocks_may_run_in_any_order(tiny_bundle, count):
    blocks = list(tiny_bundle.dit.blocks)[-count:]
    generator = torch.Generator().manual_seed(0)
    order = torch.randint(count, (40,), generator=generator).tolist()
    x = torch.randn(2, 5, 256, generator=generator)
    expected = [blocks[index].attn.qkv(x) for index in order]
    with swapped(tiny_bundle.dit, count) as swap:
        for index, wanted in zip(order, expected, strict=True):
            swap._before_forward(index)
            assert torch.equal(blocks[index].attn.qkv(x), wanted)


def test_the_state_is_right_while_blocks_are_swapped_and_after(tiny_bundle):
    dit = tiny_bundle.dit
    before = {name: tensor.clone() for name, tensor in dit.state_dict().items()}

    def is_as_before():
        return all(torch.equal(tensor, before[name]) for name, tensor in dit.state_dict().items())

    with swapped(dit, 5):
        assert is_as_before()
        latents(tiny_bundle)
        assert is_as_before()
        step(tiny_bundle, checkpointing=False)
        assert is_as_before()
    assert is_as_before()


def test_two_blocks_are_on_the_device_and_the_rest_is_not(tiny_bundle):
    with swapped(tiny_bundle.dit, 6) as swap:
        latents(tiny_bundle)
        at_slot = [
            block.attn.qkv.weight.untyped_storage().data_ptr() in {s.data_ptr() for s in swap._slots}
            for block in swap.blocks
        ]
        assert sum(at_slot) <= 2


def test_a_swap_that_is_taken_off_leaves_no_trace(tiny_bundle, resident):
    with swapped(tiny_bundle.dit, 4):
        latents(tiny_bundle)
    assert not any(block.is_swapped or block._forward_pre_hooks for block in tiny_bundle.dit.blocks)
    assert same(step(tiny_bundle, checkpointing=False), resident[0])


def test_a_lora_trains_and_samples_on_swapped_blocks(tiny_bundle, tmp_path):
    dit = tiny_bundle.dit

    def train():
        parameters = add_lora(dit, LoraSettings(rank=4), seed=0)
        generator = torch.Generator().manual_seed(3)
        restore_lora(dit, {n: 0.1 * torch.randn(t.shape, generator=generator) for n, t in lora_state(dit).items()})
        file = save_lora(dit, tmp_path / str(len(parameters)), LoraSettings(rank=4), {})
        remove_lora(dit, TRAINING)
        with lora_applied(dit, file):
            return latents(tiny_bundle)

    expected = train()
    with swapped(dit, 5):
        assert torch.equal(train(), expected)


def test_int8_is_near_the_full_precision_and_leaves_small_layers_alone(int8_bundle, resident):
    linears = {name: type(module).__name__ for name, module in int8_bundle.dit.named_modules()}
    assert linears["blocks.0.attn.qkv"] == linears["blocks.7.ffn.w2"] == "QLinear"
    assert linears["blocks.0.adaLN_modulation.1"] == linears["y_embedder.y_proj.0"] == "Linear"
    loss, gradients = step(int8_bundle, checkpointing=False)
    # An eight-bit weight is off by up to 1/254 of its row's largest.
    assert loss == pytest.approx(resident[0][0], rel=0.01)
    assert max(map(distance, gradients, resident[0][1])) < 0.05
    assert distance(latents(int8_bundle), resident[1]) < 0.02


def test_fp8_on_a_cpu_is_near_the_full_precision_and_says_that_it_is_slow(resident):
    bundle = load_bundle(ModelConfig(source="tiny", device="cpu", base_precision="fp8-torchao"))
    (notice,) = bundle.notices
    assert "slowly" in notice
    expected = step(bundle, checkpointing=False)
    assert expected[0] == pytest.approx(resident[0][0], rel=0.05)
    with swapped(bundle.dit, 5):
        assert same(step(bundle, checkpointing=True), expected)


def test_fp8_keeps_the_weight_that_it_multiplied_for_the_backward():
    linear = Fp8Linear(torch.nn.Linear(32, 16))
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (expected,) = torch.autograd.grad(linear(x).sum(), x)
    out = linear(x)
    linear.weight.data = torch.zeros_like(linear.weight)  # as an offload does after the call
    assert torch.equal(torch.autograd.grad(out.sum(), x)[0], expected)


def test_int8_weights_swap_as_others_do(int8_bundle):
    expected = step(int8_bundle, checkpointing=True), latents(int8_bundle)
    state = {name: tensor.clone() for name, tensor in int8_bundle.dit.state_dict().items()}
    with swapped(int8_bundle.dit, 5):
        assert same(step(int8_bundle, checkpointing=False), expected[0])
        assert torch.equal(latents(int8_bundle), expected[1])
        assert all(torch.equal(tensor, state[name]) for name, tensor in int8_bundle.dit.state_dict().items())


def test_offloaded_layers_give_the_same_and_every_one_of_them_is_called(resident):
    bundle = load_bundle(ModelConfig(source="tiny", device="cpu"))
    offload_layers(bundle.dit, CPU)
    called = set()
    hooked = {name: module for name, module in bundle.dit.named_modules() if hasattr(module, "_diffusers_hook")}
    for name, module in hooked.items():
        module.register_forward_hook(lambda *_, name=name: called.add(name))
    assert same(step(bundle, checkpointing=False), resident[0])
    assert torch.equal(latents(bundle), resident[1])
    # A weight that is read without a call of its layer would not be on the device.
    assert {name.replace(".base_layer", "") for name in called} == set(hooked) - {""}
    hooks = {name for name, tensor in bundle.dit.named_parameters() if "norm" not in name}
    assert {name.rpartition(".")[0] for name in hooks} == set(hooked)


def test_what_does_nothing_on_a_cpu_is_said(tiny_bundle):
    for fields, key in (({"blocks_to_swap": 3}, "musubi_blocks_to_swap"), ({"group_offload": True}, "group_offload")):
        swap, (notice,) = place(tiny_bundle.dit, ModelConfig(source="tiny", **fields), CPU)
        assert swap is None
        assert key in notice


def test_settings_that_exclude_one_another_are_refused():
    with pytest.raises(ConfigError, match=r"enable_group_offload and musubi_blocks_to_swap 4 "):
        ModelConfig(group_offload=True, blocks_to_swap=4)
    with pytest.raises(ConfigError, match=r"enable_group_offload and base_model_precision int8-quanto "):
        ModelConfig(group_offload=True, base_precision="int8-quanto")


def test_tiles_change_a_picture_little_and_a_latent_not_at_all(tiny_bundle):
    vae = tiny_bundle.vae
    ramp = torch.linspace(-1, 1, 96)
    video = torch.stack((ramp.expand(64, -1), ramp[:64, None].expand(-1, 96), ramp.expand(64, -1).flip(1)))

    def both():
        encoded = encode_video(vae, video[None, :, None], torch.Generator().manual_seed(0))
        return encoded, decode_latents(vae, encoded)

    whole, edges = both(), {name: getattr(vae, name) for name in vars(vae) if name.startswith("tile_")}
    vae.enable_tiling(64, 64, 48, 48)
    try:
        tiled = both()
    finally:
        vae.disable_tiling()
        vars(vae).update(edges)
    assert torch.equal(tiled[0], whole[0])
    # Of a range of 2: a seam is where two tiles that did not see each other are blended.
    assert 0 < (tiled[1] - whole[1]).abs().mean() < 0.05


def test_a_cuda_device_has_its_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    # Without one torch.cuda.get_per_process_memory_fraction raises.
    assert [str(resolve_device(name)) for name in ("auto", "cuda", "cuda:0", "cpu")] == [
        "cuda:1", "cuda:1", "cuda:0", "cpu",
    ]  # fmt: skip


def load(device="cuda", **fields):
    return load_bundle(ModelConfig(source="tiny", device=device, dtype="bf16", **fields))


def test_an_adapter_that_comes_and_goes_leaves_the_offload_as_it_was():
    bundle = load_bundle(ModelConfig(source="tiny", device="cpu"))
    expected = latents(bundle)
    offload_layers(bundle.dit, CPU)

    def hooked():
        return [name for name, module in bundle.dit.named_modules() if hasattr(module, "_diffusers_hook")]

    before = hooked()
    assert "blocks.0.attn.qkv" in before
    for _ in range(2):
        step(bundle, checkpointing=True)
        assert hooked() == before
    assert torch.equal(latents(bundle), expected)


@needs_cuda
@pytest.mark.parametrize(
    "precision",
    ["no_change", "int8-quanto", pytest.param("fp8-torchao", marks=needs_fp8)],
)
@pytest.mark.parametrize("lever", [{"blocks_to_swap": 3}, {"blocks_to_swap": 7}, {"group_offload": True}])
def test_on_a_gpu_the_levers_change_no_bit_in_training_and_sampling(lever, precision):
    if "group_offload" in lever and precision == "int8-quanto":
        pytest.skip("refused")
    plain, levered = load(base_precision=precision), load(base_precision=precision, **lever)
    assert not levered.notices
    for _ in range(2):
        assert torch.equal(latents(levered), latents(plain))
        assert same(step(levered, checkpointing=True), step(plain, checkpointing=True))
        assert same(step(levered, checkpointing=False), step(plain, checkpointing=True))


@needs_cuda
def test_on_a_gpu_a_swapped_model_takes_less_of_it():
    def taken(**fields):
        gc.collect()
        before = torch.cuda.memory_allocated()
        bundle = load(**fields)
        latents(bundle)
        return torch.cuda.memory_allocated() - before

    # The first run also takes what libraries keep for themselves.
    taken()
    whole = taken()
    assert taken(blocks_to_swap=7) < 0.7 * whole
    assert taken(group_offload=True) < 0.5 * whole


@needs_cuda
def test_on_a_gpu_the_text_encoder_visits_layer_by_layer():
    parked, resident = load().prompt_encoder, load().prompt_encoder
    found = parked.encode(["a red circle moves right", ""])
    assert parked.encoder.device.type == "cpu"
    assert found.embeds.is_cuda
    for layer in resident.encoder.encoder.block:
        layer._forward_pre_hooks.clear()
        layer._forward_hooks.clear()
    resident.encoder.encoder.block.to("cuda")
    assert torch.equal(found.embeds, resident.encode(["a red circle moves right", ""]).embeds)


@needs_cuda
def test_on_a_gpu_too_many_blocks_are_clamped_and_too_few_are_said():
    many, few = load(blocks_to_swap=99), load(blocks_to_swap=2)
    assert sum(block.is_swapped for block in many.dit.blocks) == 7
    assert "7 are swapped" in many.notices[0]
    assert "saves no memory" in few.notices[0]


@needs_cuda
def test_on_a_gpu_its_own_memory_is_no_place_to_swap_to():
    with pytest.raises(DeviceError, match="musubi_block_swap_device is cuda"):
        load(blocks_to_swap=3, block_swap_device="cuda")
