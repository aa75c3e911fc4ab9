"""A LoRA file, read with suspicion: its limits are checked before its tensors are, and it must fit the model."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors import SafetensorError, safe_open
from torch import nn

from studio.core.errors import AdapterError
from studio.core.model.dit import LongCatVideoTransformer3DModel
from studio.core.model.lora_formats import first_three, to_plain

MAX_HEADER_BYTES = 4 * 2**20
MAX_TENSORS = 4096
"""The published LoRAs hold 1,152 and 1,543."""
MAX_FILE_BYTES = 4 * 2**30
"""The published LoRAs take 2.5 and 3.2 GB."""
PEFT_CONFIG = "adapter_config.json"
"""Beside a file of peft: says its alpha."""

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
OTHER_FILE = "Choose a .safetensors LoRA; nothing else is opened, because other formats can run code."


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraWeights:
    """A LoRA that fits the model, fp32 in main memory: weights change by scale B A."""

    tensors: Mapping[str, torch.Tensor]
    """`<module>.lora_A.weight` [R, inputs] and `<module>.lora_B.weight` [outputs, R]; R may differ by module."""
    scales: Mapping[str, float]
    """By module."""

    @property
    def ranks(self) -> Mapping[str, int]:
        """By module."""
        return {module: len(self.tensors[f"{module}.lora_A.weight"]) for module in self.scales}


def load_lora(dit: LongCatVideoTransformer3DModel, file: Path) -> LoraWeights:
    """The LoRA of `file`, in whichever of the known layouts (`lora_formats`), checked against the model.

    Raises:
        AdapterError: not safetensors, beyond the limits, not a LoRA, of another shape, or not finite; of what does
            not fit, the first three keys are named with both shapes.
    """
    tensors, metadata = read_safetensors(file)
    linears = _linears(dit)
    try:
        state, scales = to_plain(tensors, linears, read_alphas(file, metadata))
    except AdapterError as error:
        raise AdapterError(f"{file.name} cannot be used. {error.message}", error.remedy) from None
    _refuse(file, _misfits(linears, state))
    idle = [module for module, scale in scales.items() if scale == 0]
    if idle:
        raise AdapterError(
            f"{file.name} says an alpha of 0 for {len(idle)} modules, first for {idle[0]}: they would do nothing.",
            "Save it again with the alpha that it was trained with.",
        )
    bad = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    bad += [f"the alpha of {module}" for module, scale in scales.items() if not math.isfinite(scale)]
    if bad:
        raise AdapterError(
            f"{file.name} contains NaN or infinity in {len(bad)} tensor{'s' * (len(bad) != 1)}, first in {bad[0]}.",
            "Train it again, or take an earlier checkpoint of it.",
        )
    return LoraWeights(tensors=state, scales=scales)


def read_safetensors(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(tensors, metadata) of a safetensors file within the limits.

    The file is never mapped into memory: whoever cuts it off meanwhile cannot end this process.
    Raises AdapterError.
    """
    try:
        with file.open("rb") as opened:
            header, start = _read_header(file, opened)
            metadata = header.pop("__metadata__", {})
            # The library knows every rule of the format; it reads no tensor here.
            with safe_open(file, framework="pt"):
                pass
            return {name: _read_tensor(file, opened, start, name, entry) for name, entry in header.items()}, metadata
    except FileNotFoundError as error:
        raise AdapterError(f"There is no LoRA file {file}.", "Check the path.") from error
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{file.name} is not a safetensors file, or it is cut off: {error}.", OTHER_FILE) from error


def read_alphas(file: Path, metadata: Mapping[str, str]) -> dict[str, float]:
    """Alpha by module, and under "" that of all others, from the file's metadata or from peft's file beside it.

    Raises AdapterError.
    """
    beside = file.with_name(PEFT_CONFIG)
    source, prefix, text = LORA_ADAPTER_METADATA_KEY, "transformer.", metadata.get(LORA_ADAPTER_METADATA_KEY)
    try:
        if text is None and file.name == "adapter_model.safetensors" and beside.is_file():
            source, prefix = PEFT_CONFIG, ""
            text = beside.read_bytes()[: MAX_HEADER_BYTES + 1]
        config = json.loads(text or "{}")
        said = {key: config.get(f"{prefix}{key}") for key in ("lora_alpha", "alpha_pattern", "use_rslora")}
        alphas = {str(module): float(alpha) for module, alpha in (said["alpha_pattern"] or {}).items()}
        if said["lora_alpha"] is not None:
            alphas[""] = float(said["lora_alpha"])
    except (ValueError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise AdapterError(f"{file.name} says of itself what cannot be read ({source}).", "Save it again.") from error
    if said["use_rslora"]:
        raise AdapterError(
            f"{file.name} is scaled by the root of its rank (use_rslora), which is not known here.",
            "Save it with the scale alpha / rank.",
        )
    return alphas


def _read_header(file: Path, opened: BinaryIO) -> tuple[dict[str, Any], int]:
    """(header, where the tensors begin); refuses other formats, and what is beyond the limits."""
    first, size = opened.read(9), file.stat().st_size
    length = struct.unpack("<Q", first[:8])[0] if len(first) == 9 else -1
    # The length of a header may begin with the bytes of a zip file or a pickle; its table begins with a brace.
    if first[8:] != b"{" and (first[:2] == b"PK" or first[:1] == b"\x80"):
        kind = "a zip file, as PyTorch writes its pickles," if first[:2] == b"PK" else "a pickle"
        raise AdapterError(
            f"{file.name} is not safetensors: it is {kind} which can run code. It was not opened.", OTHER_FILE
        )
    if not 2 <= length <= size - 8:
        raise AdapterError(f"{file.name} is not a safetensors file, or it is cut off.", OTHER_FILE)
    for what, found, most in (("header", length, MAX_HEADER_BYTES), ("file", size, MAX_FILE_BYTES)):
        if found > most:
            raise AdapterError(
                f"{file.name} is no LoRA: its {what} takes {found:,} bytes, and {most:,} is the most.",
                "Choose a LoRA file, not a whole model.",
            )
    opened.seek(8)
    try:
        header = json.loads(opened.read(length), object_pairs_hook=_without_duplicates)
    except _DuplicateKeyError as error:
        raise AdapterError(
            f"{file.name} holds {first_three([str(error)])} twice.", "Save it again from where it comes from."
        ) from error
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{file.name} is not a safetensors file: its header cannot be read.", OTHER_FILE) from error
    if not isinstance(header, dict):
        raise AdapterError(f"{file.name} is not a safetensors file: its header is no table.", OTHER_FILE)
    if len(header) > MAX_TENSORS:
        raise AdapterError(
            f"{file.name} is no LoRA: it holds {len(header):,} tensors, and {MAX_TENSORS:,} is the most.",
            "Choose a LoRA file, not a whole model.",
        )
    return header, 8 + length


class _DuplicateKeyError(Exception):
    """A key stands twice in one table; readers differ on which one counts."""


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        raise _DuplicateKeyError(next(key for key, _ in pairs if key in seen or seen.add(key)))
    return table


def _read_tensor(file: Path, opened: BinaryIO, start: int, name: str, entry: Mapping[str, Any]) -> torch.Tensor:
    """fp32, whatever the file's precision."""
    dtype = DTYPES.get(entry["dtype"])
    if dtype is None:
        raise AdapterError(
            f"{file.name} holds {first_three([name])} as {entry['dtype']}; known are {', '.join(DTYPES)}.",
            "Save it as F32 or BF16.",
        )
    begin, end = entry["data_offsets"]
    opened.seek(start + begin)
    data = bytearray(opened.read(end - begin))
    if len(data) != end - begin:
        raise AdapterError(f"{file.name} became shorter while it was read.", "Copy it again.")
    shape = entry["shape"]
    return (torch.frombuffer(data, dtype=dtype).view(shape) if data else torch.zeros(shape, dtype=dtype)).float()


def _linears(dit: LongCatVideoTransformer3DModel) -> dict[str, nn.Linear]:
    """Every linear of the model by its name without adapters."""
    return {
        name.replace(".base_layer", ""): module
        for name, module in dit.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
    }


def _refuse(file: Path, problems: list[str]) -> None:
    if not problems:
        return
    raise AdapterError(
        f"{file.name} is not a LoRA of this model: {first_three(problems)}.",
        "Choose a LoRA that was trained on this checkpoint.",
    )


def _misfits(linears: Mapping[str, nn.Linear], state: Mapping[str, torch.Tensor]) -> list[str]:
    """One clause for every tensor of `state` that has no place in the model, another shape, or no partner."""
    if not state:
        return ["it holds no lora_A and lora_B tensors"]
    problems = []
    for name, tensor in state.items():
        module, _, part = name.rpartition(".lora_")
        layer = linears.get(module)
        if layer is None or part not in ("A.weight", "B.weight"):
            problems.append(f"{name} has no place in the model")
            continue
        partner = f"{module}.lora_{'B' if part == 'A.weight' else 'A'}.weight"
        if partner not in state:
            problems.append(f"{partner} is missing")
        rank = _rank(state.get(f"{module}.lora_A.weight", tensor.t() if tensor.dim() == 2 else tensor))
        if rank < 1:
            problems.append(f"{name} is {list(tensor.shape)}, not of rank 1 or more")
            continue
        shape = (rank, layer.in_features) if part == "A.weight" else (layer.out_features, rank)
        if tuple(tensor.shape) != shape:
            problems.append(f"{name} is {list(tensor.shape)}, expected {list(shape)}")
    return problems


def _rank(a: torch.Tensor) -> int:
    return a.shape[0] if a.dim() == 2 else 0
