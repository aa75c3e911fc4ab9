"""The large linears of the transformer in eight bits; everything else stays as it is.

An adapter on top of them is trained and applied in full precision.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from studio.core.config import BasePrecision
from studio.core.errors import DeviceError
from studio.core.model.dit import LongCatVideoTransformer3DModel
from studio.core.model.fp8 import Fp8Linear

LARGE_LINEARS = (
    "attn.qkv", "attn.proj", "cross_attn.q_linear", "cross_attn.kv_linear", "cross_attn.proj",
    "ffn.w1", "ffn.w2", "ffn.w3",
)  # fmt: skip
"""Of every block; 95 % of the model. Embedders, modulation, norms and the final layer keep their precision."""

FP8_CAPABILITY = (8, 9)
"""The first CUDA compute capability whose tensor cores multiply fp8."""


def eight_bits_for(device: torch.device) -> BasePrecision:
    """The precision of one byte a weight that a device is good at."""
    has_fp8 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY
    return "fp8-torchao" if has_fp8 else "int8-quanto"


def quantise_blocks(
    dit: LongCatVideoTransformer3DModel, precision: BasePrecision, device: torch.device
) -> tuple[str, ...]:
    """Quantises the large linears block by block, each on `device`, and leaves the blocks in main memory.

    Weights lose their full-precision selves. Returns what should be said about it.

    Raises:
        DeviceError: fp8 on a CUDA device without fp8 tensor cores.
    """
    if precision == "no_change":
        return ()
    notices = _notices(precision, device)
    if precision == "fp8-torchao" and device.type == "cuda":
        _check_fp8(dit)
    quantise = {"int8-quanto": _quantise_int8, "fp8-torchao": _quantise_fp8}[precision]
    for block in dit.blocks:
        nn.Module.to(block, device)
        quantise(block)
        nn.Module.to(block.requires_grad_(False), "cpu")
    return notices


def _check_fp8(dit: LongCatVideoTransformer3DModel) -> None:
    """Raises DeviceError where the fp8 products of a GPU do not take this transformer."""
    if dit.x_embedder.proj.weight.dtype != torch.bfloat16:
        raise DeviceError("base_model_precision is fp8-torchao, which a GPU multiplies into bf16.", "Use bf16 with it.")
    odd = [
        name
        for name in LARGE_LINEARS
        if any(size % 16 for size in cast(nn.Linear, dit.blocks[0].get_submodule(name)).weight.shape)
    ]
    if odd:
        raise DeviceError(
            f"base_model_precision is fp8-torchao, but the sizes of {odd[0]} are no multiples of 16.",
            "Use int8-quanto.",
        )


def _notices(precision: BasePrecision, device: torch.device) -> tuple[str, ...]:
    """What to say about `precision` on `device`. Raises DeviceError."""
    if precision != "fp8-torchao":
        return ()
    if device.type == "cpu":
        return ("fp8-torchao on a CPU: weights are stored in fp8 and multiplied in full precision, slowly.",)
    if eight_bits_for(device) != precision:
        raise DeviceError(
            f"base_model_precision is fp8-torchao, but {torch.cuda.get_device_name(device)} has no fp8 tensor cores "
            "(compute capability 8.9 or later).",
            "Use int8-quanto.",
        )
    return ()


@torch.no_grad()
def _quantise_int8(block: nn.Module) -> None:
    """int8 with a scale for each output channel, by optimum-quanto; a product turns the weight back first."""
    # Imported here because it takes seconds.
    from optimum.quanto import freeze, qint8, quantize

    quantize(block, weights=qint8, include=list(LARGE_LINEARS))
    freeze(block)


def _quantise_fp8(block: nn.Module) -> None:
    """fp8 (e4m3) weights; inputs are rounded to fp8 too where tensor cores multiply it."""
    for name in LARGE_LINEARS:
        parent, _, own = name.rpartition(".")
        linear = cast(nn.Linear, block.get_submodule(name))
        setattr(block.get_submodule(parent), own, Fp8Linear(linear))
