"""Several GPUs beside one, at full size: LoRA steps under DDP and FSDP2, and a video by Ulysses.

Each number of GPUs is a program of its own, one process a GPU, started one after another in the same call.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
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
from studio.core.model.processes import Processes, joined
from studio.core.model.sharding import shard
from studio.core.model.starting import start_processes
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
ATTENTIONS: tuple[tuple[str, Prepare], ...] = (("sparse 0.9375", use_sparse_path), ("dense", use_fast_path))
"""The faster one first: a bench that is cut off has the more."""

Row = dict[str, float]
"""What was measured: `seconds`, `gib` a GPU, and for a forward `error` beside one GPU's."""


def bench_gpus(*, is_small: bool = False, counts: tuple[int, ...] = ()) -> None:
    """Prints the table for 1, 2, 4 and 8 GPUs, as many as are here, each row as soon as it is measured.

    Raises:
        DeviceError: there is one GPU at most.
        StudioError: a measurement failed.
    """
    available = torch.cuda.device_count()
    counts = counts or tuple(count for count in COUNTS if count <= available)
    if len(counts) < 2:
        raise DeviceError("This part compares several GPUs, and there are fewer than two here.", "Use another machine.")
    device = torch.cuda.get_device_name() if available else "CPU"
    write(f"{device}, torch {torch.__version__}, Python {platform.python_version()}")
    size = SMALL_SIZE if is_small else SIZE
    write(f"{size}, one conditioning latent, {TEXT_TOKENS} text tokens, random weights, batch 1 on each GPU")
    write("\n| | GPUs | seconds | efficiency | GiB a GPU | from the velocity of one GPU |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for count in counts:
            if start_processes([folder, *["small"] * is_small], count, module="studio.bench.gpus"):
                raise StudioError(f"The measurement on {count} GPUs failed.", "What it said stands above.")


@dataclass(frozen=True, slots=True)
class _Table:
    """The rows of some processes, of which the first one writes."""

    folder: Path
    """Where one GPU leaves what the others are compared with."""
    processes: Processes
    rows: dict[str, Row] = field(default_factory=dict)

    def add(self, name: str, row: Row) -> None:
        """Writes a row, with the efficiency beside one GPU in the same call; a step of N GPUs learns from N clips."""
        self.rows[name] = row
        if not self.processes.is_main:
            return
        count, of_one = self.processes.count, self.folder / "1.json"
        if count == 1:
            of_one.write_text(json.dumps(self.rows))
        before: Row = json.loads(of_one.read_text())[name.replace("FSDP2", "DDP")]
        share = 1 if name.startswith("LoRA") else count
        efficiency = before["seconds"] / (share * row["seconds"])
        error = f"{row['error']:.1e}" if "error" in row else ""
        write(f"| {name} | {count} | {row['seconds']:.3f} | {efficiency:.1%} | {row['gib']:.1f} | {error} |")


def _measure(folder: Path, *, is_small: bool) -> None:
    """What one of the processes does."""
    with joined() as processes:
        device = resolve_device("auto")
        size = SMALL_SIZE if is_small else SIZE
        torch.manual_seed(0)
        dit = small_transformer(device, torch.float32) if is_small else random_transformer(device)
        table, around = _Table(folder, processes), dict[str, float]()
        for name, prepare in ATTENTIONS:
            table.add(f"LoRA step, {name}, DDP", _time_step(dit, prepare, size, processes))
            dit.set_ulysses(Ulysses(processes.rank, processes.count) if processes.count > 1 else None)
            prepare(dit)
            around[name], row = _time_denoising(dit, size, processes, folder / f"{name}.safetensors")
            table.add(f"denoising step of two prompts, {name}", row)
            dit.set_ulysses(None)
        decoded = _time_decoding(device, size, is_small=is_small)
        for name, cached in around.items():
            row = table.rows[f"denoising step of two prompts, {name}"]
            whole = {"seconds": cached + STEPS * row["seconds"] + decoded, "gib": row["gib"]}
            table.add(f"a video of {STEPS} such steps, decoded, {name}", whole)
        if processes.count > 1:
            shard(dit, ModelConfig(), device, processes.count)
            for name, prepare in ATTENTIONS:
                table.add(f"LoRA step, {name}, FSDP2", _time_step(dit, prepare, size, processes))


def _time_step(dit: LongCatVideoTransformer3DModel, prepare: Prepare, size: Bucket, processes: Processes) -> Row:
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
) -> tuple[float, Row]:
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


def _figures(call: Callable[[], object], repeats: int) -> Row:
    timing = measure(call, repeats)
    return {"seconds": timing.seconds, "gib": timing.peak_bytes / 2**30}


if __name__ == "__main__":
    _measure(Path(sys.argv[1]), is_small="small" in sys.argv[2:])
