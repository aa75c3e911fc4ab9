"""Prints how good `assets/tiny` and the demo's LoRA are, measured on start frames that neither was trained on.

python assets/measure_tiny.py                       # the checkpoint: start frame, motion, shape and colour, seconds
python assets/measure_tiny.py --lora LORA           # the effect before and after, and the base's own motions after
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from studio.core.config import ModelConfig
from studio.core.data.shapes import (
    BASE_MOTIONS,
    COLORS,
    EFFECT,
    MOTIONS,
    SHAPES,
    draw_background,
    draw_clips,
    random_scenes,
    to_uint8,
    track,
)
from studio.core.model.load import ModelBundle, load_bundle
from studio.core.model.lora import lora_applied
from studio.core.model.vae import decode_latents, encode_video, frames_to_video, video_to_frames
from studio.core.sample.denoise import denoise

HELD_OUT_SEED = 777
"""No training seed: those start at 2026 and are multiplied by a million."""
BATCH = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """Means over the held-out pairs."""

    psnr: float
    """Decoded first frame against the start frame, dB."""
    follows: float
    """Share whose tracked path is that of the caption."""
    keeps: float
    """Share that keep shape and colour."""


@torch.inference_mode()
def measure(bundle: ModelBundle, motions: Sequence[str], count: int) -> Figures:
    """Samples `count` held-out pairs at the checkpoint's defaults and tracks the shape in each."""
    defaults = bundle.defaults
    generator = torch.Generator().manual_seed(HELD_OUT_SEED)
    scenes = random_scenes(count, height=defaults.height, width=defaults.width, generator=generator, motions=motions)
    starts = to_uint8(draw_clips(scenes, 2)[:, :, :1])[:, 0]
    plates = to_uint8(draw_background(scenes).unsqueeze(2))[:, 0]
    grid = bundle.grid.latent_grid(defaults.num_frames, defaults.height, defaults.width)
    captions, names = scenes.captions(), list(COLORS)
    rows = []
    for first in range(0, count, BATCH):
        part = range(first, min(first + BATCH, count))
        held = torch.cat([encode_video(bundle.vae, frames_to_video(starts[i : i + 1]), generator) for i in part])
        noise = torch.randn(len(part), held.shape[1], grid.t, grid.h, grid.w, generator=generator)
        *_, latents = denoise(
            bundle.dit, bundle.scheduler, noise=noise.to(bundle.device), held=held,
            prompt=bundle.prompt_encoder.encode([captions[i] for i in part]),
            negative=bundle.prompt_encoder.encode([""] * len(part)),
            num_steps=defaults.num_inference_steps, guidance_scale=defaults.guidance_scale,
        )  # fmt: skip
        for i, one in zip(part, latents, strict=True):
            frames = video_to_frames(decode_latents(bundle.vae, one[None])[0])
            error = np.square(frames[0].astype(np.float64) - starts[i]).mean()
            seen = track(frames, plates[i])
            follows = seen.follows(MOTIONS[scenes.motion[i]])
            keeps = seen.keeps(names[scenes.color[i]], SHAPES[scenes.shape[i]])
            if not (follows and keeps):
                print(f"  missed: {captions[i]} (motion {'kept' if follows else 'lost'}, "
                      f"shape and colour {'kept' if keeps else 'lost'})")  # fmt: skip
            rows.append((10 * np.log10(255**2 / error), follows, keeps))
    psnr, follows, keeps = np.mean(rows, axis=0)
    return Figures(psnr=float(psnr), follows=float(follows), keeps=float(keeps))


def seconds_of_one_sample(bundle: ModelBundle) -> float:
    """Start frame to decoded frames at the defaults, the second of two."""
    for _ in range(2):
        started = time.perf_counter()
        measure(bundle, ("stays still",), 1)
        seconds = time.perf_counter() - started
    return seconds


def main() -> None:
    """Reads the command line and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lora", type=Path, help="the demo's LoRA")
    parser.add_argument("--count", type=int, default=64)
    arguments = parser.parse_args()
    bundle = load_bundle(ModelConfig(source="tiny"))
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"one sample: {seconds_of_one_sample(bundle):.1f} s")
    rows = [("base, its own motions", BASE_MOTIONS, None), (f"base, {EFFECT}", (EFFECT,), None)]
    if arguments.lora:
        rows += [
            (f"with the LoRA, {EFFECT}", (EFFECT,), arguments.lora),
            ("with the LoRA, base motions", BASE_MOTIONS, arguments.lora),
        ]
    print(f"{'':<30}{'start frame':>14}{'motion':>10}{'shape, colour':>16}   ({arguments.count} held-out pairs)")
    for label, motions, lora in rows:
        with lora_applied(bundle.dit, lora) if lora else nullcontext():
            figures = measure(bundle, motions, arguments.count)
        print(f"{label:<30}{figures.psnr:>11.1f} dB{figures.follows:>10.0%}{figures.keeps:>16.0%}", flush=True)


if __name__ == "__main__":
    main()
