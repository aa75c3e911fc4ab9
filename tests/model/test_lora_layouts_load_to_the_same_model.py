import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from studio.core.errors import AdapterError
from studio.core.model.lora import LoraFile, adapter_names, lora_applied, loras_applied
from studio.core.model.lora_formats import (
    HYPHEN,
    KOHYA,
    PUBLISHED,
    num_parts,
    to_comfyui,
    to_diffusers,
    to_peft,
    to_plain,
    to_published,
)

LAYERS = {
    "blocks.0.attn.qkv": (768, 256),
    "blocks.0.attn.proj": (256, 256),
    "blocks.1.cross_attn.q_linear": (256, 256),
    "blocks.1.cross_attn.kv_linear": (512, 256),
    "blocks.7.ffn.w1": (768, 256),
    "blocks.2.adaLN_modulation.1": (1536, 128),
    "final_layer.adaLN_modulation.1": (512, 128),
    "final_layer.linear": (64, 256),
}
"""Of the tiny checkpoint: (outputs, inputs)."""
RANK = 4


def crafted(seed=0, layers=LAYERS):
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for layer, (rows, columns) in layers.items():
        state[f"{layer}.lora_A.weight"] = torch.randn(RANK, columns, generator=generator) / 16
        state[f"{layer}.lora_B.weight"] = torch.randn(rows, RANK, generator=generator)
    return state


def outputs(dit, *loras):
    generator = torch.Generator().manual_seed(1)
    latents, text = torch.randn(1, 16, 2, 4, 4, generator=generator), torch.randn(1, 1, 3, 128, generator=generator)
    with loras_applied(dit, loras), torch.no_grad():
        return dit(latents, torch.tensor([500.0]), text)


def halved(state):
    """A plain LoRA whose scale 1/2 goes into its layout's own alpha."""
    return {name: tensor * 2 if name.endswith("B.weight") else tensor for name, tensor in state.items()}


def kohya(state):
    out = {}
    for name, tensor in to_comfyui(state).items():
        module, dot, part = name.removeprefix("diffusion_model.").partition(".lora_" if ".lora_" in name else ".alpha")
        out[f"{KOHYA}{module.replace('.', '_')}{dot}{part}"] = tensor
    return out


def write(folder, layout):
    """The crafted LoRA in a layout, with scale 1/2 said in its own way."""
    state = crafted()
    half = halved(state)
    file = folder / f"{layout}.safetensors"
    if layout == "plain":
        save_file(state, file)
    elif layout == "diffusers":
        save_file(to_diffusers(half), file, metadata={
            "lora_adapter_metadata": json.dumps({"transformer.r": RANK, "transformer.lora_alpha": RANK / 2}),
        })  # fmt: skip
    elif layout == "peft":
        file = folder / "adapter_model.safetensors"
        save_file(to_peft(half), file)
        (folder / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": RANK / 2}))
    elif layout == "published":
        tensors = to_published(half)
        save_file({n: t / 2 if n.endswith("alpha_scale") else t for n, t in tensors.items()}, file)
    else:
        tensors = to_comfyui(half) if layout == "comfyui" else kohya(half)
        save_file({n: t / 2 if n.endswith(".alpha") else t for n, t in tensors.items()}, file)
    return file


@pytest.mark.parametrize("layout", ["diffusers", "peft", "comfyui", "kohya", "published"])
def test_every_layout_gives_the_same_output(tiny_bundle, tmp_path, layout):
    dit = tiny_bundle.dit
    plain = outputs(dit, LoraFile(path=write(tmp_path, "plain")))
    found = outputs(dit, LoraFile(path=write(tmp_path, layout)))
    assert (plain - outputs(dit)).norm() / plain.norm() > 0.01
    assert (found - plain).norm() / plain.norm() < 1e-6


@pytest.mark.parametrize("layout", [to_diffusers, to_peft, to_comfyui, to_published])
def test_what_is_written_reads_back_bit_for_bit(layout):
    state = crafted()
    plain, scales = to_plain(layout(state), LAYERS)
    assert plain.keys() == state.keys()
    assert all(torch.equal(plain[name], tensor) for name, tensor in state.items())
    assert set(scales.values()) == {1.0}


def test_parts_of_a_fused_linear_have_their_own_lora_in_the_published_layout(tiny_bundle, tmp_path):
    """Delta W = alpha_scale * blockdiag(up_i) * down, computed here from the tensors of the file."""
    generator = torch.Generator().manual_seed(0)
    stem, down = f"{PUBLISHED}blocks{HYPHEN}0{HYPHEN}attn{HYPHEN}qkv", torch.randn(3 * RANK, 256, generator=generator)
    ups = [torch.randn(256, RANK, generator=generator) / 16 for _ in range(3)]
    file = tmp_path / "lora.safetensors"
    save_file(
        {
            f"{stem}.lora_down.weight": down,
            f"{stem}.alpha_scale": torch.tensor(0.5),
            **{f"{stem}.lora_up.blocks.{i}.weight": up for i, up in enumerate(ups)},
        },
        file,
    )
    layer = tiny_bundle.dit.blocks[0].attn.qkv
    x = torch.randn(5, 256, generator=generator)
    expected = layer(x) + 0.5 * torch.cat([x @ down[i * RANK : (i + 1) * RANK].t() @ ups[i].t() for i in range(3)], 1)
    with lora_applied(tiny_bundle.dit, file), torch.no_grad():
        torch.testing.assert_close(tiny_bundle.dit.blocks[0].attn.qkv(x), expected, rtol=1e-4, atol=1e-4)


def test_the_published_loras_have_as_many_tensors_as_the_page_says():
    """1,152 of `cfg_step_lora`, 1,543 of `refinement_lora`."""
    attention = ("attn.qkv", "attn.proj", "cross_attn.q_linear", "cross_attn.kv_linear", "ffn.w1", "ffn.w2", "ffn.w3")
    few = [f"blocks.{i}.{layer}" for i in range(48) for layer in attention]
    many = few + [f"blocks.{i}.adaLN_modulation.1" for i in range(48)]
    many += ["final_layer.adaLN_modulation.1", "final_layer.linear"]
    for modules, count in ((few, 1152), (many, 1543)):
        state = {f"{m}.lora_{part}.weight": torch.zeros(12, 1) if part == "B" else torch.zeros(1, 1)
                 for m in modules for part in "AB"}  # fmt: skip
        assert len(to_published(state)) == count
    assert [num_parts(module) for module in (few[0], few[3], many[-3], many[-2], many[-1])] == [3, 2, 6, 2, 1]


def test_several_loras_add_up_and_the_base_is_restored_bit_for_bit(tiny_bundle, tmp_path):
    dit = tiny_bundle.dit
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    save_file(to_diffusers(crafted(0)), one)
    layers = {layer: shape for layer, shape in LAYERS.items() if "attn" in layer}
    save_file(to_published(crafted(1, layers)), other)
    weights = {name: tensor.clone() for name, tensor in dit.state_dict().items()}
    bare = outputs(dit)
    both = outputs(dit, LoraFile(path=one, strength=0.5), LoraFile(path=other, strength=-0.25))
    mixed = {}
    for strength, state in ((0.5, crafted(0)), (-0.25, crafted(1, layers))):
        for layer in {name.rpartition(".lora_")[0] for name in state}:
            a, b = state[f"{layer}.lora_A.weight"], strength * state[f"{layer}.lora_B.weight"]
            known = mixed.get(layer)
            mixed[layer] = (a, b) if known is None else (torch.cat((known[0], a)), torch.cat((known[1], b), 1))
    joined = {f"{layer}.lora_{part}.weight": pair[i] for layer, pair in mixed.items() for i, part in enumerate("AB")}
    save_file({name: tensor.contiguous() for name, tensor in joined.items()}, tmp_path / "joined.safetensors")
    as_one = outputs(dit, LoraFile(path=tmp_path / "joined.safetensors"))
    assert (both - as_one).norm() / as_one.norm() < 1e-6
    assert (both - bare).norm() / bare.norm() > 0.01
    assert adapter_names(dit) == ()
    after = dit.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in weights.items())
    assert torch.equal(outputs(dit), bare)


@pytest.mark.parametrize("layout", [to_diffusers, to_peft, to_comfyui, kohya, to_published])
def test_a_lora_of_a_wider_model_is_refused_in_every_layout_with_its_first_three_mismatches(
    tiny_bundle, tmp_path, layout
):
    wider = {layer: (rows, 2 * columns) for layer, (rows, columns) in LAYERS.items()}
    file = tmp_path / "wider.safetensors"
    save_file(layout(crafted(layers=wider)), file)
    with pytest.raises(AdapterError) as caught, lora_applied(tiny_bundle.dit, file):
        pass
    message = caught.value.message
    assert message.startswith("wider.safetensors is not a LoRA of this model: ")
    assert message.count(f"lora_A.weight is [{RANK}, ") == message.count(f", expected [{RANK}, ") == 3
    assert message.endswith(f", and {len(LAYERS) - 3} more.")
    assert adapter_names(tiny_bundle.dit) == ()


def test_a_published_lora_that_lacks_parts_is_refused_with_the_first_three(tiny_bundle, tmp_path):
    tensors = to_published(crafted())
    gone = [f"{PUBLISHED}blocks{HYPHEN}0{HYPHEN}attn{HYPHEN}qkv.lora_up.blocks.1.weight"]
    gone += [name for name in tensors if name.endswith("alpha_scale")][1:4]
    file = tmp_path / "lora.safetensors"
    save_file({name: tensor for name, tensor in tensors.items() if name not in gone}, file)
    with pytest.raises(AdapterError) as caught, lora_applied(tiny_bundle.dit, file):
        pass
    assert "has gaps" in caught.value.message
    assert caught.value.message.count("alpha_scale is missing") == 2
    assert "and 1 more" in caught.value.message
    assert load_file(file)
