"""LoRA adapters through peft: which layers, how they are saved, and how one is put on for a while."""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.utils.peft_utils import delete_adapter_layers, recurse_remove_peft_layers
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

from studio.core.config import LoraSettings
from studio.core.errors import AdapterError
from studio.core.model.dit import LongCatVideoTransformer3DModel
from studio.core.model.lora_file import LoraWeights, load_lora, read_alphas, read_safetensors
from studio.core.model.lora_formats import to_plain
from studio.core.model.lora_linear import LoraLinear

LORA_TARGETS = r"blocks\.\d+\.(attn\.(qkv|proj)|cross_attn\.(q_linear|kv_linear|proj))"
"""The attention projections of the blocks; `proj` of the patch embedder is a convolution and stays out."""

TRAINING = "trainee"
SAMPLING = "sampling"
"""Adapter names in peft: the one being trained (`training` is an attribute of every module), and, with a number, those
that a sample asked for."""

LORA_FILE = "pytorch_lora_weights.safetensors"
"""diffusers' name; keys `transformer.<module>.lora_A.weight`."""


def add_lora(dit: LongCatVideoTransformer3DModel, settings: LoraSettings, *, seed: int) -> list[nn.Parameter]:
    """Adds a fresh adapter named `trainee` and returns its parameters, fp32, the only ones with gradients.

    A starts from peft's default with `seed`, B from zero: the model's output does not change.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dit.add_adapter(_peft_config(settings), TRAINING)
    parameters = [p for name, p in dit.named_parameters() if f".{TRAINING}." in name]
    for parameter in parameters:
        # A swapped or offloaded layer may lie elsewhere at this moment, and its adapter with it.
        parameter.data = parameter.data.to(dit.device, torch.float32)
        parameter.requires_grad_(True)
    return parameters


def remove_lora(dit: LongCatVideoTransformer3DModel, name: str) -> None:
    """Takes the adapter off, if it is on.

    As diffusers does it, without its second step: that would set group offload up anew, over everything.
    """
    if name not in adapter_names(dit):
        return
    delete_adapter_layers(dit, name)
    if not adapter_names(dit):
        recurse_remove_peft_layers(dit)


def adapter_names(dit: LongCatVideoTransformer3DModel) -> tuple[str, ...]:
    """Adapters on the model, active or not."""
    return tuple(getattr(dit, "peft_config", None) or ())


def lora_state(dit: LongCatVideoTransformer3DModel) -> dict[str, torch.Tensor]:
    """fp32 CPU copies of the `trainee` adapter, keys `<module>.lora_A.weight`."""
    state = get_peft_model_state_dict(dit, adapter_name=TRAINING)
    return {name: tensor.detach().to("cpu", torch.float32, copy=True).contiguous() for name, tensor in state.items()}


def restore_lora(dit: LongCatVideoTransformer3DModel, state: Mapping[str, torch.Tensor]) -> None:
    """Copies what `lora_state` gave back into the `trainee` adapter."""
    own = get_peft_model_state_dict(dit, adapter_name=TRAINING)
    for name, tensor in own.items():
        tensor.data.copy_(state[name])


def save_lora(
    dit: LongCatVideoTransformer3DModel, folder: Path, settings: LoraSettings, notes: Mapping[str, str]
) -> Path:
    """Writes the `trainee` adapter for diffusers (`pytorch_lora_weights.safetensors`) and for peft
    (`adapter_model.safetensors`, `adapter_config.json`); returns the first. `notes` go into its metadata.

    The scale alpha / rank is multiplied into B, and the files say alpha = rank: diffusers does not always read alpha.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scale = settings.resolved_alpha / settings.rank
    state = {n: t * scale if n.endswith("lora_B.weight") else t for n, t in lora_state(dit).items()}
    config = _peft_config(replace(settings, alpha=None)).to_dict()
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    header = json.dumps({f"transformer.{k}": v for k, v in plain.items()}, default=str, sort_keys=True)
    file = folder / LORA_FILE
    save_file(
        {f"transformer.{name}": tensor for name, tensor in state.items()},
        file,
        metadata={"format": "pt", LORA_ADAPTER_METADATA_KEY: header, **notes},
    )
    save_file(
        {f"base_model.model.{name}": tensor for name, tensor in state.items()},
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text(json.dumps(plain, default=str, indent=2) + "\n")
    return file


def read_lora(dit: LongCatVideoTransformer3DModel, file: Path) -> tuple[dict[str, torch.Tensor], LoraSettings]:
    """(weights by `<module>.lora_A.weight`, shape) of a LoRA file that one adapter can go on from.

    Raises:
        AdapterError: as `load_lora`, and where ranks or scales differ by module.
    """
    weights = load_lora(dit, file)
    shapes = {(rank, weights.scales[module]) for module, rank in weights.ranks.items()}
    if len(shapes) > 1:
        raise AdapterError(
            f"{file.name} has {len(shapes)} different ranks and scales; training goes on from one of each.",
            "Sample with it, and train another LoRA.",
        )
    rank, scale = shapes.pop()
    return dict(weights.tensors), LoraSettings(rank=rank, alpha=scale * rank)


def read_lora_shape(file: Path) -> LoraSettings:
    """Rank and alpha of a LoRA file, before there is a model to check it against. Raises AdapterError."""
    tensors, metadata = read_safetensors(file)
    state, scales = to_plain(tensors, (), read_alphas(file, metadata))
    ranks = [len(state[f"{module}.lora_A.weight"]) for module in scales]
    if not ranks:
        raise AdapterError(f"{file.name} is not a LoRA: it holds no lora_A tensor.", "Choose a .safetensors LoRA.")
    return LoraSettings(rank=ranks[0], alpha=next(iter(scales.values())) * ranks[0])


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraFile:
    """A LoRA and how strongly it is put on."""

    path: Path
    strength: float = 1.0
    """Factor on what it changes; 1 is as trained, below 0 is the opposite."""


@contextmanager
def loras_applied(dit: LongCatVideoTransformer3DModel, loras: Sequence[LoraFile]) -> Iterator[None]:
    """Inside, the model runs with all of `loras` at once, or bare when there are none.

    They are put beside the base weights, which are never touched, and taken off again. An adapter in training is set
    aside and put back.

    Raises:
        AdapterError: as `load_lora`; nothing is put on then.
    """
    loaded = [load_lora(dit, lora.path) for lora in loras]
    names = [f"{SAMPLING}_{number}" for number in range(len(loaded))]
    try:
        for name, weights in zip(names, loaded, strict=True):
            _put_on(dit, name, weights)
        if names:
            dit.set_adapters(names, [lora.strength for lora in loras])
        elif adapter_names(dit):
            dit.disable_lora()
        yield
    finally:
        if TRAINING in adapter_names(dit):
            dit.enable_lora()
            dit.set_adapter(TRAINING)
        for name in names:
            remove_lora(dit, name)


def lora_applied(
    dit: LongCatVideoTransformer3DModel, file: Path | None, strength: float = 1.0
) -> AbstractContextManager[None]:
    """`loras_applied` with one LoRA, or with none."""
    return loras_applied(dit, () if file is None else (LoraFile(path=file, strength=strength),))


def _put_on(dit: LongCatVideoTransformer3DModel, adapter: str, weights: LoraWeights) -> None:
    """Adds an adapter to just the layers that there are weights for."""
    ranks, scales = weights.ranks, weights.scales
    rank = Counter(ranks.values()).most_common(1)[0][0]
    config = _peft_config(LoraSettings(rank=rank), "|".join(re.escape(layer) for layer in sorted(ranks)))
    config.rank_pattern = {re.escape(layer): own for layer, own in ranks.items() if own != rank}
    config.alpha_pattern = {
        re.escape(layer): scales[layer] * own for layer, own in ranks.items() if scales[layer] * own != rank
    }
    with warnings.catch_warnings():
        # A second adapter beside the one in training is what is wanted here.
        warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")
        dit.add_adapter(config, adapter)
    for name, parameter in dit.named_parameters():
        if f".{adapter}." in name:
            parameter.data = weights.tensors[name.replace(f".{adapter}.", ".")].to(dit.device, torch.float32)


def _peft_config(settings: LoraSettings, layers: str = LORA_TARGETS) -> LoraConfig:
    """`layers` is a regular expression that matches whole module names."""
    alpha = settings.resolved_alpha
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=cast(int, int(alpha) if alpha.is_integer() else alpha),
        lora_dropout=settings.dropout,
        target_modules=layers,
        init_lora_weights=True if settings.start == "default" else settings.start,
    )
    config._register_custom_module({nn.Linear: LoraLinear})
    return config
