"""The saved LoRA under peft and diffusers, without this studio."""

import pytest
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file

from studio.core.config import LoraSettings, ModelConfig
from studio.core.model.load import load_bundle
from studio.core.model.lora import TRAINING, add_lora, remove_lora, save_lora


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(5)
    return {
        "hidden_states": torch.randn(1, 16, 3, 8, 8, generator=generator),
        "timestep": torch.tensor([[0.0, 400.0, 400.0]]),
        "encoder_hidden_states": torch.randn(1, 1, 4, 128, generator=generator),
        "encoder_attention_mask": torch.ones(1, 4, dtype=torch.int64),
        "num_cond_latents": 1,
    }


@pytest.fixture
def trained(tiny_bundle, inputs, tmp_path):
    """(folder of a saved LoRA that matters, output of the model that it was trained on)."""
    settings = LoraSettings(rank=4, alpha=6.0)
    parameters = add_lora(tiny_bundle.dit, settings, seed=0)
    try:
        generator = torch.Generator().manual_seed(6)
        with torch.no_grad():
            for parameter in parameters:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
            output = tiny_bundle.dit(**inputs)
        save_lora(tiny_bundle.dit, tmp_path, settings, {})
    finally:
        remove_lora(tiny_bundle.dit, TRAINING)
    with torch.no_grad():
        assert (tiny_bundle.dit(**inputs) - output).abs().max() > 1e-3, "the LoRA must matter, or this proves nothing"
    return tmp_path, output


@pytest.fixture
def fresh_dit():
    return load_bundle(ModelConfig(source="tiny", device="cpu")).dit


def test_diffusers_loads_it_from_the_file(trained, fresh_dit, inputs):
    folder, expected = trained
    fresh_dit.load_lora_adapter(folder / "pytorch_lora_weights.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(fresh_dit(**inputs), expected)


def test_peft_loads_it_from_the_folder(trained, fresh_dit, inputs):
    folder, expected = trained
    model = get_peft_model(fresh_dit, LoraConfig.from_pretrained(folder))
    report = set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
    assert not report.unexpected_keys
    assert not [key for key in report.missing_keys if "lora" in key]
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs), expected)
