"""LoRA adapters through peft: which layers, how they are saved, and how one is put on for a while."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.utils.peft_utils import delete_adapter_layers, recurse_remove_peft_layers
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from studio.core.config import LoraSettings
from studio.core.errors import AdapterError
from studio.core.model.dit import LongCatVideoTransformer3DModel
from studio.core.model.lora_linear import LoraLinear

LORA_TARGETS = r"blocks\.\d+\.(attn\.(qkv|proj)|cross_attn\.(q_linear|kv_linear|proj))"
"""The attention projections of the blocks; `proj` of the patch embedder is a convolution and stays out."""

TRAINING = "trainee"
SAMPLING = "sampling"
"""Adapter names in peft: the one being trained (`training` is an attribute of every module), and the one that a
sample asked for."""

LORA_FILE = "pytorch_lora_weights.safetensors"
"""diffusers' name; keys `transformer.<module>.lora_A.weight`."""

MAX_TENSORS = 8192
"""More than any LoRA of this model has; a file with more is refused before it is read."""


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
    return {name: tensor.detach().float().cpu().contiguous() for name, tensor in state.items()}


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
    """(weights by `<module>.lora_A.weight`, shape) of a LoRA file, checked against the model.

    Raises:
        AdapterError: not safetensors, not a LoRA, or of another shape; the first keys are named with both shapes.
    """
    state, metadata = _read_file(file)
    problems = _misfits(dit, state)
    if problems or not state:
        detail = "; ".join(problems[:3]) or "it holds no lora_A and lora_B tensors"
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise AdapterError(
            f"{file.name} is not a LoRA of this model: {detail}{more}.",
            "Choose a LoRA that was trained on this checkpoint.",
        )
    bad = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise AdapterError(f"{file.name} holds NaN or infinity in {len(bad)} tensors.", "Train it again.")
    rank = _rank(state)
    try:
        config = json.loads(metadata.get(LORA_ADAPTER_METADATA_KEY, "{}"))
        alpha = float(config.get("transformer.lora_alpha", rank))
    except (ValueError, TypeError, AttributeError) as error:
        raise AdapterError(
            f"{file.name} says of itself what cannot be read ({LORA_ADAPTER_METADATA_KEY}).", "Save it again."
        ) from error
    return state, LoraSettings(rank=rank, alpha=alpha)


@contextmanager
def lora_applied(dit: LongCatVideoTransformer3DModel, file: Path | None, strength: float = 1.0) -> Iterator[None]:
    """Inside, the model runs with the LoRA of `file` at `strength`, or bare when `file` is None.

    An adapter in training is set aside and put back. The base weights are never touched. Raises AdapterError.
    """
    read = None if file is None else read_lora(dit, file)
    try:
        if read is not None:
            _put_on(dit, *read)
            dit.set_adapters(SAMPLING, strength)
        elif adapter_names(dit):
            dit.disable_lora()
        yield
    finally:
        if TRAINING in adapter_names(dit):
            dit.enable_lora()
            dit.set_adapter(TRAINING)
        remove_lora(dit, SAMPLING)


def _put_on(dit: LongCatVideoTransformer3DModel, state: Mapping[str, torch.Tensor], settings: LoraSettings) -> None:
    """Adds the adapter `sampling` to just the layers that `state` has weights for."""
    layers = sorted({name.rpartition(".lora_")[0] for name in state})
    with warnings.catch_warnings():
        # A second adapter beside the one in training is what is wanted here.
        warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")
        dit.add_adapter(_peft_config(settings, "|".join(re.escape(layer) for layer in layers)), SAMPLING)
    for name, parameter in dit.named_parameters():
        if f".{SAMPLING}." in name:
            parameter.data = state[name.replace(f".{SAMPLING}.", ".")].to(dit.device, torch.float32)


def _peft_config(settings: LoraSettings, layers: str = LORA_TARGETS) -> LoraConfig:
    """`layers` is a regular expression that matches whole module names."""
    alpha = settings.resolved_alpha
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=cast(int, int(alpha) if alpha.is_integer() else alpha),
        lora_dropout=settings.dropout,
        target_modules=layers,
    )
    config._register_custom_module({nn.Linear: LoraLinear})
    return config


def _read_file(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors without the `transformer.` (or peft's `base_model.model.`) prefix, and the metadata."""
    try:
        with safe_open(file, framework="pt") as tensors:
            names = list(tensors.keys())
            if len(names) > MAX_TENSORS:
                raise AdapterError(f"{file.name} holds {len(names)} tensors: no LoRA.", "Choose a LoRA file.")
            state = {_plain_name(name): tensors.get_tensor(name).float() for name in names}
            return state, tensors.metadata() or {}
    except FileNotFoundError as error:
        raise AdapterError(f"There is no LoRA file {file}.", "Check the path.") from error
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"{file.name} is not a safetensors file, or it is cut off.",
            "Choose a .safetensors LoRA; nothing else is opened, because other formats can run code.",
        ) from error


def _plain_name(name: str) -> str:
    for prefix in ("transformer.", "base_model.model.", "diffusion_model."):
        name = name.removeprefix(prefix)
    return name


def _rank(state: Mapping[str, torch.Tensor]) -> int:
    return next((t.shape[0] for n, t in state.items() if n.endswith(".lora_A.weight") and t.dim() == 2), 0)


def _misfits(dit: LongCatVideoTransformer3DModel, state: Mapping[str, torch.Tensor]) -> list[str]:
    """One sentence for every tensor of `state` that has no place in the model, another shape, or no partner."""
    layers = {
        name.replace(".base_layer", ""): module
        for name, module in dit.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
    }
    problems = []
    rank = _rank(state)
    if state and rank < 1:
        return ["it holds no lora_A tensor of rank 1 or more"]
    for name, tensor in state.items():
        module, _, part = name.rpartition(".lora_")
        layer = layers.get(module)
        if layer is None or part not in ("A.weight", "B.weight"):
            problems.append(f"{name} has no place in the model")
            continue
        shape = (rank, layer.in_features) if part == "A.weight" else (layer.out_features, rank)
        if tuple(tensor.shape) != shape:
            problems.append(f"{name} is {list(tensor.shape)}, expected {list(shape)}")
        partner = f"{module}.lora_{'B' if part == 'A.weight' else 'A'}.weight"
        if partner not in state:
            problems.append(f"{partner} is missing")
    return problems
