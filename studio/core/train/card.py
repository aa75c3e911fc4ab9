"""The model card of a run's LoRA: what it is, what it was trained on in numbers, what is known of it and what is not.

Source of the front matter: the hub's model card metadata (`huggingface_hub.ModelCardData`), with a LoRA's gallery.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

import av
import numpy as np
from huggingface_hub import ModelCardData
from PIL import Image

from studio.core.config import RunConfig
from studio.core.errors import AdapterError
from studio.core.events import SampleSaved
from studio.core.model.lora import LORA_FILE
from studio.core.runlog import RunFolder, RunSnapshot
from studio.core.sample.figures import FROZEN_BELOW
from studio.core.sample.video import read_settings, read_video
from studio.core.train.disk import make_empty_folder, not_written
from studio.core.train.outcome import without_folders
from studio.core.train.runs import RECENT, sample_file

CARD, VIDEO, PICTURE = "README.md", "sample.mp4", "sample.jpg"

LICENSE = "mit"
"""That of the published model."""
TAGS = ("lora", "longcat-video", "image-to-video")
_COLUMNS = 4
"""Frames of a video in the picture."""
_MARKUP = re.compile(r"[\\`*_{}\[\]()#+!|~$]")
"""What Markdown would take for more than text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sample:
    """The newest sample of a run, with its files."""

    event: SampleSaved
    video: Path
    base: Path | None


def write_card(run: RunFolder, folder: Path) -> tuple[Path, ...]:
    """Writes the card of a run into the new or empty `folder`: README.md, and the newest sample as a video and as a
    picture where there is one. Returns the files.

    Raises:
        AdapterError: the run has no LoRA yet.
        ConfigError: the folder holds something, or cannot be written.
        MediaError: the sample cannot be read.

    Of paths, which the settings in the video may name, only the last name is in them: cards are passed on.
    """
    config, snapshot = run.config(), run.snapshot()
    if snapshot.lora is None or not snapshot.lora.is_file():
        raise AdapterError(f"The run {run.name} has no LoRA yet.", "Stop it, or wait until it ends.")
    sample = _newest_sample(run, snapshot)
    make_empty_folder(folder)
    picture = _picture(sample) if sample else None
    try:
        if sample and picture is not None:
            _copy_video(sample.video, folder / VIDEO)
            Image.fromarray(picture).save(folder / PICTURE, quality=90)
        (folder / CARD).write_text(card_text(run.name, config, snapshot, sample), encoding="utf-8")
    except OSError as error:
        raise not_written(folder, error) from error
    return tuple(file for name in (CARD, VIDEO, PICTURE) if (file := folder / name).is_file())


def card_text(name: str, config: RunConfig, snapshot: RunSnapshot, sample: _Sample | None) -> str:
    """The README.md. What datasets and captions say is escaped: it is text there, never markup."""
    parts = [
        f"---\n{_front_matter(config, sample)}\n---",
        f"# {name}",
        f"A LoRA for image-to-video with {_model(config)}: a start frame and a sentence become a video.",
        *(_sample_section(sample) if sample else ()),
        "## What it was trained on",
        _table(_training_rows(config, snapshot)),
        "## What is known of it",
        *_known(snapshot, sample),
        "## Limits",
        "\n".join(f"- {line}" for line in _limits(snapshot)),
        "## How to use it",
        _usage(config),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(config: RunConfig, sample: _Sample | None) -> str:
    base = config.model.source if _is_on_the_hub(config) else None
    widget: dict[str, Any] = {}
    if sample:
        widget["widget"] = [{"text": sample.event.prompt, "output": {"url": VIDEO}}]
    data = ModelCardData(
        base_model=base, license=LICENSE, pipeline_tag="image-to-video", library_name="diffusers", tags=list(TAGS),
        **({"base_model_relation": "adapter"} if base else {}), **widget,
    )  # fmt: skip
    return data.to_yaml()


def _is_on_the_hub(config: RunConfig) -> bool:
    """True for a hub id; the folder `models/mine` has the form of one."""
    source = config.model.source
    return re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None and not Path(source).is_dir()


def _model(config: RunConfig) -> str:
    source = config.model.source
    if _is_on_the_hub(config):
        return f"[{source}](https://huggingface.co/{source})"
    return f"the checkpoint {_code(Path(source).name)}, which is not on the hub"


def _sample_section(sample: _Sample) -> Iterator[str]:
    yield "<Gallery />"
    shown = "above without the LoRA, below with it, at the same moments" if sample.base else "at four moments"
    yield f"![{shown}]({PICTURE})"
    yield f"The newest sample of the run, after step {sample.event.step}, {shown}: {_code(sample.event.prompt)}."


def _training_rows(config: RunConfig, snapshot: RunSnapshot) -> Iterator[tuple[str, str]]:
    clips = [dataset for dataset in config.data.datasets if dataset.kind == "video" and not dataset.is_eval]
    optim, batch = config.optim, config.data.train_batch_size * config.num_processes
    yield "clips", str(snapshot.num_pairs)
    yield "datasets", ", ".join(_code(dataset.id) for dataset in clips)
    yield "size", ", ".join(dict.fromkeys(f"{d.resolution:g} ({d.resolution_type})" for d in clips))
    yield "frames, at most", ", ".join(dict.fromkeys(str(d.num_frames) for d in clips))
    yield "steps", f"{snapshot.step} of {snapshot.num_steps}"
    yield "clips of a step", str(batch * optim.gradient_accumulation_steps)
    yield "rank", str(config.lora.rank)
    yield "alpha", f"{config.lora.resolved_alpha:g}"
    yield "learning rate", f"{optim.learning_rate:g}, {optim.lr_scheduler}"
    yield "moving average", f"decay {optim.ema_decay:g}" if optim.use_ema else "no"
    yield "precision of the base model", config.model.base_precision
    if snapshot.started:
        yield "device", f"{_code(snapshot.started.device)}, {snapshot.started.dtype}"
        yield "attention", snapshot.started.attention
    yield "seed", str(config.seed)


def _known(snapshot: RunSnapshot, sample: _Sample | None) -> Iterator[str]:
    if snapshot.losses:
        recent = [loss for _, loss in snapshot.losses[-RECENT:]]
        yield f"Loss on the training clips, mean of the last {len(recent)} steps: {fmean(recent):.4f}."
    if look := snapshot.held_out[-1] if snapshot.held_out else None:
        of_base = f", {look.loss / look.base_loss:.3f} of the base model's {look.base_loss:.4f}" * bool(look.base_loss)
        yield (
            f"Loss on {look.num_clips} held-out clip{'s' * (look.num_clips != 1)} after step {look.step}, at fixed "
            f"noise and noise levels: {look.loss:.4f}{of_base}. Below 1 it has learnt something that holds for clips "
            "it was not shown."
        )
    if sample and sample.event.motion is not None:
        event = sample.event
        figures = [f"motion {event.motion:.1f} grey levels"]
        figures += [f"start frame kept at {event.start_psnr:.1f} dB"] if event.start_psnr is not None else []
        figures += [f"{event.drift:.1f} grey levels from the base model's video"] if event.drift is not None else []
        frozen = f" Hardly anything moves in it (below {FROZEN_BELOW:g})." if event.is_frozen else ""
        yield f"The sample: {', '.join(figures)}.{frozen}"


def _limits(snapshot: RunSnapshot) -> Iterator[str]:
    if snapshot.step < snapshot.num_steps:
        yield f"The run ended early, after {snapshot.step} of {snapshot.num_steps} steps."
    if not snapshot.held_out:
        yield "No clips were held out: what it does with clips that it was not trained on was not measured."
    yield "Nobody has judged it but by the figures above; a low loss is no promise of a good video."
    yield "Other sizes, lengths and kinds of pictures than those it was trained on were not tried."
    yield "It knows what its clips show, and inherits what the base model knows, its faults included."


def _usage(config: RunConfig) -> str:
    model = "final" if _is_on_the_hub(config) else Path(config.model.source).name
    return (
        "With LongCat Studio:\n\n```bash\n"
        f'python -m studio sample --model {model} --lora {LORA_FILE} --image start.png --prompt "..." --out video.mp4\n'
        f"```\n\n`{LORA_FILE}` is in the layout of diffusers; `python -m studio runs export` writes others."
    )


def _table(rows: Iterator[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _code(text: str) -> str:
    """Text of the user in one line, as text."""
    plain = escape(" ".join(text.split()), quote=False)
    return f"<code>{_MARKUP.sub(lambda found: f'&#{ord(found[0])};', plain)}</code>"


def _newest_sample(run: RunFolder, snapshot: RunSnapshot) -> _Sample | None:
    for event in reversed(snapshot.samples):
        if video := sample_file(run, event):
            base = (run.path / event.base).resolve() if event.base else None
            is_ours = base is not None and base.is_file() and base.is_relative_to(run.path.resolve())
            return _Sample(event=event, video=video, base=base if is_ours else None)
    return None


def _copy_video(video: Path, copy: Path) -> None:
    """The same frames, with the settings as they may be passed on. Raises OSError."""
    with av.open(str(video), format="mov") as source, av.open(str(copy), "w") as target:
        target.metadata["comment"] = json.dumps(without_folders(read_settings(video)), sort_keys=True)
        frames = source.streams.video[0]
        stream = target.add_stream_from_template(frames)
        for packet in source.demux(frames):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)


def _picture(sample: _Sample) -> np.ndarray:
    """uint8 [H, W, 3]: a row of frames of each video, from the first to the last."""
    rows = []
    for video in (sample.base, sample.video):
        if video is not None:
            frames, _ = read_video(video)
            places = np.linspace(0, len(frames) - 1, _COLUMNS).round().astype(int)
            rows.append(np.concatenate(list(frames[places]), axis=1))
    return np.concatenate([row for row in rows if row.shape == rows[-1].shape], axis=0)
