"""Several GPUs beside one, at full size: LoRA steps under DDP and FSDP2, and a video by Ulysses.

Each number of GPUs is a program of its own, one process a GPU, started one after another in the same call.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file
from torch import nn

from studio.bench.paths import (
    SHIFT,
    SIZE,
    TEXT_TOKENS,
    Prepare,
    lora_in_training,
    measure,
    random_transformer,
    use_fast_path,
)
from studio.bench.speed import distance, small_transformer, use_sparse_path
from studio.core.config import ModelConfig
from studio.core.errors import DeviceError, StudioError
from studio.core.geometry import GridSpec
from studio.core.model.dit import LongCatVideoTransformer3DModel
from studio.core.model.load import resolve_device
from studio.core.model.processes import Processes, joined, start_processes
from studio.core.model.sharding import shard
from studio.core.model.ulysses import Ulysses
from studio.core.model.vae import decode_latents
from studio.core.train.distributed import averaging
from studio.core.train.step import random_batch, training_loss
from studio.core.types import Bucket
from studio.view.terminal import write

COUNTS = (1, 2, 4, 8)
STEPS = 50
"""Of the video, two prompts each."""
SMALL_SIZE = Bucket(num_frames=17, height=112, width=80)
"""With the small transformer: a trial of this program, on CPUs too."""
ATTENTIONS: tuple[tuple[str, Prepare], ...] = (("dense", use_fast_path), ("sparse 0.9375", use_sparse_path))

Figures = dict[str, dict[str, float]]
"""What was measured, by name: `seconds`, `gib` a GPU, and for a forward `error` beside one GPU's."""


def bench_gpus(*, is_small: bool = False, counts: tuple[int, ...] = ()) -> None:
    """Prints the table for 1, 2, 4 and 8 GPUs, as many as are here. Raises DeviceError: there is one at most."""
    available = torch.cuda.device_count()
    counts = counts or tuple(count for count in COUNTS if count <= available)
    if len(counts) < 2:
        raise DeviceError("This part compares several GPUs, and there are fewer than two here.", "Use another machine.")
    device = torch.cuda.get_device_name() if available else "CPU"
    write(f"{device}, torch {torch.__version__}, Python {platform.python_version()}")
    size = SMALL_SIZE if is_small else SIZE
    write(f"{size}, one conditioning latent, {TEXT_TOKENS} text tokens, random weights, batch 1 on each GPU")
    with tempfile.TemporaryDirectory() as folder:
        for count in counts:
            if start_processes([folder, *["small"] * is_small], count, module="studio.bench.gpus"):
                raise StudioError(f"The measurement on {count} GPUs failed.", "What it said stands above.")
        found: dict[int, Figures] = {
            count: json.loads((Path(folder) / f"{count}.json").read_text()) for count in counts
        }
    _write_table(found)


def _write_table(found: dict[int, Figures]) -> None:
    """Seconds, efficiency beside one GPU in the same call, and memory; a step of N GPUs learns from N clips."""
    one = found[1]
    write("\n| | GPUs | seconds | efficiency | GiB a GPU | from the velocity of one GPU |\n|---|---|---|---|---|---|")
    for name in found[max(found)]:
        for count, figures in found.items():
            if name not in figures:
                continue
            row, before = figures[name], one.get(name) or one[name.replace("FSDP2", "DDP")]
            share = 1 if name.startswith("LoRA") else count
            efficiency = before["seconds"] / (share * row["seconds"])
            error = f"{row['error']:.1e}" if "error" in row else ""
            write(f"| {name} | {count} | {row['seconds']:.3f} | {efficiency:.1%} | {row['gib']:.1f} | {error} |")


def _measure(folder: Path, *, is_small: bool) -> None:
    """What one of the processes does; the first one writes."""
    with joined() as processes:
        device = resolve_device("auto")
        size = SMALL_SIZE if is_small else SIZE
        torch.manual_seed(0)
        dit = small_transformer(device, torch.float32) if is_small else random_transformer(device)
        figures: Figures = {}
        for name, prepare in ATTENTIONS:
            figures[f"LoRA step, {name}, DDP"] = _time_step(dit, prepare, size, processes)
        if processes.count > 1:
            dit.set_ulysses(Ulysses(processes.rank, processes.count))
        cached, decoded = 0.0, _time_decoding(device, size, is_small=is_small)
        for name, prepare in ATTENTIONS:
            prepare(dit)
            cached, row = _time_denoising(dit, size, processes, folder / f"{name}.safetensors")
            figures[f"denoising step of two prompts, {name}"] = row
            whole = {"seconds": cached + STEPS * row["seconds"] + decoded, "gib": row["gib"]}
            figures[f"a video of {STEPS} such steps, decoded, {name}"] = whole
        dit.set_ulysses(None)
        if processes.count > 1:
            shard(dit, ModelConfig(), device, processes.count)
            for name, prepare in ATTENTIONS:
                figures[f"LoRA step, {name}, FSDP2"] = _time_step(dit, prepare, size, processes)
        if processes.is_main:
            (folder / f"{processes.count}.json").write_text(json.dumps(figures))


def _time_step(
    dit: LongCatVideoTransformer3DModel, prepare: Prepare, size: Bucket, processes: Processes
) -> dict[str, float]:
    """An optimiser step of a LoRA of rank 8, attention kept, from one clip on each GPU."""
    grid = GridSpec().latent_grid(size.num_frames, size.height, size.width)
    batch = random_batch(dit, grid, text_length=TEXT_TOKENS, device=dit.device)
    with lora_in_training(dit, prepare, keep_attention=True) as parameters:
        model = averaging(dit, processes)
        optimizer = torch.optim.AdamW(parameters, lr=1e-4)

        def step() -> None:
            training_loss(model, batch, shift=SHIFT, generators=[torch.Generator().manual_seed(0)]).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 2.0)
            optimizer.step()
            optimizer.zero_grad()

        return _figures(step, 2)


@torch.no_grad()
def _time_denoising(
    dit: LongCatVideoTransformer3DModel, size: Bucket, processes: Processes, velocity_of_one: Path
) -> tuple[float, dict[str, float]]:
    """(seconds of the conditioning latent's own stream, a step as the sampler takes it)."""
    grid = GridSpec().latent_grid(size.num_frames, size.height, size.width)
    batch = random_batch(dit, grid, text_length=TEXT_TOKENS, device=dit.device, batch_size=2)
    start = batch.start_latent[:1].expand(2, -1, -1, -1, -1)
    at = torch.full((2,), 500.0, device=dit.device)

    def clean() -> list:
        return dit(start, at * 0, None, return_kv=True)[1]

    def step() -> torch.Tensor:
        return dit(batch.latents[:, :, 1:], at, batch.text, batch.text_mask, kv_cache=cache)

    cached, cache = _figures(clean, 1)["seconds"], clean()
    figures, velocity = _figures(step, 3), step().float().cpu()
    if processes.count == 1:
        save_file({"velocity": velocity.contiguous()}, velocity_of_one)
    else:
        figures["error"] = distance(velocity, load_file(velocity_of_one)["velocity"])
    return cached, figures


@torch.no_grad()
def _time_decoding(device: torch.device, size: Bucket, *, is_small: bool) -> float:
    """Seconds, on every process alike."""
    vae = AutoencoderKLWan(base_dim=16) if is_small else AutoencoderKLWan()
    nn.Module.to(vae, device, torch.float32 if device.type == "cpu" else torch.bfloat16)
    grid = GridSpec().latent_grid(size.num_frames, size.height, size.width)
    latents = torch.randn(1, 16, grid.t, grid.h, grid.w, device=device)
    return _figures(lambda: decode_latents(vae, latents), 1)["seconds"]


def _figures(call: Callable[[], object], repeats: int) -> dict[str, float]:
    timing = measure(call, repeats)
    return {"seconds": timing.seconds, "gib": timing.peak_bytes / 2**30}


if __name__ == "__main__":
    _measure(Path(sys.argv[1]), is_small="small" in sys.argv[2:])
