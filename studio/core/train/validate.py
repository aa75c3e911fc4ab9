"""Samples while training: the same start frames again and again, under the LoRA as it stands."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from studio.core.config import RunConfig
from studio.core.data.decode import read_image
from studio.core.errors import DatasetError
from studio.core.events import SampleDone, SampleSaved
from studio.core.model.load import ModelBundle
from studio.core.runlog import RunFolder
from studio.core.sample.sampler import SampleRequest, render
from studio.core.types import Pair


def render_samples(
    pairs: Sequence[Pair],
    step: int,
    config: RunConfig,
    folder: RunFolder,
    bundle: ModelBundle,
    should_stop: Callable[[], bool],
) -> Iterator[SampleSaved]:
    """Renders each pair's start frame with its first caption into `samples/step-000100-<name>.mp4`.

    `bundle.lock` is held for one video at a time. A stop leaves out what is not finished.

    Raises:
        MediaError: a start frame cannot be read any more, or the video cannot be written.
    """
    for pair in pairs:
        out = folder.path / "samples" / f"step-{step:06d}-{_file_name(pair)}.mp4"
        request = _request(pair, config)
        with bundle.lock:
            events = list(render(request, bundle, out, should_stop=should_stop))
        if not any(isinstance(event, SampleDone) for event in events):
            return
        yield SampleSaved(step=step, path=out.relative_to(folder.path).as_posix(), prompt=request.prompt)


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


def _file_name(pair: Pair) -> str:
    """The pair's name without what is awkward in a file name."""
    return re.sub(r"[^\w.-]+", "_", pair.name)[:80]
