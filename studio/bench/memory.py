"""A LoRA step and a sample within the memory of small cards, and what the levers cost."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from torch import nn
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

from studio.bench.paths import SHIFT, SIZE, TEXT_TOKENS, time_step, use_fast_path
from studio.core.assets import TINY, asset_path
from studio.core.events import DenoiseStep
from studio.core.geometry import GridSpec
from studio.core.model.attention import DENSE
from studio.core.model.dit import LongCatVideoTransformer3DModel
from studio.core.model.dit_block import DitBlock
from studio.core.model.load import ModelBundle, SampleDefaults
from studio.core.model.precision import quantise_blocks
from studio.core.model.swap import BlockSwap
from studio.core.model.text import PromptEncoder
from studio.core.sample.sampler import SampleRequest, render
from studio.view.terminal import write

GIB = 2**30
UMT5_XXL: dict[str, Any] = {
    "vocab_size": 256_384, "d_model": 4096, "d_kv": 64, "d_ff": 10_240, "num_layers": 24, "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}  # fmt: skip
"""The published text encoder."""


def measure_memory(dit: LongCatVideoTransformer3DModel) -> None:
    """Swap beside resident, a step in 24 GiB beside resident, a sample in 16 GiB; `dit` is left in fp8, swapped."""
    write("\n| LoRA step, rank 8, exact | ms | of resident | GiB |\n|---|---|---|---|")
    device, blocks = dit.device, cast(list[DitBlock], dit.blocks)
    _time_with_swap(dit, 24, name="bf16, 24 blocks swapped", keep_attention=True)
    encoder = _random_text_encoder(device)
    swap = BlockSwap(blocks[1:], device, torch.device("cpu"))
    with _limited_to(16, device):
        _render(dit, encoder, device)
    swap.remove()
    del swap, encoder
    quantise_blocks(dit, "fp8-torchao", device)
    nn.Module.to(dit, device)
    _time_with_swap(dit, len(blocks) - 1, name="fp8, all but one block swapped, 24 GiB", limit=24)


def _time_with_swap(
    dit: LongCatVideoTransformer3DModel, count: int, *, name: str, keep_attention: bool = False, limit: int = 0
) -> None:
    """A resident step, then one with `count` blocks swapped, within `limit` GiB where that is not 0."""
    device, blocks = dit.device, cast(list[DitBlock], dit.blocks)
    resident = time_step(dit, use_fast_path)
    write(
        f"| {name.split(',')[0]}, resident | {1000 * resident.seconds:,.0f} | 1.00 | {resident.peak_bytes / GIB:.1f} |"
    )
    swap = BlockSwap(blocks[-count:], device, torch.device("cpu"))
    with _limited_to(limit, device):
        timing = time_step(dit, use_fast_path, keep_attention=keep_attention)
        share = timing.seconds / resident.seconds
        reserved = torch.cuda.max_memory_reserved() / GIB
        write(
            f"| {name} | {1000 * timing.seconds:,.0f} | {share:.2f} | {timing.peak_bytes / GIB:.1f} "
            f"({reserved:.1f} with what PyTorch held in reserve) |"
        )
    swap.remove()


@contextmanager
def _limited_to(limit: int, device: torch.device) -> Iterator[None]:
    """Inside, PyTorch may take so many GiB of the device; 0 is no limit."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    if limit:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(limit * GIB / total, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def _render(dit: LongCatVideoTransformer3DModel, encoder: Any, device: torch.device) -> None:
    """A whole sample of two steps with guidance: text encoder, autoencoder with tiles, transformer, mp4."""
    use_fast_path(dit)
    vae: Any = nn.Module.to(AutoencoderKLWan(), device, torch.bfloat16).requires_grad_(False).eval()
    vae.enable_tiling()
    tokenizer = AutoTokenizer.from_pretrained(asset_path(TINY) / "tokenizer", model_max_length=TEXT_TOKENS)
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    bundle = ModelBundle(
        source="random", dit=dit, vae=vae, prompt_encoder=PromptEncoder(tokenizer, encoder, device),
        scheduler=scheduler, grid=GridSpec(), defaults=SampleDefaults(), attention=DENSE, device=device,
        dtype=torch.bfloat16,
    )  # fmt: skip
    request = SampleRequest(
        prompt="a circle moves", start_frame=np.zeros((SIZE.height, SIZE.width, 3), np.uint8), num_inference_steps=2
    )
    started, steps = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        for event in render(request, bundle, Path(folder) / "sample.mp4"):
            if isinstance(event, DenoiseStep):
                steps.append(event.seconds)
    total, last = time.perf_counter() - started, steps[-1]
    write(
        f"\nA sample of two steps with guidance in 16 GiB, bf16, all but one block swapped, tiles: {total:.1f} s, "
        f"the second step {last:.1f} of them; {torch.cuda.max_memory_allocated() / GIB:.1f} GiB allocated, "
        f"{torch.cuda.max_memory_reserved() / GIB:.1f} with what PyTorch held in reserve\n"
    )


def _random_text_encoder(device: torch.device) -> Any:
    """The published text encoder in bf16, in main memory."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            encoder: Any = UMT5EncoderModel(UMT5Config(**UMT5_XXL))
    finally:
        torch.set_default_dtype(before)
    return encoder.requires_grad_(False).eval().to("cpu")
