"""What each of two processes runs for `test_two_processes_sample_as_one.py`: `<folder>` takes the latents."""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from studio.cli import main as command
from studio.core.config import ModelConfig
from studio.core.model.processes import ALONE, joined
from studio.core.sample.parallel import load_together
from studio.core.sample.request import SampleRequest
from studio.core.sample.sampler import frames_of
from tests.two_processes import as_two

START = np.random.default_rng(0).integers(0, 255, (48, 80, 3), np.uint8)
ODD = {"height": 48, "width": 80, "num_frames": 17, "num_inference_steps": 1, "guidance_scale": 3.0, "seed": 3}
"""15 tokens a frame: they do not divide by two."""
TWICE = ODD | {"num_inference_steps": 2}
REQUESTS = {
    "dense": SampleRequest(prompt="a red circle hops", start_frame=START, attention="dense", **TWICE),
    "sparse": SampleRequest(prompt="a red circle hops", start_frame=START, attention="sparse", sparsity=0.5, **ODD),
    "from noise": SampleRequest(prompt="a red circle hops", attention="dense", **ODD),
}


def latents(bundle):
    """The last latents of each request."""
    found = {}
    for name, request in REQUESTS.items():
        steps = frames_of(request, bundle)
        while name not in found:
            try:
                next(steps)
            except StopIteration as end:
                found[name] = end.value.latents.contiguous()
    return found


def load(processes=ALONE):
    return load_together(ModelConfig(source="tiny", device="cpu"), processes)


def main(folder):
    with joined("cpu") as processes:
        save_file(latents(load(processes)), folder / f"{processes.rank}.safetensors")
        size = ["--size", "32x32", "--frames", "5", "--steps", "1"]
        code = command(["sample", "--prompt", "a red circle hops", "--out", str(folder / "video.mp4"), *size])
        assert code == 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    as_two(partial(main, Path(sys.argv[1])))
