"""The LoRA of a run in the layouts of other programs, each read back and compared before it is handed out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from studio.core.errors import AdapterError
from studio.core.model.dit import LongCatVideoTransformer3DModel
from studio.core.model.load import resolve_folder
from studio.core.model.lora_file import PEFT_CONFIG, LoraWeights, load_lora
from studio.core.model.lora_formats import State, to_comfyui, to_diffusers, to_peft, to_published, with_scales
from studio.core.runlog import RunFolder
from studio.core.train.disk import disk_full, is_full, make_empty_folder, not_written, write_synced

TOLERANCE = 1e-5
"""Relative: what rounding may do to a LoRA that is written in another layout."""


class Layout(StrEnum):
    """Who is to read the file."""

    DIFFUSERS = "diffusers"
    PEFT = "peft"
    COMFYUI = "comfyui"
    PUBLISHED = "published"


_CONVERT: dict[Layout, Callable[[State], dict[str, torch.Tensor]]] = {
    Layout.DIFFUSERS: to_diffusers,
    Layout.PEFT: to_peft,
    Layout.COMFYUI: to_comfyui,
    Layout.PUBLISHED: to_published,
}


def export_lora(run: RunFolder, layout: Layout, folder: Path) -> Path:
    """Writes the LoRA of a run into the new or empty `folder`; returns the safetensors file.

    The file is read back through the loader of samples, against the shapes of the run's model: every key must land,
    and change the weights as the LoRA of the run does.

    Raises:
        AdapterError: the run has no LoRA yet, or what was written is not what it has.
        ConfigError: the folder holds something, or cannot be written.
        DiskFull: there is no room.
    """
    lora = run.snapshot().lora
    if lora is None or not lora.is_file():
        raise AdapterError(f"The run {run.name} has no LoRA yet.", "Stop it, or wait until it ends.")
    dit = _skeleton(run.config().model.source)
    weights = load_lora(dit, lora)
    tensors = _CONVERT[layout](with_scales(weights.tensors, weights.scales))
    with safe_open(lora, framework="pt") as opened:
        notes = {key: value for key, value in (opened.metadata() or {}).items() if key.startswith("studio.")}
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata={"format": "pt", **notes})
    file = folder / ("adapter_model.safetensors" if layout is Layout.PEFT else f"{run.name}-{layout}.safetensors")
    make_empty_folder(folder)
    try:
        write_synced(file, data)
        if layout is Layout.PEFT:
            shutil.copyfile(lora.with_name(PEFT_CONFIG), folder / PEFT_CONFIG)
        _compare(weights, load_lora(dit, file), file)
    except OSError as error:
        _remove(file)
        if is_full(error):
            raise disk_full(file.name, folder, len(data)) from error
        raise not_written(folder, error) from error
    except AdapterError:
        _remove(file)
        raise
    return file


def _remove(file: Path) -> None:
    """Takes back what is cut off, or is not the LoRA of the run."""
    with suppress(OSError):
        file.unlink(missing_ok=True)
        file.with_name(PEFT_CONFIG).unlink(missing_ok=True)


def _compare(ours: LoraWeights, theirs: LoraWeights, file: Path) -> None:
    """Raises AdapterError, naming the first module that the two would change differently."""
    for module in ours.scales.keys() | theirs.scales.keys():
        if module not in ours.scales or module not in theirs.scales:
            raise AdapterError(f"{file.name}: {module} got lost on the way.", "Use another layout, and report this.")
        generator = torch.Generator().manual_seed(0)
        width = ours.tensors[f"{module}.lora_A.weight"].shape[1]
        probe = torch.randn(width, 4, generator=generator)
        expected, found = (_change(weights, module, probe) for weights in (ours, theirs))
        if (found - expected).norm() > TOLERANCE * expected.norm():
            raise AdapterError(f"{file.name} changes {module} otherwise.", "Use another layout, and report this.")


def _change(weights: LoraWeights, module: str, probe: torch.Tensor) -> torch.Tensor:
    """What the LoRA adds to the output of a layer for inputs `probe` [inputs, 4]."""
    down, up = (weights.tensors[f"{module}.lora_{part}.weight"] for part in "AB")
    return weights.scales[module] * (up @ (down @ probe))


def _skeleton(source: str) -> LongCatVideoTransformer3DModel:
    """The transformer of a checkpoint without its weights. Raises CheckpointError."""
    config = json.loads((resolve_folder(source) / "dit" / "config.json").read_text())
    with torch.device("meta"):
        dit: Any = LongCatVideoTransformer3DModel.from_config(config)
    return dit
