"""Draws the demo datasets, `assets/shapes` and `assets/shapes_broken`, from `studio.core.data.shapes`.

    python assets/make_shapes.py

`shapes` holds clips of a motion that the tiny checkpoint does not know, mixed with motions that it does, each with a
start frame and a caption, and a small validation set. `shapes_broken` holds one of each common mistake.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from PIL import Image

from studio.core.data.shapes import BASE_MOTIONS, EFFECT, Scenes, draw_clips, random_scenes, to_uint8

ASSETS = Path(__file__).parent
SIZE = 128
NUM_FRAMES = 17
FPS = 15
SEED = 4242
NUM_EFFECT, NUM_BASE, NUM_VALIDATION = 24, 9, 4

CONFIG = {
    "model_family": "longcat_video",
    "model_flavour": "final",
    "pretrained_model_name_or_path": "tiny",
    "model_type": "lora",
    "train_batch_size": 4,
    "gradient_checkpointing": False,
    "lora_rank": 16,
    "learning_rate": 1.5e-3,
    "max_train_steps": 400,
    "num_train_epochs": 0,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 10,
    "validation_resolution": f"{SIZE}x{SIZE}",
    "validation_num_video_frames": NUM_FRAMES,
    "validation_num_inference_steps": 12,
    "validation_guidance": 2.0,
    "validation_steps": 400,
    "validation_using_datasets": True,
    "eval_dataset_id": "shapes-val",
    "data_backend_config": "multidatabackend.json",
}


def backend(name: str, part: str) -> list[dict[str, object]]:
    """Two entries of `multidatabackend.json`: clips and their start frames."""
    size = {"resolution": SIZE, "resolution_type": "pixel"}
    return [
        {
            "id": name, "type": "local", "dataset_type": "video", "is_i2v": True, "instance_data_dir": f"{part}/clips",
            "caption_strategy": "textfile", **size, "video": {"num_frames": NUM_FRAMES},
            "conditioning_data": [f"{name}-start"],
        },
        {
            "id": f"{name}-start", "type": "local", "dataset_type": "conditioning",
            "instance_data_dir": f"{part}/start_frames", "caption_strategy": None, **size,
        },
    ]  # fmt: skip


def draw(motions: tuple[str, ...], count: int, generator: torch.Generator) -> tuple[Scenes, np.ndarray]:
    """Scenes and their clips, uint8 [B, T, H, W, 3]."""
    scenes = random_scenes(count, height=SIZE, width=SIZE, generator=generator, motions=motions)
    return scenes, to_uint8(draw_clips(scenes, NUM_FRAMES))


def write_clip(path: Path, frames: np.ndarray) -> None:
    """H.264 mp4 of uint8 [T, H, W, 3]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    iio.imwrite(
        path, frames, fps=FPS, codec="libx264", quality=None, macro_block_size=2,
        output_params=["-crf", "12", "-preset", "veryslow", "-movflags", "+faststart"],
    )  # fmt: skip


def write_pairs(folder: Path, scenes: Scenes, clips: np.ndarray, first: int) -> int:
    """Clips, start frames and captions, named by their caption; returns the next number."""
    for offset, (caption, frames) in enumerate(zip(scenes.captions(), clips, strict=True)):
        stem = f"{first + offset:02d}-{caption.removeprefix('a ').replace(' ', '-')}"
        write_clip(folder / "clips" / f"{stem}.mp4", frames)
        (folder / "clips" / f"{stem}.txt").write_text(caption + "\n")
        (folder / "start_frames").mkdir(parents=True, exist_ok=True)
        Image.fromarray(frames[0]).save(folder / "start_frames" / f"{stem}.png", optimize=True)
    return first + len(clips)


def write_json(path: Path, value: object) -> None:
    """Indented JSON."""
    path.write_text(json.dumps(value, indent=2) + "\n")


def make_good(folder: Path) -> None:
    """The demo dataset."""
    generator = torch.Generator().manual_seed(SEED)
    following = write_pairs(folder / "train", *draw((EFFECT,), NUM_EFFECT, generator), first=1)
    for motion in BASE_MOTIONS[:NUM_BASE]:
        following = write_pairs(folder / "train", *draw((motion,), 1, generator), first=following)
    write_pairs(folder / "val", *draw((EFFECT,), NUM_VALIDATION, generator), first=1)
    write_json(folder / "config.json", CONFIG)
    write_json(folder / "multidatabackend.json", backend("shapes-train", "train") + backend("shapes-val", "val"))


def make_broken(folder: Path) -> None:
    """One of each common mistake, and one clip that is right."""
    generator = torch.Generator().manual_seed(SEED + 1)
    scenes, clips = draw(BASE_MOTIONS, 6, generator)
    names = ("right", "no-start-frame", "no-caption", "cut-off", "not-a-video", "too-short")
    part = folder / "train"
    for name, caption, frames in zip(names, scenes.captions(), clips, strict=True):
        write_clip(part / "clips" / f"{name}.mp4", frames[:3] if name == "too-short" else frames)
        (part / "clips" / f"{name}.txt").write_text(caption + "\n")
        (part / "start_frames").mkdir(parents=True, exist_ok=True)
        Image.fromarray(frames[0]).save(part / "start_frames" / f"{name}.png", optimize=True)
    (part / "start_frames" / "no-start-frame.png").unlink()
    (part / "clips" / "no-caption.txt").unlink()
    cut = part / "clips" / "cut-off.mp4"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 2 // 3])
    (part / "clips" / "not-a-video.mp4").write_text("This is a text file.\n")
    Image.fromarray(clips[0][0]).save(part / "start_frames" / "nobody.png", optimize=True)
    config = {**CONFIG, "eval_dataset_id": "shapes-train", "lerning_rate": 1e-4}
    write_json(folder / "config.json", config)
    write_json(folder / "multidatabackend.json", backend("shapes-train", "train"))


def main() -> None:
    """Draws both datasets anew."""
    for name, make in (("shapes", make_good), ("shapes_broken", make_broken)):
        shutil.rmtree(ASSETS / name, ignore_errors=True)
        make(ASSETS / name)


if __name__ == "__main__":
    main()
