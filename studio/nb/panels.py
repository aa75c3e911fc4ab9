"""Panels for notebooks: check and sample with the app's words and figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from html import escape
from pathlib import Path

import ipywidgets as widgets
import numpy as np

from studio.core.config import ModelConfig
from studio.core.data.check import check_project
from studio.core.data.decode import read_image
from studio.core.data.mend import offered_mends
from studio.core.errors import StudioError
from studio.core.events import DenoiseStep, SampleDone
from studio.core.model.load import ModelBundle, load_bundle
from studio.core.model.lora import LoraFile
from studio.core.sample.sampler import SampleRequest, sample
from studio.core.simpletuner import Project
from studio.core.types import DatasetReport
from studio.view.clip_facts import clip_facts
from studio.view.plots import draw_buckets, figure_png
from studio.view.sheets import dataset_sheet
from studio.view.verdicts import ICONS, by_gravity, gravest_first, small_buckets, summary_parts
from studio.view.words import Language, Words, words

MAX_FIGURES = 100
"""Clips whose figures a check panel holds."""


def check_panel(path: Path | str, *, language: Language = "en", max_pairs: int = 12) -> widgets.VBox:
    """The check of a project or folder: counts, a sheet of clips with verdicts, what to mend, the buckets."""
    w = words(language)
    try:
        project, report = check_project(Path(path))
    except StudioError as error:
        return widgets.VBox([_failure(error)])
    counts = {bucket: len(pairs) for bucket, pairs in report.by_bucket.items()}
    parts = [
        _summary(report, w),
        _picture(figure_png(dataset_sheet(report, w, max_pairs=max_pairs))),
        widgets.HTML(_shown(report, max_pairs, w)),
    ]
    parts += [
        widgets.HTML(_issues(report, w)),
        widgets.HTML(_figures(report, w)),
        widgets.HTML(_mends(project, report, w)),
    ]
    if counts:
        parts.append(_picture(figure_png(draw_buckets(counts, w, small=small_buckets(report)))))
    return widgets.VBox(parts)


def sample_panel(
    start_frame: np.ndarray | Path | str,
    prompt: str,
    *,
    out: Path | str,
    model: ModelBundle | ModelConfig,
    lora: Path | None = None,
    steps: int | None = None,
    seed: int = 0,
    language: Language = "en",
    show: Callable[[widgets.VBox], object] | None = None,
) -> ModelBundle:
    """Renders without the LoRA and, when one is given, with it; both videos stand side by side.

    The videos are `out`/without.mp4 and `out`/with.mp4. Returns the loaded model, for the next call. Raises
    StudioError.
    """
    w = words(language)
    bundle = model if isinstance(model, ModelBundle) else load_bundle(model)
    picture = start_frame if isinstance(start_frame, np.ndarray) else read_image(Path(start_frame))
    request = SampleRequest(prompt=prompt, start_frame=picture, num_inference_steps=steps, seed=seed)
    bar, players = widgets.IntProgress(value=0), widgets.HBox()
    line = widgets.HTML()
    if show is not None:
        show(widgets.VBox([line, bar, players]))
    passes = [("without", None), *([("with", lora)] if lora else [])]
    for name, adapter in passes:
        label = w(f"sample.{name}")
        loras = () if adapter is None else (LoraFile(path=adapter),)
        for event in sample(replace(request, loras=loras), bundle, Path(out) / f"{name}.mp4"):
            if isinstance(event, SampleDone):
                players.children += (_player(event.path, label),)
                reason = event.attention_reason.rstrip(".")
                kind, seconds = w(f"chip.{event.attention}"), w.number(event.seconds, 1)
                line.value = escape(w("sample.done", attention=kind, reason=reason, seconds=seconds))
                said = [] if event.is_batched else [w("sample.done_one_by_one")]
                line.value += "".join(f"<br>{escape(text)}" for text in (*said, *bundle.notices))
            elif isinstance(event, DenoiseStep):
                bar.max, bar.value = event.num_steps, event.step
    return bundle


def _summary(report: DatasetReport, w: Words) -> widgets.HTML:
    parts = " · ".join(f"{ICONS[kind]} {escape(text)}" for kind, text in summary_parts(report, w))
    return widgets.HTML(f"<h3>{parts}</h3>")


def _issues(report: DatasetReport, w: Words) -> str:
    rows = "".join(
        f"<li><b>{escape(w.verdict(issue))}</b> ({escape(w(f'severity.{issue.severity.value}'))}): "
        f"{escape(issue.message)} <i>{escape(w.mend(issue))}</i></li>"
        for issue in by_gravity(report.all_issues)
    )
    return f"<ul>{rows}</ul>" if rows else f"<p>{escape(w('dataset.no_issue'))}</p>"


def _figures(report: DatasetReport, w: Words) -> str:
    """The figures of every clip, folded away."""
    return "".join(
        f"<details><summary>{escape(pair.name)}</summary><table>"
        + "".join(
            f"<tr><td>{escape(fact.name)}</td><td>{escape(f'{fact.value} {fact.reason}'.strip())}</td></tr>"
            for fact in clip_facts(pair, w)
        )
        + "</table></details>"
        for pair in gravest_first(report)[:MAX_FIGURES]
    ) + _shown(report, MAX_FIGURES, w)


def _shown(report: DatasetReport, most: int, w: Words) -> str:
    """How many of the clips are shown, where that is not all."""
    total = len(report.pairs)
    return f"<p>{escape(w('report.shown', n=most, total=total))}</p>" if total > most else ""


def _mends(project: Project, report: DatasetReport, w: Words) -> str:
    """The mends that would change something, each with the code that chooses it."""
    offer = offered_mends(project, report)
    rows = "".join(
        f"<li>{escape(w(f'mend.kind_{kind}'))} ({len(pairs)}): <code>MendKind.{kind.name}</code></li>"
        for kind, pairs in offer.items()
    )
    if not rows:
        return ""
    code = (
        "plan = plan_mends(project, report, MendChoice(kinds=frozenset({MendKind....})))\nwrite_mends(plan, Path(...))"
    )
    return f"<h4>{escape(w('mend.kinds'))}</h4><ul>{rows}</ul><pre>{escape(code)}</pre>"


def _failure(error: StudioError) -> widgets.HTML:
    return widgets.HTML(f"<p>{ICONS['unreadable']} {escape(error.message)} <b>{escape(error.remedy)}</b></p>")


def _picture(png: bytes) -> widgets.Image:
    return widgets.Image(value=png, format="png")


def _player(path: Path, label: str) -> widgets.VBox:
    video = widgets.Video.from_file(str(path), autoplay=True, loop=True, width=320)
    return widgets.VBox([widgets.HTML(escape(label)), video])
