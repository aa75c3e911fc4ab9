import pytest
import torch
from safetensors.torch import save_file

from studio.core.config import LoraSettings
from studio.core.errors import AdapterError
from studio.core.model.lora import TRAINING, adapter_names, add_lora, lora_applied, remove_lora

LAYER = "transformer.blocks.0.attn.qkv"
PAIR = {f"{LAYER}.lora_A.weight": torch.randn(4, 256), f"{LAYER}.lora_B.weight": torch.randn(768, 4)}


def base_weights(dit):
    return {n: t.clone() for n, t in dit.state_dict().items() if ".lora_" not in n}


@pytest.mark.parametrize(
    ("tensors", "metadata", "said"),
    [
        ({}, None, "no lora_A and lora_B"),
        ({f"{LAYER}.lora_A.weight": torch.randn(4, 64)}, None, r"lora_A.weight is \[4, 64\], expected \[4, 256\]"),
        ({f"{LAYER}.lora_A.weight": torch.randn(4, 256)}, None, "lora_B.weight is missing"),
        ({"transformer.blocks.99.attn.qkv.lora_A.weight": torch.randn(4, 256)}, None, "no place in the model"),
        ({f"{LAYER}.lora_A.weight": torch.zeros(0, 256)}, None, "rank 1 or more"),
        ({**PAIR, f"{LAYER}.lora_B.weight": torch.full((768, 4), torch.nan)}, None, "NaN"),
        (PAIR, {"lora_adapter_metadata": "not json"}, "cannot be read"),
    ],
)
@pytest.mark.parametrize("is_training", [False, True])
def test_the_reason_is_named_and_the_model_is_as_before(tiny_bundle, tmp_path, tensors, metadata, said, is_training):
    dit = tiny_bundle.dit
    save_file(tensors, tmp_path / "wrong.safetensors", metadata=metadata)
    parameters = add_lora(dit, LoraSettings(rank=2), seed=0) if is_training else []
    try:
        before = base_weights(dit)
        with pytest.raises(AdapterError, match=said), lora_applied(dit, tmp_path / "wrong.safetensors"):
            pass
        assert adapter_names(dit) == ((TRAINING,) if is_training else ())
        assert all(p.requires_grad for p in parameters)
        after = base_weights(dit)
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    finally:
        remove_lora(dit, TRAINING)


def test_a_text_file_is_not_opened_as_a_lora(tiny_bundle, tmp_path):
    (tmp_path / "text.safetensors").write_text("This is a text file, not a LoRA.")
    with (
        pytest.raises(AdapterError, match="not a safetensors file"),
        lora_applied(tiny_bundle.dit, tmp_path / "text.safetensors"),
    ):
        pass
    with pytest.raises(AdapterError, match="There is no LoRA file"), lora_applied(tiny_bundle.dit, tmp_path / "none"):
        pass


def test_a_lora_of_a_few_layers_works_at_any_strength_beside_one_in_training(tiny_bundle, tmp_path):
    dit = tiny_bundle.dit
    save_file(PAIR, tmp_path / "small.safetensors")
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 16, 2, 4, 4, generator=generator)
    text = torch.randn(1, 1, 3, 128, generator=generator)

    def output():
        with torch.no_grad():
            return dit(latents, torch.tensor([500.0]), text)

    bare = output()
    parameters = add_lora(dit, LoraSettings(rank=2), seed=0)
    try:
        with torch.no_grad():
            for parameter in parameters:
                parameter.add_(0.1)
        trained = output()
        seen = {}
        for strength in (0.0, 0.5, 1.0):
            with lora_applied(dit, tmp_path / "small.safetensors", strength):
                seen[strength] = output()
        with lora_applied(dit, None):
            torch.testing.assert_close(output(), bare)
        torch.testing.assert_close(seen[0.0], bare)
        assert (seen[0.5] - bare).abs().max() > 1e-4
        assert (seen[1.0] - seen[0.5]).abs().max() > 1e-4
        torch.testing.assert_close(output(), trained)
        assert all(p.requires_grad for p in parameters)
    finally:
        remove_lora(dit, TRAINING)
    torch.testing.assert_close(output(), bare)
