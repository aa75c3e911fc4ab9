"""Times of the full-size transformer on this machine. Its weights are random: speed hardly depends on their values."""

from __future__ import annotations

import platform
import time
from statistics import median

import torch

from studio.core.errors import DeviceError
from studio.core.geometry import GridSpec
from studio.core.model.attention import AttentionChoice, choose_attention
from studio.core.model.dit import PUBLISHED_BSA, LongCatVideoTransformer3DModel
from studio.view.terminal import write

FRAMES, HEIGHT, WIDTH = 93, 480, 832
TEXT_TOKENS = 512
REPEATS = 3


def run_bench() -> None:
    """Prints a table of image-to-video forwards, dense beside sparse. Raises DeviceError without a CUDA device."""
    if not torch.cuda.is_available():
        raise DeviceError(
            "The benchmark times the full-size transformer, and there is no CUDA device here.",
            "For the tiny checkpoint on a CPU, run the demo.",
        )
    device = torch.device("cuda")
    dit = random_transformer(device)
    block, sparsity = tuple(PUBLISHED_BSA["chunk_3d_shape_k"]), PUBLISHED_BSA["sparsity"]
    write(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Python {platform.python_version()}")
    write(f"{HEIGHT}x{WIDTH}, {FRAMES} frames, one conditioning latent, batch 1, bf16, medians of {REPEATS}\n")
    write("| forward | ms | beside dense | GiB |\n|---|---|---|---|")
    dense = None
    for setting in ("dense", "sparse"):
        choice = choose_attention(
            setting, block=block, sparsity=sparsity, device=device, dtype=torch.bfloat16,
            head_width=dit.config["hidden_size"] // dit.config["num_heads"],
        )  # fmt: skip
        seconds, peak = time_forward(dit, choice, frames=FRAMES, height=HEIGHT, width=WIDTH)
        dense = dense or seconds
        write(f"| {setting} | {1000 * seconds:,.0f} | {dense / seconds:.2f}x as fast | {peak / 2**30:.1f} |")


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


@torch.inference_mode()
def time_forward(
    dit: LongCatVideoTransformer3DModel, choice: AttentionChoice, *, frames: int, height: int, width: int
) -> tuple[float, int]:
    """(median seconds of a forward with one conditioning latent, peak bytes allocated on a CUDA device)."""
    device, dtype = dit.device, dit.x_embedder.proj.weight.dtype
    grid = GridSpec().latent_grid(frames, height, width)
    generator = torch.Generator(device).manual_seed(0)
    latents = torch.randn(1, dit.out_channels, grid.t, grid.h, grid.w, device=device, generator=generator)
    text = torch.randn(
        1, 1, TEXT_TOKENS, dit.config["caption_channels"], device=device, dtype=dtype, generator=generator
    )
    timestep = torch.full((1, grid.t), 500.0, device=device)
    timestep[:, 0] = 0
    dit.set_attention(choice)
    is_cuda = device.type == "cuda"
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(1 + REPEATS):
        started = time.perf_counter()
        dit(latents, timestep, text, num_cond_latents=1)
        if is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return median(seconds[1:]), torch.cuda.max_memory_allocated() if is_cuda else 0
