"""The dial of block-sparse attention in a notebook: which path runs, what it selects, what it costs and saves."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from html import escape
from statistics import fmean

import ipywidgets as widgets
import numpy as np
from IPython.display import display

from studio.core.events import DenoiseStep, SampleEvent
from studio.core.model.attention_speed import time_attention
from studio.core.model.load import ModelBundle
from studio.core.sample.compare import Variant, psnr_by_frame, relative_error, render_variants, sparsity_variants
from studio.core.sample.request import SampleRequest, resolve_settings
from studio.core.sample.sampler import attention_used, frames_of
from studio.view.attention_figures import DialPoint, draw_choice, draw_dial, draw_mass, draw_speed
from studio.view.plots import figure_png
from studio.view.progress import pace
from studio.view.sheets import contact_sheet
from studio.view.words import Language, Words, words


def path_panel(request: SampleRequest, bundle: ModelBundle, *, language: Language = "en") -> widgets.HTML:
    """Which attention this video gets here under each setting, and why. Raises ConfigError."""
    w = words(language)
    size = resolve_settings(request, bundle).size
    grid = bundle.grid.token_grid(size.num_frames, size.height, size.width)
    kept, total = bundle.attention.kept_blocks(grid)
    rows = []
    for setting in ("auto", "dense", "sparse"):
        choice = replace(bundle.attention, setting=setting)
        used = attention_used(replace(bundle, attention=choice), size, 0 if request.start_frame is None else 1)
        runs = setting != "sparse" or choice.refusal is None or bundle.device.type == "cpu"
        reason = used.reason if runs else f"{w('nb.path_refused')} {choice.refusal}"
        rows.append((f"<code>{setting}</code>", escape(w(f"chip.{used.kind}") if runs else "-"), escape(reason)))
    head = w("nb.path_size", size=str(size), tokens=f"{grid.size:,}", total=total, kept=kept, device=str(bundle.device))
    return widgets.HTML(f"<p>{escape(head)}</p>{_table(rows)}")


def choice_panel(
    request: SampleRequest, bundle: ModelBundle, *, layer: int | None = None, language: Language = "en"
) -> widgets.VBox:
    """What the last denoising step selects: the key blocks of the query block in the middle, and each layer's mass.

    `layer` is counted from 1; None: the one that loses most. Raises as `sample`.
    """
    w = words(language)
    sparse = replace(request, attention="sparse", refinement="none", num_segments=1, later_prompts=())
    with bundle.lock, bundle.dit.recorded_attention() as records, closing(frames_of(sparse, bundle)) as events:
        for event in events:
            if isinstance(event, DenoiseStep) and event.step == event.num_steps:
                break
    of_step = records[-len(bundle.dit.blocks) :]
    masses = [record.mass for record in of_step]
    shown = of_step[int(np.argmin(masses)) if layer is None else layer - 1]
    choice = draw_choice(shown.kept_by(shown.middle).numpy(), shown.place_of(shown.middle), w)
    said = w("nb.choice", layer=shown.layer + 1, overlap=f"{100 * shown.overlap:.0f}")
    return widgets.VBox([
        widgets.HTML(escape(said)), _picture(figure_png(choice)),
        widgets.HTML(escape(w("nb.mass"))), _picture(figure_png(draw_mass(masses, w))),
    ])  # fmt: skip


def dial_panel(
    request: SampleRequest,
    bundle: ModelBundle,
    sparsities: Sequence[float],
    *,
    language: Language = "en",
) -> tuple[DialPoint, ...]:
    """Shows the video with dense attention and at each sparsity, of one seed: error, seconds, and the frames.

    It shows its own progress while it renders, and returns the figures. Raises as `sample`.
    """
    w = words(language)
    status, bar = widgets.HTML(), widgets.FloatProgress(max=1.0, layout=widgets.Layout(width="100%", max_width="792px"))
    box = widgets.VBox([status, bar])
    display(box)
    variants = sparsity_variants(request, sparsities)
    done: list[Variant] = []
    for number, variant in enumerate(variants):
        steps = render_variants([variant], bundle)
        for event in _events(steps, done):
            if isinstance(event, DenoiseStep):
                left = event.seconds * (event.num_steps * (len(variants) - number) - event.step)
                parts = (
                    variant[0],
                    w("progress.step", step=event.step, total=event.num_steps),
                    w("progress.speed", seconds=pace(event.seconds, w)),
                    w("progress.left", time=w.duration(left)),
                )
                status.value = escape(" · ".join(parts))
                bar.value = (number + event.step / event.num_steps) / len(variants)
    dense, *sparse = done
    points = [_point(variant, dense, bundle) for variant in sparse]
    rows = [(w("nb.dial_sparsity"), w("nb.dial_blocks"), w("nb.dial_error"), w("nb.dial_psnr"), w("nb.dial_seconds"))]
    rows += [(w("chip.dense"), "", "0", "", w.number(dense.seconds, 2))]
    rows += [_row(point, w) for point in points]
    sheet = contact_sheet([
        (w("chip.dense"), dense.rendered.frames),
        *((w("nb.dial_label", sparsity=variant.label), variant.rendered.frames) for variant in sparse),
    ])  # fmt: skip
    status.value = escape(w("nb.dial", reason=sparse[-1].rendered.attention.reason))
    box.children = (
        status,
        _picture(figure_png(draw_dial(points, dense.seconds, w))),
        widgets.HTML(_table([tuple(map(escape, row)) for row in rows])),
        _picture(figure_png(sheet)),
    )
    return tuple(points)


def speed_panel(bundle: ModelBundle, *, language: Language = "en") -> widgets.VBox:
    """One self-attention dense and sparse on this device, over the length of the video, and what runs it."""
    w = words(language)
    timings = list(time_attention(bundle.attention, bundle.device))
    tokens = [timing.tokens for timing in timings]
    figure = draw_speed(tokens, [t.dense for t in timings], [t.sparse for t in timings], w)
    if bundle.attention.refusal is None:
        said = w("nb.speed_kernel")
    elif bundle.device.type == "cpu":
        said = w("nb.speed_reference", reason=bundle.attention.refusal)
    else:
        said = w("nb.speed_none", reason=bundle.attention.refusal)
    rows = [(w("nb.speed_tokens"), w("chip.dense"), w("chip.sparse"), w("nb.speed_times"))]
    for timing in timings:
        dense = w("nb.ms", ms=w.number(1000 * timing.dense, 1))
        sparse = "-" if timing.sparse is None else w("nb.ms", ms=w.number(1000 * timing.sparse, 1))
        times = "-" if timing.sparse is None else w.number(timing.dense / timing.sparse, 1)
        rows.append((f"{timing.tokens:,}", dense, sparse, times))
    table = _table([tuple(map(escape, row)) for row in rows])
    return widgets.VBox([widgets.HTML(escape(said)), _picture(figure_png(figure)), widgets.HTML(table)])


def _events(
    steps: Generator[SampleEvent, None, tuple[Variant, ...]], done: list[Variant]
) -> Generator[SampleEvent, None, None]:
    """The events of a variant, which is added to `done` at the end."""
    done.extend((yield from steps))


def _point(variant: Variant, dense: Variant, bundle: ModelBundle) -> DialPoint:
    size = resolve_settings(variant.request, bundle).size
    sparsity = variant.request.sparsity or 0.0
    grid = bundle.grid.token_grid(size.num_frames, size.height, size.width)
    return DialPoint(
        sparsity=sparsity,
        kept=replace(bundle.attention, sparsity=sparsity).kept_blocks(grid),
        seconds=variant.seconds,
        error=relative_error(dense, variant),
        psnr=fmean(psnr_by_frame(variant.rendered.frames, dense.rendered.frames)),
    )


def _row(point: DialPoint, w: Words) -> tuple[str, ...]:
    return (
        w.number(point.sparsity, 4).rstrip("0"),
        w("nb.dial_kept", kept=point.kept[0], total=point.kept[1]),
        w.number(100 * point.error, 2),
        w.number(point.psnr, 1),
        w.number(point.seconds, 2),
    )


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    """Cells are HTML."""
    cells = ("".join(f'<td style="padding:2px 16px 2px 0">{cell}</td>' for cell in row) for row in rows)
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def _picture(png: bytes) -> widgets.Image:
    return widgets.Image(value=png, format="png", layout=widgets.Layout(max_width="100%"))
