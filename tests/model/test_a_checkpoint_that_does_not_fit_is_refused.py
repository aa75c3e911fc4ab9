import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from studio.core.assets import asset_path
from studio.core.config import ModelConfig
from studio.core.errors import CheckpointError, DeviceError
from studio.core.model.load import SampleDefaults, load_bundle, read_defaults, resolve_folder


@pytest.fixture
def checkpoint(tmp_path):
    return shutil.copytree(asset_path("tiny"), tmp_path / "checkpoint")


def load(folder):
    return load_bundle(ModelConfig(source=str(folder), device="cpu"))


def test_the_tiny_checkpoint_is_sharded_small_and_loads_without_a_word_missing(tiny_bundle):
    files = [f for f in asset_path("tiny").rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 32e6
    assert max(f.stat().st_size for f in files) <= 16e6
    assert len(list((asset_path("tiny") / "dit").glob("*.safetensors"))) > 1
    shared, embedded = (
        tiny_bundle.prompt_encoder.encoder.shared,
        tiny_bundle.prompt_encoder.encoder.encoder.embed_tokens,
    )
    assert torch.equal(shared.weight, embedded.weight)
    assert shared.weight.abs().sum() > 0
    assert tiny_bundle.grid.bucket_alignment == 64


def test_every_missing_part_is_named(checkpoint):
    shutil.rmtree(checkpoint / "vae")
    (checkpoint / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"lacks vae/config\.json, scheduler/scheduler_config\.json") as caught:
        load(checkpoint)
    assert "copy what is missing" in caught.value.remedy


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("blocks.7.ffn.w2.weight"), "blocks.7.ffn.w2.weight is missing"),
        (lambda t: t.update({"blocks.9.extra": torch.zeros(2)}), "blocks.9.extra is not part of the model"),
        (
            lambda t: t.update({"blocks.7.ffn.w2.weight": torch.zeros(3, 4)}),
            r"w2.weight is \[3, 4\], expected \[256, 768\]",
        ),
    ],
)
def test_a_missing_extra_or_misshapen_tensor_is_named(checkpoint, change, said):
    index = json.loads((checkpoint / "dit/diffusion_pytorch_model.safetensors.index.json").read_text())
    file = checkpoint / "dit" / index["weight_map"]["blocks.7.ffn.w2.weight"]
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=said):
        load(checkpoint)


def test_a_cut_off_shard_is_named(checkpoint):
    file = sorted((checkpoint / "dit").glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=file.name):
        load(checkpoint)


@pytest.mark.parametrize(
    ("part", "file"),
    [("dit", "config.json"), ("tokenizer", "tokenizer_config.json"), ("scheduler", "scheduler_config.json")],
)
def test_a_part_that_is_not_json_is_named(checkpoint, part, file):
    (checkpoint / part / file).write_text("{ broken")
    with pytest.raises(CheckpointError, match=f"part {part} cannot be loaded"):
        load(checkpoint)


def test_text_encoder_weights_that_are_missing_or_misshapen_are_named(checkpoint):
    file = checkpoint / "text_encoder/model.safetensors"
    tensors = load_file(file)
    save_file({n: t for n, t in tensors.items() if n != "shared.weight"}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="text_encoder.*shared.weight"):
        load(checkpoint)
    save_file({**tensors, "encoder.final_layer_norm.weight": torch.ones(3)}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="text_encoder"):
        load(checkpoint)
    file.unlink()
    with pytest.raises(CheckpointError, match="text_encoder has no safetensors file"):
        load(checkpoint)


def test_a_text_encoder_of_another_width_is_refused_with_both_numbers(checkpoint):
    config = json.loads((checkpoint / "text_encoder/config.json").read_text())
    (checkpoint / "text_encoder/config.json").write_text(json.dumps({**config, "d_model": 96}))
    with pytest.raises(CheckpointError, match="96 wide, but the transformer's caption_channels is 128"):
        load(checkpoint)


def test_a_qwen_text_encoder_works_as_well(checkpoint):
    shutil.rmtree(checkpoint / "text_encoder")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint / "tokenizer")
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
            "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
        },
        vision_config={
            "depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 128,
            "fullatt_block_indexes": [0],
        },
    )  # fmt: skip
    torch.manual_seed(0)
    encoder = Qwen2_5_VLForConditionalGeneration(config)
    encoder.save_pretrained(checkpoint / "text_encoder")
    condition = load(checkpoint).prompt_encoder.encode(["a red circle hops", ""])
    assert condition.embeds.shape == (2, 1, 32, 128)
    assert condition.mask.sum(1).tolist() == [5, 1]
    assert not torch.allclose(condition.embeds[0], condition.embeds[1])
    tokens = tokenizer("a red circle hops", padding="max_length", return_tensors="pt")
    alone = encoder.model.language_model(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
    torch.testing.assert_close(condition.embeds[0, 0, :5], alone[0, :5], rtol=1e-4, atol=1e-5)


def test_neither_a_folder_nor_a_hub_id_is_one_sentence():
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        resolve_folder("no such/folder/any where")


def test_a_device_that_is_not_here_is_named():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(DeviceError, match="cuda"):
        load_bundle(ModelConfig(source="tiny", device="cuda"))


def test_the_published_checkpoint_has_the_published_defaults(tmp_path):
    assert read_defaults(tmp_path) == SampleDefaults(
        height=480, width=832, num_frames=93, num_inference_steps=40, guidance_scale=4.0, fps=15.0
    )


@pytest.mark.parametrize(
    "change",
    [{"chunk_3d_shape_k": [4, 4, 8]}, {"cdf_threshold": 0.9}, {"chunk_3d_shape_q": 4}, {"sparsity": "much"}],
    ids=str,
)
def test_sparse_parameters_that_we_cannot_follow_leave_dense_attention_and_the_reason(checkpoint, change):
    file = checkpoint / "dit/config.json"
    config = json.loads(file.read_text())
    config["bsa_params"] |= change
    file.write_text(json.dumps(config))
    key = next(iter(change))
    with pytest.raises(CheckpointError, match=key) as caught:
        load_bundle(ModelConfig(source=str(checkpoint), device="cpu", attention="sparse"))
    assert caught.value.remedy == "Use auto or dense attention."
    used = load(checkpoint).attention_of(93, 480, 832)
    assert used.kind == "dense"
    assert key in used.reason
