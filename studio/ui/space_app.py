"""The Space: one page on which visitors set a start frame in motion. It trains nothing, knows no path, keeps no file.

An app of its own, without the rooms of the local one: what is not built here, nobody can ask for.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from starlette.middleware import Middleware

from studio.core.assets import TINY, asset_path
from studio.core.config import PUBLISHED_MODEL, ModelConfig
from studio.core.data.decode import read_image
from studio.core.data.shapes import EFFECT
from studio.core.errors import StudioError
from studio.core.events import SampleEvent
from studio.core.model.flow import Schedule
from studio.core.model.load import ModelBundle, load_bundle
from studio.core.model.lora import LoraFile
from studio.core.sample.request import DISTILLED_STEPS, SampleRequest
from studio.core.sample.sampler import sample
from studio.ui import markup
from studio.ui.guard import CheckedCalls, RoomForUploads, SmallRequestsOnly
from studio.ui.settings import DEMO
from studio.ui.space_render import MAX_SECONDS, Sampler, updates
from studio.ui.theme import CSS, HEAD, studio_theme
from studio.view.words import LANGUAGES, Language, Words, words

MAX_PROMPT = 2000
"""Characters."""
MAX_WAITING = 8
"""Visitors in the queue; one render at a time."""
KEPT_SECONDS = 1800
"""Uploads and videos are deleted after that."""
SWEEP_SECONDS = 300
MAX_CALL = 2**20
"""Bytes: files are uploaded before."""
LEAST_ROOM = 2 * 2**30
"""Bytes of the disk that uploads leave free, for videos among others."""

EXAMPLE_MOTIONS = ("moves right", "swings left and back", "grows", "moves down")

PLAY_BOTH = """
() => document.querySelectorAll('#players video').forEach((video) => { video.currentTime = 0; video.play(); })
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """What a visitor may ask for."""

    model: ModelConfig
    schedule: Schedule | None = None
    max_frames: int
    max_steps: int
    max_megabytes: int
    """Of an upload."""


ON_CPU = Offer(model=ModelConfig(source=TINY, device="cpu"), max_frames=33, max_steps=30, max_megabytes=20)
ON_GPU = Offer(
    model=ModelConfig(source=PUBLISHED_MODEL, device="cuda"),
    schedule="distilled",
    max_frames=93,
    max_steps=DISTILLED_STEPS,
    max_megabytes=200,
)
"""Room for a LoRA of the published model; a visitor's free minutes allow for no more than the distilled steps."""


def launch(*, port: int | None = None) -> None:
    """Serves the Space until it is interrupted, on the host and port that Hugging Face names, else on this machine."""
    spaces = _spaces()
    offer = ON_GPU if torch.cuda.is_available() else ON_CPU
    with tempfile.TemporaryDirectory(prefix="longcat-space-") as folder:
        uploads = Path(folder) / "gradio"
        os.environ["GRADIO_TEMP_DIR"] = str(uploads)
        bundle = load_bundle(offer.model)

        def sampler(request: SampleRequest, out: Path) -> Iterator[SampleEvent]:
            end = time.monotonic() + MAX_SECONDS
            yield from sample(request, bundle, out, should_stop=lambda: time.monotonic() > end)

        lent = spaces.GPU(sampler, duration=gpu_seconds) if spaces else sampler
        build_space(offer, bundle, lent, Path(folder)).launch(
            server_port=port,
            share=False,
            quiet=True,
            theme=studio_theme(),
            css_paths=[*CSS, Path(__file__).with_name("space.css")],
            head=HEAD,
            max_file_size=f"{offer.max_megabytes}mb",
            blocked_paths=[os.path.realpath(os.curdir)],
            footer_links=[],
            show_error=False,
            run_history=False,
            ssr_mode=False,
            enable_monitoring=False,
            mcp_server=False,
            app_kwargs={
                "middleware": [
                    Middleware(SmallRequestsOnly, most=(offer.max_megabytes + 1) * 2**20),
                    Middleware(RoomForUploads, folder=uploads, least=LEAST_ROOM, seconds=KEPT_SECONDS),
                    Middleware(CheckedCalls, most=MAX_CALL),
                ]
            },
        )


def build_space(offer: Offer, bundle: ModelBundle, sampler: Sampler, folder: Path) -> gr.Blocks:
    """The page in each language; videos are written below `folder` until they are sent."""
    first, *others = LANGUAGES
    with gr.Blocks(
        title=words(first)("app.name"), analytics_enabled=False, delete_cache=(SWEEP_SECONDS, KEPT_SECONDS)
    ) as app:
        _build_page(offer, bundle, sampler, folder, words(first))
    for language in others:
        with app.route(LANGUAGES[language], language, show_in_navbar=False):
            _build_page(offer, bundle, sampler, folder, words(language))
    app.queue(max_size=MAX_WAITING, default_concurrency_limit=1, api_open=False)
    return app


def gpu_seconds(request: SampleRequest, out: Path) -> int:
    """How long a GPU of Hugging Face is asked for.

    At 480x832 a forward of 24 latent frames takes 3.3 s on an H200, of which attention, which grows with the square,
    takes 2.0 (DESIGN.md, "full size"); a quarter is added for slower cards, and half a minute for the rest.
    """
    share = (1 + ((request.num_frames or ON_GPU.max_frames) - 1) / 4) / 24
    steps = request.num_inference_steps or DISTILLED_STEPS
    return round(30 + 1.25 * steps * (1.3 * share + 2.0 * share**2))


def _spaces() -> Any:
    """The package of Hugging Face's shared GPUs, where it is installed; imported before anything uses CUDA."""
    try:
        import spaces  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return spaces


def _build_page(offer: Offer, bundle: ModelBundle, sampler: Sampler, folder: Path, w: Words) -> None:
    is_tiny = offer.schedule is None
    defaults = bundle.defaults
    links = _language_links(w.language)
    gr.HTML(markup.header(w, _chips(offer, bundle, w), links, w("space.tagline")), elem_id="header")
    with gr.Row(elem_classes="head-row"):
        status = gr.HTML(markup.note(w("space.tiny") if is_tiny else w("space.published")), elem_id="sample-status")
        with gr.Column(scale=0, min_width=304):
            start = gr.Button(w("sample.render"), variant="primary", elem_id="render")
            cancel = gr.Button(w("sample.cancel"), variant="stop", visible=False, elem_id="cancel")
    with gr.Row(elem_classes="main-row space-row"):
        with gr.Column(scale=2, min_width=320, elem_classes="side"):
            frame = gr.Image(
                label=w("sample.start_frame"), type="filepath", image_mode=None, height=240,
                sources=["upload", "clipboard"], buttons=[], elem_id="start-frame",
            )  # fmt: skip
            prompt = gr.Textbox(
                label=w("sample.prompt"), placeholder=w("sample.prompt_hint"), lines=2, max_length=MAX_PROMPT,
                elem_id="prompt",
            )  # fmt: skip
            examples = gr.Examples(
                demo_pairs(), [frame, prompt], label=w("space.examples"), examples_per_page=8, api_visibility="private",
                elem_id="examples",
            )  # fmt: skip
            # gradio would sweep them away with what visitors upload, and the page would have none.
            frame.keep_in_cache.update(sample[0]["path"] for sample in examples.dataset.samples)
            with gr.Accordion(w("sample.more"), open=False):
                frames = gr.Slider(
                    5, offer.max_frames, min(defaults.num_frames, offer.max_frames), step=4, label=w("sample.frames"),
                    elem_id="sample-frames",
                )  # fmt: skip
                steps = gr.Slider(
                    1, offer.max_steps, min(defaults.num_inference_steps, offer.max_steps), step=1,
                    label=w("sample.steps"), visible=is_tiny, elem_id="sample-steps",
                )  # fmt: skip
                seed = gr.Number(0, label=w("sample.seed"), precision=0, minimum=0, elem_id="sample-seed")
            with gr.Accordion(w("space.lora"), open=False):
                gr.HTML(markup.note(w("space.lora_note", megabytes=offer.max_megabytes)))
                lora = gr.File(show_label=False, file_types=[".safetensors"], height=128, elem_id="lora-file")
                strength = gr.Slider(0, 2, 1, step=0.05, label=w("sample.strength"))
            gr.HTML(markup.note(w("space.kept", minutes=KEPT_SECONDS // 60)))
        with gr.Column(scale=3, min_width=320):
            stage = gr.HTML(markup.empty_state(w("sample.empty")))
            with gr.Row(elem_id="players"):
                players: dict[str, Any] = {
                    "interactive": False, "visible": False, "loop": True, "autoplay": True, "buttons": ["download"],
                    "height": 400,
                }  # fmt: skip
                without = gr.Video(label=w("space.video"), elem_id="without", **players)
                with_lora = gr.Video(label=w("sample.with"), elem_id="with", **players)
            both = gr.Button(w("sample.play_both"), size="sm", visible=False)

    def render(*values: Any) -> Iterator[Any]:
        yield from updates(lambda: asked(values, offer, w), sampler, folder, w)

    def stop() -> list[Any]:
        return [markup.note(w("sample.cancelled")), gr.update(visible=True), gr.update(visible=False)]

    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    rendered = start.click(
        render, [frame, prompt, lora, strength, frames, steps, seed],
        [status, without, with_lora, both, stage, start, cancel],
        # What is sent is read here, with limits of our own, and answered with sentences of our own.
        preprocess=False, concurrency_id="gpu", concurrency_limit=1, **quiet,
    )  # fmt: skip
    cancel.click(stop, None, [status, start, cancel], cancels=[rendered], queue=False, **quiet)
    both.click(None, None, None, js=PLAY_BOTH)


def demo_pairs() -> list[list[str]]:
    """(start frame, prompt) of examples: shapes of the demo, each with a motion that the tiny checkpoint knows."""
    frames = sorted((asset_path(DEMO) / "val/start_frames").glob("*.png"))
    captions = (frame.parents[1] / "clips" / f"{frame.stem}.txt" for frame in frames)
    texts = (caption.read_text(encoding="utf-8").strip() for caption in captions)
    examples = zip(frames, texts, EXAMPLE_MOTIONS, strict=True)
    return [[str(frame), text.replace(EFFECT, motion)] for frame, text, motion in examples]


def asked(values: Sequence[Any], offer: Offer, w: Words) -> SampleRequest:
    """What the page, or whoever speaks in its place, asks for, within the offer. Raises StudioError."""
    frame, text, lora, strength, frames, steps, seed = values
    if not isinstance(frame, dict) or not frame.get("path"):
        raise StudioError(w("sample.no_frame"), w("space.no_frame_remedy"))
    if not isinstance(text, str) or not text.strip():
        raise StudioError(w("sample.no_prompt"), w("sample.no_prompt_remedy"))
    loras = ()
    if isinstance(lora, dict) and lora.get("path"):
        loras = (LoraFile(path=Path(lora["path"]), strength=_number(strength, 0, 2, w)),)
    is_free = offer.schedule is None
    return SampleRequest(
        prompt=text.strip()[:MAX_PROMPT],
        start_frame=read_image(Path(frame["path"])),
        num_frames=5 + int(_number(frames, 5, offer.max_frames, w) - 5) // 4 * 4,
        num_inference_steps=int(_number(steps, 1, offer.max_steps, w)) if is_free else offer.max_steps,
        schedule=offer.schedule,
        seed=int(_number(seed or 0, 0, 2**53, w)),
        loras=loras,
    )


def _number(value: Any, least: float, most: float, w: Words) -> float:
    """The number, brought between both. Raises StudioError: it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -math.inf <= value <= math.inf:
        raise StudioError(w("space.no_number"), w("space.no_number_remedy"))
    return min(most, max(least, value))


def _chips(offer: Offer, bundle: ModelBundle, w: Words) -> list[tuple[str, str]]:
    return [
        (w("chip.model"), bundle.source),
        (w("chip.device"), bundle.device.type.upper()),
        (w("space.limit"), w("space.limit_frames", frames=offer.max_frames)),
    ]


def _language_links(here: Language) -> list[tuple[str, str, str, bool]]:
    """(code, name, address, is this one) of every language; relative, wherever the Space is served."""
    first = next(iter(LANGUAGES))
    return [(code, name, "./" if code == first else f"./{code}", code == here) for code, name in LANGUAGES.items()]
