"""The live panel of samples: a form, the emerging frames, how long it takes still, and the videos side by side."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Literal, cast

import ipywidgets as widgets
from IPython.display import display

from studio.core.config import Attention
from studio.core.errors import JobAlreadyRunning, StudioError
from studio.core.events import DenoiseStep, SampleDone, SampleEvent, SamplePhase
from studio.core.model.load import ModelBundle
from studio.core.sample.compare import attention_variants, lora_variants, strength_variants
from studio.core.sample.desk import compared, preview_steps
from studio.core.sample.gallery import read_gallery_video, sample_into
from studio.core.sample.preview import preview_webp
from studio.core.sample.request import PUBLISHED_NEGATIVE_PROMPT, SampleRequest
from studio.view.judged import figure_facts, title
from studio.view.progress import pace
from studio.view.words import Language, Words, words

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
Comparison = Literal["none", "lora", "strengths", "attention"]
STRENGTHS = (0.5, 1.0, 1.5)
VARIANTS: Mapping[Comparison, Callable[[SampleRequest], list[tuple[str, SampleRequest]]]] = {
    "none": lambda request: [("", request)],
    "lora": lora_variants,
    "strengths": lambda request: strength_variants(request, STRENGTHS),
    "attention": attention_variants,
}
"""The videos of a comparison, labelled."""


def sample_panel(
    request: SampleRequest,
    *,
    model: ModelBundle,
    out: Path | str,
    compare: Comparison = "none",
    language: Language = "en",
) -> SamplePanel:
    """A panel over `request`, whose form may change it: leave it as the last line of a cell.

    Videos go into the gallery `out`, which the app shows too when it is `<runs>/samples`. `compare` renders several of
    one seed: without and with the LoRAs, the first LoRA at three strengths, or with dense and with sparse attention.

    Raises ConfigError: there is no LoRA to compare.
    """
    VARIANTS[compare](request)
    return SamplePanel(request, model, Path(out), compare, words(language))


class SamplePanel:
    """Renders in the background, and shows how it goes."""

    def __init__(
        self, request: SampleRequest, bundle: ModelBundle, folder: Path, compare: Comparison, w: Words
    ) -> None:
        self.request, self.bundle, self.folder = request, bundle, folder
        self.videos: tuple[Path, ...] = ()
        """Of the last rendering, those that are finished."""
        self._w = w
        self._stop, self._thread = threading.Event(), threading.Thread()
        wide, half = widgets.Layout(width="100%", max_width="792px"), widgets.Layout(width="auto", max_width="240px")
        self.prompt = widgets.Textarea(value=request.prompt, description=w("sample.prompt"), layout=wide)
        self.negative = widgets.Textarea(value=request.negative_prompt, description=w("sample.negative"), layout=wide)
        self.published = widgets.Button(description=w("sample.negative_published"), layout=widgets.Layout(width="auto"))
        self.published.on_click(lambda _: setattr(self.negative, "value", PUBLISHED_NEGATIVE_PROMPT))
        self.seed = widgets.IntText(value=request.seed, description=w("sample.seed"), layout=half)
        self.steps = widgets.IntText(
            value=request.num_inference_steps or 0, description=w("sample.steps"), tooltip=w("sample.default_hint"),
            layout=half,
        )  # fmt: skip
        self.guidance = widgets.FloatText(
            value=request.guidance_scale or 0, description=w("sample.guidance"), tooltip=w("sample.default_hint"),
            layout=half, step=0.5,
        )  # fmt: skip
        self.strength = widgets.FloatText(
            value=request.loras[0].strength if request.loras else 1, description=w("sample.strength"), layout=half,
            step=0.1, disabled=not request.loras,
        )  # fmt: skip
        self.attention = widgets.Dropdown(
            options=[(w("nb.attention_loaded"), None), ("auto", "auto"), (w("chip.dense"), "dense"),
                     (w("chip.sparse"), "sparse")],
            value=request.attention, description=w("chip.attention"), layout=half,
        )  # fmt: skip
        kinds = [kind for kind in VARIANTS if request.loras or kind in ("none", "attention")]
        self.compare = widgets.Dropdown(
            options=[(w(f"nb.compare_{kind}"), kind) for kind in kinds], value=compare, description=w("nb.compare"),
            layout=widgets.Layout(width="auto", max_width="360px"),
        )  # fmt: skip
        self.start = widgets.Button(description=w("sample.render"), button_style="primary")
        self.cancel = widgets.Button(description=w("sample.cancel"), disabled=True)
        self.start.on_click(lambda _: self.render())
        self.cancel.on_click(lambda _: self._stop.set())
        self.status = widgets.HTML(escape(w("nb.ready")))
        self.bar = widgets.FloatProgress(max=1.0, layout=wide)
        self.preview = widgets.Image(format="webp", layout=widgets.Layout(max_width="320px", display="none"))
        self.players = widgets.HBox(layout=widgets.Layout(flex_flow="row wrap"))
        row = widgets.Layout(flex_flow="row wrap")
        self.box = widgets.VBox([
            self.prompt, self.negative, self.published,
            widgets.HBox([self.seed, self.steps, self.guidance, self.strength], layout=row),
            widgets.HBox([self.attention, self.compare], layout=row),
            widgets.HBox([self.start, self.cancel]),
            self.status, self.bar, self.preview, self.players,
        ])  # fmt: skip

    def render(self) -> None:
        """Begins with what the form says, and is back at once. Raises JobAlreadyRunning."""
        if self._thread.is_alive():
            raise JobAlreadyRunning(self._w("nb.busy"), self._w("nb.busy_remedy"))
        variants = VARIANTS[cast(Comparison, self.compare.value)](self.asked())
        requests = compared(variants) if len(variants) > 1 else [request for _, request in variants]
        self.videos, self.players.children = (), ()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(requests,), name="samples", daemon=True)
        self.start.disabled, self.cancel.disabled = True, False
        self._thread.start()

    def wait(self) -> tuple[Path, ...]:
        """Waits for the end and returns the videos. Interrupting ends the waiting, not the rendering."""
        try:
            while self._thread.is_alive():
                self._thread.join(POLL_SECONDS)
        except KeyboardInterrupt:
            display(widgets.HTML(escape(self._w("nb.sample_goes_on"))))
        return self.videos

    def asked(self) -> SampleRequest:
        """The request with what the form says."""
        num_steps = self.bundle.defaults.num_inference_steps
        loras = self.request.loras
        if loras:
            loras = (replace(loras[0], strength=self.strength.value), *loras[1:])
        return replace(
            self.request,
            prompt=self.prompt.value,
            negative_prompt=self.negative.value,
            seed=self.seed.value,
            num_inference_steps=self.steps.value or None,
            guidance_scale=self.guidance.value or None,
            attention=cast(Attention | None, self.attention.value),
            loras=loras,
            preview_steps=self.request.preview_steps or preview_steps(self.steps.value or num_steps),
        )

    def _ipython_display_(self) -> None:
        display(self.box)

    def _work(self, requests: list[SampleRequest]) -> None:
        try:
            for number, request in enumerate(requests):
                for event in sample_into(request, self.bundle, self.folder, should_stop=self._stop.is_set):
                    self._show(event, request.label, number, len(requests))
                if len(self.videos) == number:
                    self.status.value = escape(self._w("sample.cancelled"))
                    break
        except StudioError as error:
            self.status.value = f"{escape(error.message)} <b>{escape(error.remedy)}</b>"
        except Exception as error:  # noqa: BLE001 the boundary of the thread: nobody above would say it
            logger.exception("rendering a sample failed")
            self.status.value = escape(f"{type(error).__name__}: {error}")
        finally:
            self.preview.layout.display = "none"
            self.start.disabled, self.cancel.disabled = False, True

    def _show(self, event: SampleEvent, name: str, number: int, total: int) -> None:
        """`number` of the `total` videos are done before this one."""
        w = self._w
        if isinstance(event, SamplePhase) and event.name != "denoise":
            self.status.value = escape(" · ".join(filter(None, (name, w(f"sample.phase_{event.name}")))))
        elif isinstance(event, DenoiseStep):
            steps_left = event.num_steps * (total - number) - event.step
            parts = [
                name,
                w("progress.step", step=event.step, total=event.num_steps),
                w("progress.speed", seconds=pace(event.seconds, w)),
                w("progress.left", time=w.duration(event.seconds * steps_left)),
            ]
            self.status.value = escape(" · ".join(filter(None, parts)))
            self.bar.value = (number + event.step / event.num_steps) / total
            if event.preview is not None:
                self.preview.value = preview_webp(event.preview)
                self.preview.layout.display = ""
        elif isinstance(event, SampleDone):
            self.videos += (event.path,)
            self.players.children += (self._player(event),)
            said = [] if event.is_batched else [w("sample.done_one_by_one")]
            self.status.value = "<br>".join(map(escape, (w("nb.sampled", folder=self.folder), *said)))

    def _player(self, done: SampleDone) -> widgets.VBox:
        w, video = self._w, read_gallery_video(done.path)
        player = widgets.Video.from_file(str(done.path), autoplay=True, loop=True, width=320)
        name = " · ".join(filter(None, (title(video, w), video.name)))
        facts = "".join(f"<br>{escape(key)}: {escape(value)}" for key, value in figure_facts(video, w))
        reason = f"<br>{escape(done.attention_reason)}"
        said = widgets.HTML(f"<b>{escape(name)}</b><small>{facts}{reason}</small>")
        return widgets.VBox([player, said], layout=widgets.Layout(max_width="336px"))
