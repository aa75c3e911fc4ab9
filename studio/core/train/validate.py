"""Samples while training: the same start frames again and again, under the LoRA as it stands, with figures."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import av
import numpy as np

from studio.core.config import RunConfig
from studio.core.data.decode import read_image, resize_frames
from studio.core.data.digest import cache_key
from studio.core.errors import DatasetError, MediaError
from studio.core.events import SampleDone, SamplePhase, SampleSaved
from studio.core.model.load import ModelBundle
from studio.core.model.lora import lora_applied
from studio.core.model.processes import ALONE, Processes
from studio.core.runlog import RunFolder
from studio.core.sample.figures import FROZEN_BELOW, drift, motion, psnr
from studio.core.sample.sampler import SampleRequest, render
from studio.core.types import Pair


def render_samples(
    pairs: Sequence[Pair],
    step: int,
    config: RunConfig,
    folder: RunFolder,
    bundle: ModelBundle,
    *,
    weights: Callable[[], AbstractContextManager[None]],
    should_stop: Callable[[], bool],
    processes: Processes = ALONE,
) -> Iterator[SampleSaved]:
    """Renders each pair's start frame with its first caption into `samples/step-000100-<name>.mp4`, under the weights
    that the adapter has inside `weights()`. Without the adapter it is rendered once a run, to compare with.

    `bundle.lock` is held for one video at a time. A stop leaves out what is not finished. Of several processes, which
    may hold the model in parts, all render and the first one writes.

    Raises:
        MediaError: a start frame cannot be read any more, or the video cannot be written.
    """
    samples = folder.path / "samples"
    for pair in pairs:
        request = _request(pair, config)
        assert request.start_frame is not None
        base = samples / f"base-{_file_name(pair)}-{_key(request)}.mp4"
        out = samples / f"step-{step:06d}-{_file_name(pair)}.mp4"
        if not processes.agree(base.exists()):
            with bundle.lock, lora_applied(bundle.dit, None):
                is_done = _render(request, bundle, base if processes.is_main else None, should_stop)
            if not is_done:
                return
        with bundle.lock, weights():
            is_done = _render(request, bundle, out if processes.is_main else None, should_stop)
        if not is_done:
            return
        if not processes.is_main:
            continue
        frames = _read(out)
        start_frame = resize_frames(request.start_frame, *frames.shape[1:3])
        moved = motion(frames)
        yield SampleSaved(
            step=step,
            path=out.relative_to(folder.path).as_posix(),
            prompt=request.prompt,
            base=base.relative_to(folder.path).as_posix(),
            start_psnr=round(psnr(frames[0], start_frame), 2),
            motion=round(moved, 3),
            is_frozen=moved < FROZEN_BELOW,
            drift=round(drift(frames, _read(base)), 3),
        )


def _render(request: SampleRequest, bundle: ModelBundle, out: Path | None, should_stop: Callable[[], bool]) -> bool:
    """True when the video was rendered, and written where `out` names a file."""
    last = None
    for last in render(request, bundle, out, should_stop=should_stop):  # noqa: B007 the last event tells
        pass
    return isinstance(last, SampleDone) or (out is None and isinstance(last, SamplePhase) and last.name == "decode")


def _read(video: Path) -> np.ndarray:
    """uint8 [T, H, W, 3], as a player shows it."""
    try:
        with av.open(str(video), format="mov") as container:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    except (OSError, ValueError) as error:
        raise MediaError(f"The sample {video.name} cannot be read back: {error}.", "Resume the run.") from error


def _request(pair: Pair, config: RunConfig) -> SampleRequest:
    if pair.start_frame is None:
        raise DatasetError(f"{pair.name} has no start frame to render.", "Add one, or extract the first frame.")
    validation = config.validation
    image = read_image(pair.start_frame.path)
    height, width = validation.resolution or (None, None)
    if height is not None and image.shape[0] > image.shape[1]:
        height, width = width, height
    return SampleRequest(
        prompt=pair.captions[0],
        start_frame=image,
        negative_prompt=validation.negative_prompt,
        height=height,
        width=width,
        num_frames=validation.num_frames,
        num_inference_steps=validation.num_inference_steps,
        guidance_scale=validation.guidance_scale,
        seed=validation.seed,
    )


def _key(request: SampleRequest) -> str:
    """Changes with whatever changes the sample."""
    assert request.start_frame is not None
    image = hashlib.sha256(request.start_frame.tobytes()).hexdigest()
    settings = (request.height, request.width, request.num_frames, request.num_inference_steps, request.guidance_scale)
    return cache_key(image, request.prompt, request.negative_prompt, str(settings), request.seed)[:8]


def _file_name(pair: Pair) -> str:
    """The pair's name without what is awkward in a file name."""
    return re.sub(r"[^\w.-]+", "_", pair.name)[:80]
