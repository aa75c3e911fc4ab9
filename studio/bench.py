"""Times and memory of the full-size transformer on this machine, beside a plain implementation timed in the same run.

Its weights are random: speed and memory hardly depend on their values. The plain path is this project's own transformer
without any of its own kernels: unfused, dense attention through PyTorch, peft's own LoRA, each block recomputed whole.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any, cast

import peft.tuners.lora.layer
import torch
from torch import nn

from studio.core.assets import TINY
from studio.core.config import LoraSettings, ModelConfig
from studio.core.errors import DeviceError
from studio.core.geometry import Grid, GridSpec
from studio.core.model import pointwise
from studio.core.model.attention import AttentionChoice, choose_attention
from studio.core.model.dit import PUBLISHED_BSA, LongCatVideoTransformer3DModel
from studio.core.model.load import load_bundle
from studio.core.model.lora import TRAINING, add_lora, remove_lora
from studio.core.model.lora_linear import LoraLinear
from studio.core.model.pointwise import choose_pointwise
from studio.core.model.precision import quantise_blocks
from studio.core.train.step import Batch, training_loss
from studio.view.terminal import write

FRAMES, HEIGHT, WIDTH = 93, 480, 832
TEXT_TOKENS = 512
REPEATS = 3
SHIFT = 12.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """What one call took."""

    seconds: float
    """Median."""
    peak_bytes: int
    """Allocated on a CUDA device; 0 elsewhere."""


def run_bench() -> None:
    """Prints the tables. Raises DeviceError without a CUDA device."""
    if not torch.cuda.is_available():
        raise DeviceError(
            "The benchmark times the full-size transformer, and there is no CUDA device here.",
            "For the tiny checkpoint on a CPU, run the demo.",
        )
    device = torch.device("cuda")
    write(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Python {platform.python_version()}")
    write(f"Full size: {HEIGHT}x{WIDTH}, {FRAMES} frames, one conditioning latent, batch 1, medians of {REPEATS}\n")
    compare_paths(device)
    dit = random_transformer(device)
    time_forwards(dit)
    time_steps(dit)


def compare_paths(device: torch.device) -> None:
    """How far the fast path is from the plain one, forward and LoRA gradients, on the tiny checkpoint."""
    write("| fast against plain, tiny checkpoint | velocity | LoRA gradients |\n|---|---|---|")
    for dtype in ("fp32", "bf16"):
        bundle = load_bundle(ModelConfig(source=TINY, device=str(device), dtype=dtype, attention="dense"))
        results = []
        for is_plain in (True, False):
            parameters = add_lora(bundle.dit, LoraSettings(), seed=0)
            _fill_lora(parameters)
            (use_plain_path if is_plain else use_fast_path)(bundle.dit)
            velocity, loss = loss_of(bundle.dit, random_batch(bundle.dit, Grid(5, 16, 16), TEXT_TOKENS // 8))
            loss.backward()
            results.append([velocity, torch.cat([cast(torch.Tensor, p.grad).flatten() for p in parameters])])
            remove_lora(bundle.dit, TRAINING)
        errors = [f"{_distance(fast, plain):.1e}" for plain, fast in zip(*results, strict=True)]
        write(f"| {dtype} | {errors[0]} | {errors[1]} |")


def time_forwards(dit: LongCatVideoTransformer3DModel) -> None:
    """The table of forwards; the linears of `dit` are in fp8 in its last row only."""
    write("\n| forward | ms | of plain | GiB |\n|---|---|---|---|")
    plain = None
    for name, prepare, is_cached in (
        ("plain", use_plain_path, False),
        ("exact", use_fast_path, False),
        ("exact, conditioning latent cached", use_fast_path, True),
        ("sparse 0.9375", lambda dit: use_fast_path(dit, "sparse"), False),
        ("sparse 0.9375, conditioning latent cached", lambda dit: use_fast_path(dit, "sparse"), True),
    ):
        prepare(dit)
        timing = time_forward(dit, frames=FRAMES, height=HEIGHT, width=WIDTH, is_cached=is_cached)
        plain = plain or timing
        write(_row(name, timing, plain))


def time_steps(dit: LongCatVideoTransformer3DModel) -> None:
    """The table of LoRA steps, and of forwards in fp8, in which it leaves `dit`."""
    write("\n| LoRA step, rank 8 | ms | of plain | GiB |\n|---|---|---|---|")
    plain = time_step(dit, use_plain_path)
    write(_row("plain", plain, plain))
    write(_row("exact", time_step(dit, use_fast_path), plain))
    write(_row("exact, attention recomputed", time_step(dit, use_fast_path, keep_attention=False), plain))
    write(_row("sparse 0.9375", time_step(dit, lambda dit: use_fast_path(dit, "sparse")), plain))
    device = dit.device
    quantise_blocks(dit, "fp8-torchao", device)
    nn.Module.to(dit, device)
    write(_row("sparse 0.9375, fp8 base", time_step(dit, lambda dit: use_fast_path(dit, "sparse")), plain))
    write("\n| forward, fp8 linears | ms | GiB |\n|---|---|---|")
    for setting in ("dense", "sparse"):
        for is_cached in (False, True):
            use_fast_path(dit, setting)
            timing = time_forward(dit, frames=FRAMES, height=HEIGHT, width=WIDTH, is_cached=is_cached)
            name = f"{setting}, conditioning latent cached" if is_cached else setting
            write(f"| {name} | {1000 * timing.seconds:,.0f} | {timing.peak_bytes / 2**30:.1f} |")


def random_transformer(device: torch.device) -> LongCatVideoTransformer3DModel:
    """The published size in the published types, on `device`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            dit = LongCatVideoTransformer3DModel(bsa_params=PUBLISHED_BSA)
    finally:
        torch.set_default_dtype(before)
    for name, module in dit.named_modules():
        if name.rpartition(".")[2] in dit._keep_in_fp32_modules:
            module.float()
    return dit.eval().requires_grad_(False)


def use_plain_path(dit: LongCatVideoTransformer3DModel) -> None:
    """The reference: dense attention, no kernel of ours, peft's own LoRA."""
    dit.set_attention(AttentionChoice(setting="dense"))
    dit.set_pointwise(pointwise)
    for module in dit.modules():
        if isinstance(module, LoraLinear):
            module.__class__ = cast(Any, peft.tuners.lora.layer.Linear)


def use_fast_path(dit: LongCatVideoTransformer3DModel, setting: Any = "dense") -> None:
    """What the studio runs on this device."""
    dtype, device = dit.x_embedder.proj.weight.dtype, dit.device
    dit.set_pointwise(choose_pointwise(device, dtype)[0])
    block, sparsity = tuple(PUBLISHED_BSA["chunk_3d_shape_k"]), PUBLISHED_BSA["sparsity"]
    head_width = dit.config["hidden_size"] // dit.config["num_heads"]
    dit.set_attention(
        choose_attention(
            setting, block=block, sparsity=sparsity, device=device, dtype=dtype, head_width=head_width
        )
    )  # fmt: skip


def random_batch(dit: LongCatVideoTransformer3DModel, grid: Grid, text_tokens: int = TEXT_TOKENS) -> Batch:
    """One clip of random latents with random text."""
    generator = torch.Generator(dit.device).manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=dit.device, generator=generator)

    return Batch(
        latents=random(1, dit.out_channels, grid.t, grid.h, grid.w),
        start_latent=random(1, dit.out_channels, 1, grid.h, grid.w),
        text=random(1, 1, text_tokens, dit.config["caption_channels"]).to(dit.x_embedder.proj.weight.dtype),
        text_mask=torch.ones(1, text_tokens, dtype=torch.int64, device=dit.device),
    )


def loss_of(dit: LongCatVideoTransformer3DModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """(velocity, loss) of a training step."""
    velocities = []

    def predict(*args: Any, **kwargs: Any) -> torch.Tensor:
        velocities.append(dit(*args, **kwargs))
        return velocities[0]

    loss = training_loss(predict, batch, shift=SHIFT, generators=[torch.Generator().manual_seed(0)])
    return velocities[0].detach(), loss


@torch.inference_mode()
def time_forward(
    dit: LongCatVideoTransformer3DModel, *, frames: int, height: int, width: int, is_cached: bool = False
) -> Timing:
    """A forward with one conditioning latent; with `is_cached` as the sampler runs it, that latent's keys known."""
    batch = random_batch(dit, GridSpec().latent_grid(frames, height, width))
    timestep = torch.full((1, batch.latents.shape[2]), 500.0, device=dit.device)
    if is_cached:
        _, cache = dit(batch.start_latent, timestep[:, :1] * 0, None, return_kv=True)
        return measure(
            lambda: dit(batch.latents[:, :, 1:], timestep[:, 1:], batch.text, batch.text_mask, kv_cache=cache)
        )
    timestep[:, 0] = 0
    return measure(lambda: dit(batch.latents, timestep, batch.text, batch.text_mask, num_cond_latents=1))


def time_step(
    dit: LongCatVideoTransformer3DModel,
    prepare: Callable[[LongCatVideoTransformer3DModel], None],
    *,
    keep_attention: bool = True,
    frames: int = FRAMES,
    height: int = HEIGHT,
    width: int = WIDTH,
) -> Timing:
    """An optimiser step of a LoRA of rank 8 with gradient checkpointing; the plain path keeps no attention."""
    parameters = add_lora(dit, LoraSettings(), seed=0)
    prepare(dit)
    is_plain = not any(isinstance(module, LoraLinear) for module in dit.modules())
    dit.enable_gradient_checkpointing()
    dit.keep_attention = keep_attention and not is_plain
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    batch = random_batch(dit, GridSpec().latent_grid(frames, height, width))
    dit.train()

    def step() -> None:
        loss_of(dit, batch)[1].backward()
        torch.nn.utils.clip_grad_norm_(parameters, 2.0)
        optimizer.step()
        optimizer.zero_grad()

    try:
        return measure(step, repeats=1 if is_plain else 2)
    finally:
        dit.eval()
        dit.disable_gradient_checkpointing()
        remove_lora(dit, TRAINING)


def measure(call: Callable[[], object], repeats: int = REPEATS) -> Timing:
    """Times `call` after one warm-up."""
    is_cuda = torch.cuda.is_available()
    seconds = []
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(1 + repeats):
        started = time.perf_counter()
        call()
        if is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return Timing(seconds=median(seconds[1:]), peak_bytes=torch.cuda.max_memory_allocated() if is_cuda else 0)


def _fill_lora(parameters: Iterable[nn.Parameter]) -> None:
    """Numbers into both factors: a fresh one is zero, and then no gradient reaches the other."""
    generator = torch.Generator().manual_seed(1)
    for parameter in parameters:
        parameter.data.copy_(0.02 * torch.randn(parameter.shape, generator=generator))


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def _row(name: str, timing: Timing, plain: Timing) -> str:
    share = timing.seconds / plain.seconds
    return f"| {name} | {1000 * timing.seconds:,.0f} | {share:.2f} | {timing.peak_bytes / 2**30:.1f} |"
