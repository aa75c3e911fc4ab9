"""The documented API: what programs may ask of the app, through `gradio_client` or as MCP tools.

No parameter is a path or an address: a start frame comes as text, a LoRA, a video and a run by their names.
"""

# Without annotations from the future: gradio reads the types of the events.

import asyncio
import re
import tempfile
from base64 import b64decode
from binascii import Error as BadBase64
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import gradio as gr
import numpy as np

from studio.core.data.decode import read_image
from studio.core.errors import ConfigError, StudioError
from studio.core.model.lora import LoraFile
from studio.core.runlog import RunFolder, list_runs
from studio.core.sample.gallery import find_videos, list_videos
from studio.core.sample.queue import EntryState
from studio.core.sample.request import SampleRequest
from studio.core.train.runs import figures, find_run
from studio.ui.train_tab import lora_choices
from studio.ui.workshop import Workshop

MAX_PICTURE = 20 * 2**20
"""Bytes of a start frame, as text."""
MAX_RENDERS = 8
"""Calls of `render` that may wait at a time."""
ASK_SECONDS = 0.2
"""How often a render is asked whether it is done."""
DATA_URL = re.compile(r"data:image/(?:png|jpeg|webp);base64,")
ATTENTIONS = ("dense", "sparse")
SCHEDULES = ("standard", "detailed", "distilled")
RUN_FIGURES = ("name", "is_training", "step", "num_steps", "loss", "held_out", "seconds", "num_samples", "began")
"""Of a run."""
LISTED = ("prompt", "label", "group", "seed", "height", "width", "num_frames", "seconds", "attention")
"""Settings that a list of videos tells."""


def add_api(workshop: Workshop) -> None:
    """Adds the public events to the page that is being built."""

    def gallery() -> Path:
        return workshop.output_dir.absolute() / "samples"

    def video_of(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        (video,) = find_videos(gallery(), [name])
        shown = workshop.shown(video.path)
        return gr.FileData(path=shown, orig_name=video.path.name).model_dump(), dict(video.settings)

    async def render(
        prompt: str,
        start_frame: str = "",
        negative_prompt: str = "",
        lora: str = "",
        strength: float = 1.0,
        frames: int = 0,
        height: int = 0,
        width: int = 0,
        steps: int = 0,
        guidance: float = 0.0,
        seed: int = 0,
        attention: Literal["auto", "dense", "sparse"] = "auto",
        schedule: Literal["auto", "standard", "detailed", "distilled"] = "auto",
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Renders a video and puts it into the gallery; waits its turn, and until it is done. 0: the model's own.

        Parameters:
            prompt: what should happen.
            start_frame: a PNG, JPEG or WebP picture as base64 text or as a data URL; empty: from the prompt alone.
            negative_prompt: what should not be seen.
            lora: the name of a run, one of `loras`; empty: the model as it is.
            strength: of the LoRA; 1 is as trained.
            frames: 4k+1 of them.
            height: in pixels.
            width: in pixels.
            steps: of denoising.
            guidance: how closely the prompt is followed.
            seed: the same one gives the same video.
            attention: dense or block-sparse; auto is as the model was loaded.
            schedule: distilled takes 16 steps, with the published LoRA.
        Returns:
            the video, an mp4 file.
            its settings and figures, its name in the gallery among them.
        """
        with _said():
            request = await asyncio.to_thread(
                _request, workshop, prompt, start_frame, negative_prompt, (lora, strength), (frames, height, width),
                steps, guidance, seed, attention, schedule,
            )  # fmt: skip
            name = await _rendered(workshop, request)
            file, settings = await asyncio.to_thread(video_of, name)
            return file, {"name": name, **settings}

    def loras() -> list[str]:
        """Lists the LoRAs that `render` takes: names of runs, the newest first."""
        with _said():
            return [name for name, _ in lora_choices(workshop)]

    def videos() -> list[dict[str, Any]]:
        """Lists the videos of the gallery, the newest first: name, prompt, seed, size and so on."""
        with _said():
            return [
                {"name": video.name} | {key: video.settings[key] for key in LISTED if key in video.settings}
                for video in list_videos(gallery())
            ]

    def video(name: str) -> dict[str, Any]:
        """Gives a video of the gallery.

        Parameters:
            name: one that `videos` gives.
        Returns:
            the video, an mp4 file.
        """
        with _said():
            return video_of(_text("name", name))[0]

    def settings_of(name: str) -> dict[str, Any]:
        """Tells the settings that a video of the gallery was rendered with, and its figures.

        Parameters:
            name: one that `videos` gives.
        """
        with _said():
            return video_of(_text("name", name))[1]

    def runs() -> list[dict[str, Any]]:
        """Lists the training runs, the newest first: name, state, steps and losses."""
        with _said():
            return [_run(run) for run in list_runs(workshop.output_dir)]

    def run(name: str) -> dict[str, Any]:
        """Tells how far a training run is.

        Parameters:
            name: of a run, or how it begins.
        """
        with _said():
            return _run(find_run(workshop.output_dir, _text("name", name)))

    events: tuple[Callable[..., Any], ...] = (loras, videos, video, settings_of, runs, run)
    for event in events:
        gr.api(event, queue=False, concurrency_limit=None)
    # As an MCP tool it must not be queued: the call would go round through the server, which may ask for a password.
    gr.api(render, queue=False, concurrency_limit=MAX_RENDERS)


def read_picture(text: str) -> np.ndarray:
    """uint8 [H, W, 3] of a PNG, JPEG or WebP as base64 text or a data URL. Raises StudioError."""
    if len(text) > MAX_PICTURE:
        raise ConfigError("The start frame is too large.", f"Send {MAX_PICTURE // 2**20} MB of text at most.")
    try:
        data = b64decode(DATA_URL.sub("", text, count=1), validate=True)
    except (BadBase64, ValueError) as error:
        raise ConfigError(
            "The start frame is no base64 text.", "Send the bytes of a PNG, JPEG or WebP file in base64, or a data URL."
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "start_frame"
        file.write_bytes(data)
        return read_image(file)


def _request(
    workshop: Workshop,
    prompt: Any,
    start_frame: Any,
    negative_prompt: Any,
    lora: tuple[Any, Any],
    size: tuple[Any, Any, Any],
    steps: Any,
    guidance: Any,
    seed: Any,
    attention: Any,
    schedule: Any,
) -> SampleRequest:
    """What a call of `render` asks for; nobody has looked at its values before. Raises StudioError."""
    if not _text("prompt", prompt).strip():
        raise ConfigError("There is no prompt.", "Say what should happen.")
    name, strength = _text("lora", lora[0]), _number("strength", lora[1])
    file = dict(lora_choices(workshop)).get(name) if name else None
    if name and file is None:
        raise ConfigError(f"There is no LoRA {name[:80]}.", "Take a name that loras gives.")
    frames, height, width = (_whole(key, value) for key, value in zip(("frames", "height", "width"), size, strict=True))
    return SampleRequest(
        prompt=prompt.strip(),
        start_frame=read_picture(_text("start_frame", start_frame)) if start_frame else None,
        negative_prompt=_text("negative_prompt", negative_prompt).strip(),
        loras=(LoraFile(path=file, strength=strength),) if file else (),
        num_frames=frames,
        height=height,
        width=width,
        num_inference_steps=_whole("steps", steps),
        guidance_scale=_number("guidance", guidance) or None,
        seed=_whole("seed", seed) or 0,
        attention=_one_of("attention", attention, ATTENTIONS),
        schedule=_one_of("schedule", schedule, SCHEDULES),
    )


async def _rendered(workshop: Workshop, request: SampleRequest) -> str:
    """Name of the video in the gallery, once it is there. Raises StudioError."""
    desk = workshop.desk()
    (entry,) = desk.add([request])
    while True:
        snapshot = await asyncio.to_thread(desk.snapshot)
        at = next((other for other in snapshot.entries if other.id == entry.id), None)
        if at is None or at.state is EntryState.CANCELLED:
            raise ConfigError("The sample was cancelled.", "Ask for it again.")
        if at.state is EntryState.FAILED:
            raise StudioError(at.message, at.remedy)
        if at.state is EntryState.DONE:
            return at.video
        await asyncio.sleep(ASK_SECONDS)


def _run(run: RunFolder) -> dict[str, Any]:
    told = asdict(figures(run))
    return {key: told[key] for key in RUN_FIGURES} | {"state": told["state"].value}


@contextmanager
def _said() -> Iterator[None]:
    """Errors in one sentence for the caller."""
    try:
        yield
    except StudioError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{key} is no text.", "Send a text.")
    return value


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -(2**63) <= value < 2**63:
        raise ConfigError(f"{key} is no number that can be used.", "Send a number.")
    return float(value)


def _whole(key: str, value: Any) -> int | None:
    """None for 0, which means the model's own."""
    number = _number(key, value)
    if not number.is_integer():
        raise ConfigError(f"{key} is {number:g}, no whole number.", "Send a whole number.")
    return int(value) or None


def _one_of(key: str, value: Any, known: Sequence[str]) -> Any:
    """None for `auto`."""
    if value not in ("auto", *known):
        raise ConfigError(f"{key} is {str(value)[:40]!r}.", f"Send one of auto, {', '.join(known)}.")
    return None if value == "auto" else value
