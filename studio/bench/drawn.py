"""Drawn clips on the disk, mp4, start frame and caption beside one another, and projects of them. Of all that reads and
writes videos nothing but PyAV is needed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

from studio.core.data.shapes import EFFECT, draw_clips, random_scenes, to_uint8

FPS = 15


def write_pair(clip: Path, frames: np.ndarray, caption: str, start_frame: np.ndarray | None = None) -> None:
    """Writes `clip`, an mp4 of uint8 [T, H, W, 3] at the quality of the demo's dataset, with its caption and its start
    frame, uint8 [H, W, 3], which is its first frame unless another is given.
    """
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "12", "preset": "veryslow"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    Image.fromarray(frames[0] if start_frame is None else start_frame).save(clip.with_suffix(".png"))
    clip.with_suffix(".txt").write_text(f"{caption}\n", encoding="utf-8")


def write_project(project: Path, **settings: Any) -> Path:
    """A new folder with a project of four clips of 5 frames of 64x64, whose steps take a moment; returns its
    config.json, which has these settings. Projects beside one another share clips and latents.
    """
    clips = project.parent / "clips"
    if not clips.exists():
        _write_clips(clips)
    project.mkdir()
    config = {
        "model_family": "longcat_video", "pretrained_model_name_or_path": "tiny", "model_type": "lora",
        "train_batch_size": 1, "gradient_checkpointing": False, "lora_rank": 8, "learning_rate": 1e-3,
        "num_train_epochs": 0, "validation_using_datasets": False, "output_dir": "runs",
        "data_backend_config": "multidatabackend.json",
    }  # fmt: skip
    dataset = {
        "id": "clips", "type": "local", "dataset_type": "video", "is_i2v": True, "instance_data_dir": str(clips),
        "caption_strategy": "textfile", "resolution": 64, "resolution_type": "pixel", "video": {"num_frames": 5},
        "cache_dir_vae": str(project.parent / "cache"),
    }  # fmt: skip
    (project / "config.json").write_text(json.dumps(config | settings))
    (project / "multidatabackend.json").write_text(json.dumps([dataset]))
    return project / "config.json"


def _write_clips(folder: Path) -> None:
    folder.mkdir(parents=True)
    scenes = random_scenes(4, height=64, width=64, generator=torch.Generator().manual_seed(0), motions=(EFFECT,))
    for index, (frames, caption) in enumerate(zip(to_uint8(draw_clips(scenes, 5)), scenes.captions(), strict=True)):
        write_pair(folder / f"shape_{index}.mp4", frames, caption)
