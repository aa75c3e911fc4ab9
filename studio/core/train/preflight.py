"""What a run will take and do, told before it starts, from shapes alone: no weights are read."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKLWan
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from torch import nn

from studio.core.assets import TINY
from studio.core.config import RunConfig, hub_id_of
from studio.core.data.bucket import small_buckets
from studio.core.data.dataset import BatchSampler, training_pairs, validation_pairs
from studio.core.errors import ConfigError, StudioError
from studio.core.geometry import GridSpec
from studio.core.model.attention import AttentionUsed
from studio.core.model.dit import LongCatVideoTransformer3DModel
from studio.core.model.load import (
    PARTS,
    SampleDefaults,
    attention_of_video,
    read_defaults,
    resolve_attention,
    resolve_device,
    resolve_dtype,
    resolve_folder,
)
from studio.core.model.lora import LORA_TARGETS, read_lora_shape
from studio.core.model.swap import NUM_SLOTS
from studio.core.runlog import RunFolder, RunSnapshot, list_runs
from studio.core.train.distributed import leaves_idle
from studio.core.train.fit import Fit
from studio.core.train.heldout import held_out_pairs
from studio.core.train.loop import attention_of_run, count_steps
from studio.core.types import Bucket, DatasetReport, Issue, IssueCode, Pair, Severity

NEWEST = 20
"""So many earlier runs are asked how long a step took and whether their latents are there."""
FP32, ADAMW_STATES = 4, 2
"""Bytes of a number in a checkpoint, and how many numbers AdamW keeps for each parameter."""
VIDEO_BYTES = 0.2
"""Of a sample's file, for each pixel of a frame. An estimate from above, for H.264 at crf 14."""
MAX_TOKENS = 512
"""Of a caption that is encoded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DiskUse:
    """Bytes that a run writes, at most at one time; None where the model's shapes are not known yet."""

    cache: int | None
    """Latents and text embeddings; 0 where an earlier run left them."""
    checkpoint: int | None
    """One of them."""
    num_checkpoints: int
    """Kept at one time, the one being written among them."""
    lora: int | None
    samples: int | None
    free: int
    """On the disk of the runs."""

    @property
    def total(self) -> int | None:
        """All of it."""
        parts = (self.cache, self.checkpoint, self.lora, self.samples)
        if any(part is None for part in parts):
            return None
        return (self.cache or 0) + (self.checkpoint or 0) * self.num_checkpoints + (self.lora or 0) + (
            self.samples or 0
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Preflight:
    """What a run would be."""

    num_pairs: int
    num_held_out: int
    """Ready clips that are not trained on."""
    num_errors: int
    """Of the dataset and its configuration."""
    num_steps: int
    num_passes: float
    """How often every clip is seen."""
    seconds_per_step: float | None
    """None until it is measured."""
    pace_from: Literal["fit", "run"] | None
    """A measurement, or an earlier run with the same model, sizes and batches."""
    num_processes: int
    """They share every step, one on each GPU."""
    is_sharded: bool
    """Each holds a part of the base."""
    num_short_sizes: int
    """Sizes of so few clips that one of the processes has none of its own."""
    batch_size: int
    """Clips that one of them puts through the model at once, at most."""
    effective_batch: int
    """Clips that an optimiser step learns from, at most."""
    rank: int
    num_parameters: int | None
    """Of the adapter; None while the model is not on this machine."""
    source: str
    is_here: bool
    """The model is on this machine; else it is fetched when the run starts."""
    device: str | None
    """None where the one that was asked for is not here."""
    dtype: str | None
    base_precision: str
    attention: AttentionUsed | None
    attention_kept: Literal["all", "yes", "no", "measured"]
    """What the backward pass finds of attention: everything is kept, its outputs are, they are computed again, or the
    run measures first whether they fit."""
    disk: DiskUse
    issues: tuple[Issue, ...]
    """Errors block; warnings and notices tell of settings that contradict one another or do nothing."""

    @property
    def is_ok(self) -> bool:
        """True when a run may start."""
        blocked = any(issue.severity is Severity.ERROR for issue in self.issues)
        return self.num_pairs > 0 and self.num_errors == 0 and not blocked

    @property
    def seconds(self) -> float | None:
        """Of all steps, samples aside."""
        return None if self.seconds_per_step is None else self.seconds_per_step * self.num_steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Shapes:
    """A checkpoint without its weights."""

    dit: LongCatVideoTransformer3DModel
    """With the first of its blocks alone: they are all alike."""
    depth: int
    latent_channels: int
    grid: GridSpec
    defaults: SampleDefaults


def preflight(
    config: RunConfig,
    report: DatasetReport,
    *,
    fit: Fit | None = None,
    snapshot: Callable[[RunFolder], RunSnapshot] = RunFolder.snapshot,
) -> Preflight:
    """What a run of `config` on the checked dataset will take; `fit` is what was measured for it, and `snapshot` how
    earlier runs are read.

    Whatever is wrong is an issue.
    """
    issues: list[Issue] = []
    pairs = training_pairs(report, config)
    held_out, sampled = held_out_pairs(report, config), validation_pairs(report, config)
    sampler = BatchSampler(pairs, config.data, config.seed, config.num_processes)
    num_steps = count_steps(config, sampler) if pairs else config.optim.max_train_steps or 0
    shapes = shapes_of(config.model.source, issues)
    device, dtype = _device(config, issues)
    pace, pace_from = _pace(config, fit, snapshot)
    rank = _rank(config, issues)
    num_parameters = None if shapes is None else count_parameters(shapes, rank)
    encoded = tuple(dict.fromkeys((*pairs, *held_out)))
    disk = _disk(config, shapes, pairs, encoded, len(sampled), num_steps, rank, snapshot)
    if disk.total is not None and disk.total > disk.free:
        what = f"The run needs up to {_mb(disk.total)} of disk, and {_mb(disk.free)} are free for {config.output_dir}."
        remedy = "Free some space, choose another output_dir, or lower checkpoints_total_limit."
        issues.append(_issue(IssueCode.VALUE_INVALID, Severity.ERROR, "output_dir", what, remedy))
    if place := _unwritable(config.output_dir):
        what = f"output_dir is {config.output_dir}, and {place} is no folder that may be written to."
        issues.append(_issue(IssueCode.VALUE_INVALID, Severity.ERROR, "output_dir", what, "Choose another folder."))
    depth = shapes and shapes.depth
    issues += _idle(config, num_steps, device, depth, has_held_out=bool(held_out), has_samples=bool(sampled))
    issues += small_buckets(report.pairs, config.data, config.validation.eval_dataset_id)
    passes = num_steps * config.optim.gradient_accumulation_steps / sampler.steps_per_epoch if pairs else 0.0
    return Preflight(
        num_pairs=len(pairs),
        num_held_out=sum(pair.is_ready for pair in report.pairs) - len(pairs),
        num_errors=len(report.errors),
        num_steps=num_steps,
        num_passes=passes,
        seconds_per_step=pace,
        pace_from=pace_from,
        num_processes=config.num_processes,
        is_sharded=config.is_sharded,
        num_short_sizes=sum(
            leaves_idle(clips, config.data.train_batch_size, config.num_processes)
            for clips in sampler.num_clips.values()
        ),
        batch_size=config.data.train_batch_size,
        effective_batch=sampler.batch_size * config.optim.gradient_accumulation_steps,
        rank=rank,
        num_parameters=num_parameters,
        source=config.model.source,
        is_here=shapes is not None,
        device=None if device is None else str(device),
        dtype=None if dtype is None else str(dtype).removeprefix("torch."),
        base_precision=config.model.base_precision,
        attention=_attention(config, shapes, pairs, device, dtype, issues),
        attention_kept=_attention_kept(config, fit, device),
        disk=disk,
        issues=tuple(issues),
    )


def count_parameters(shapes: Shapes, rank: int) -> int:
    """Parameters of an adapter of this rank."""
    modules = shapes.dit.named_modules()
    layers = [m for name, m in modules if isinstance(m, nn.Linear) and re.fullmatch(LORA_TARGETS, name)]
    return shapes.depth * sum(rank * (layer.in_features + layer.out_features) for layer in layers)


def shapes_of(source: str, issues: list[Issue]) -> Shapes | None:
    """The shapes of a checkpoint; None while it is not on this machine, or what is there cannot be read."""
    try:
        folder = _local_folder(source)
        if folder is None:
            return None
        config = json.loads((folder / "dit" / "config.json").read_text())
        vae: Any = AutoencoderKLWan.load_config(folder / "vae")
        with torch.device("meta"):
            dit: Any = LongCatVideoTransformer3DModel.from_config({**config, "depth": 1})
        params = dit.config["bsa_params"] or {}
        time, height, width = params.get("chunk_3d_shape_q") or GridSpec().attention_block
        return Shapes(
            dit=dit,
            depth=config["depth"],
            latent_channels=vae["z_dim"],
            grid=GridSpec(
                temporal_stride=vae.get("scale_factor_temporal", 4),
                spatial_stride=vae.get("scale_factor_spatial", 8),
                patch=dit.patch[1],
                attention_block=(time, height, width),
            ),
            defaults=read_defaults(folder),
        )
    except StudioError as error:
        what, remedy = error.message, error.remedy
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"The checkpoint {source} cannot be read: {(str(error).splitlines() or [type(error).__name__])[0]}."
        remedy = "Copy its folders dit and vae again."
    issues.append(_issue(IssueCode.VALUE_INVALID, Severity.ERROR, "pretrained_model_name_or_path", what, remedy))
    return None


def _local_folder(source: str) -> Path | None:
    """The folder of a checkpoint; None for one of the hub that was not fetched yet. Raises CheckpointError."""
    if source == TINY or Path(source).is_dir():
        return resolve_folder(source)
    try:
        folder = Path(snapshot_download(hub_id_of(source), local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None
    return folder if all((folder / part / name).is_file() for part, name in PARTS.items()) else None


def _device(config: RunConfig, issues: list[Issue]) -> tuple[torch.device | None, torch.dtype | None]:
    try:
        device = resolve_device(config.model.device)
    except StudioError as error:
        issues.append(_issue(IssueCode.VALUE_INVALID, Severity.ERROR, "device", error.message, error.remedy))
        return None, None
    return device, resolve_dtype(config.model.dtype, device)


def _rank(config: RunConfig, issues: list[Issue]) -> int:
    """The rank of the adapter: that of the LoRA to begin with, where there is one."""
    if config.lora.init_from is None:
        return config.lora.rank
    try:
        rank = read_lora_shape(config.lora.init_from).rank
    except StudioError as error:
        issues.append(_issue(IssueCode.VALUE_INVALID, Severity.ERROR, "init_lora", error.message, error.remedy))
        return config.lora.rank
    if rank != config.lora.rank:
        what = f"lora_rank is {config.lora.rank}, but {config.lora.init_from.name}, which training begins with, has "
        issues.append(_warning("lora_rank", f"{what}{rank}: that is taken.", "Delete lora_rank, or init_lora."))
    return rank


def _attention(
    config: RunConfig,
    shapes: Shapes | None,
    pairs: Sequence[Pair],
    device: torch.device | None,
    dtype: torch.dtype | None,
    issues: list[Issue],
) -> AttentionUsed | None:
    if shapes is None or device is None or dtype is None or not pairs:
        return None
    try:
        choice = resolve_attention(config.model.attention, shapes.dit, device, dtype)
    except StudioError as error:
        issues.append(
            _issue(IssueCode.VALUE_INVALID, Severity.ERROR, "attention_mechanism", error.message, error.remedy)
        )
        return None
    return attention_of_run(lambda *size: attention_of_video(choice, shapes.grid, *size), pairs)


def _attention_kept(
    config: RunConfig, fit: Fit | None, device: torch.device | None
) -> Literal["all", "yes", "no", "measured"]:
    model = config.model
    if not (model.gradient_checkpointing or model.blocks_to_swap or model.group_offload):
        return "all"
    if model.keep_attention is not None:
        return "yes" if model.keep_attention else "no"
    if device is None or device.type != "cuda" or config.is_sharded:
        return "no"
    return "measured" if fit is None else "yes" if fit.keeps_attention else "no"


def _pace(
    config: RunConfig, fit: Fit | None, snapshot: Callable[[RunFolder], RunSnapshot]
) -> tuple[float | None, Literal["fit", "run"] | None]:
    """Seconds of a step, and who says so."""
    if fit is not None and fit.seconds_per_step is not None:
        return fit.seconds_per_step * config.optim.gradient_accumulation_steps, "fit"
    for run, other in _earlier(config):
        if _work(other) == _work(config) and (seconds := snapshot(run).seconds_per_step):
            return seconds, "run"
    return None, None


def _earlier(config: RunConfig) -> Iterator[tuple[RunFolder, RunConfig]]:
    """The newest runs beside which this one would lie, and what they were."""
    for run in list_runs(config.output_dir)[:NEWEST]:
        try:
            yield run, run.config()
        except ConfigError:
            continue


def _work(config: RunConfig) -> tuple[object, ...]:
    """What the seconds of a step depend on."""
    sizes = tuple((d.directory.absolute(), d.resolution, d.resolution_type, d.num_frames) for d in config.data.datasets)
    data = (config.data.aspect_bucket_alignment, config.data.framerate, config.data.train_batch_size)
    shared = (config.num_processes, config.is_sharded)
    return config.model, sizes, data, config.optim.gradient_accumulation_steps, shared


def _disk(
    config: RunConfig,
    shapes: Shapes | None,
    pairs: Sequence[Pair],
    encoded: Sequence[Pair],
    num_sampled: int,
    num_steps: int,
    rank: int,
    snapshot: Callable[[RunFolder], RunSnapshot],
) -> DiskUse:
    """Bytes of everything that the run writes; `encoded` are the pairs that are trained on or held out."""
    optim, free = config.optim, shutil.disk_usage(_existing(config.output_dir)).free
    due = _times_due(num_steps, optim.checkpoint_step_interval)
    kept = min(due, optim.checkpoints_total_limit) if optim.checkpoints_total_limit else due
    num_checkpoints = min(due, kept + 1)
    if shapes is None:
        return DiskUse(
            cache=None, checkpoint=None, num_checkpoints=num_checkpoints, lora=None, samples=None, free=free
        )  # fmt: skip
    lora = FP32 * count_parameters(shapes, rank)
    itemsize = resolve_dtype(config.model.dtype, torch.device("cpu")).itemsize
    is_cached = _is_cached(config, len(pairs), snapshot)
    cache = 0 if is_cached else sum(cache_bytes(pair, shapes, itemsize) for pair in encoded)
    return DiskUse(
        cache=cache,
        checkpoint=lora * (1 + ADAMW_STATES + optim.use_ema),
        num_checkpoints=num_checkpoints,
        # For diffusers and for peft.
        lora=2 * lora,
        samples=_sample_bytes(config, shapes.defaults, num_sampled, num_steps),
        free=free,
    )


def cache_bytes(pair: Pair, shapes: Shapes, itemsize: int) -> int:
    """Bytes of a pair's latents, its start frame's, and at most its captions' embeddings of `itemsize` a number."""
    assert pair.bucket is not None
    whole, first = (_latent_numbers(pair.bucket, frames, shapes) for frames in (pair.bucket.num_frames, 1))
    tokens = sum(min(MAX_TOKENS, 1 + len(caption.encode())) for caption in pair.captions)
    return FP32 * (whole + first) + tokens * shapes.dit.config["caption_channels"] * itemsize


def _latent_numbers(bucket: Bucket, num_frames: int, shapes: Shapes) -> int:
    return shapes.latent_channels * shapes.grid.latent_grid(num_frames, bucket.height, bucket.width).size


def _is_cached(config: RunConfig, num_pairs: int, snapshot: Callable[[RunFolder], RunSnapshot]) -> bool:
    """True when an earlier run encoded the same number of clips of the same data with the same model."""

    def source(of: RunConfig) -> tuple[object, ...]:
        return of.model.source, of.model.dtype, of.data.datasets, of.data.aspect_bucket_alignment, of.data.framerate

    folders = {dataset.cache_dir or config.output_dir / "cache" for dataset in config.data.datasets}
    if not all(os.access(folder, os.R_OK | os.X_OK) for folder in folders):
        return False
    for run, other in _earlier(config):
        if source(other) == source(config):
            seen = snapshot(run)
            if seen.steps and seen.num_pairs == num_pairs:
                return True
    return False


def _sample_bytes(config: RunConfig, defaults: SampleDefaults, num_sampled: int, num_steps: int) -> int:
    """Of the samples, those without the LoRA among them."""
    validation = config.validation
    height, width = validation.resolution or (defaults.height, defaults.width)
    pixels = height * width * (validation.num_frames or defaults.num_frames)
    times = 1 + _times_due(num_steps, validation.step_interval)
    return math.ceil(VIDEO_BYTES * pixels) * times * num_sampled


def _times_due(num_steps: int, interval: int) -> int:
    """How often something is due that is done every `interval` steps (0: never) and at the end."""
    return 1 if interval <= 0 else num_steps // interval + (num_steps % interval > 0)


def _idle(
    config: RunConfig,
    num_steps: int,
    device: torch.device | None,
    depth: int | None,
    *,
    has_held_out: bool,
    has_samples: bool,
) -> Iterator[Issue]:
    """Settings that do nothing in this run, or work against one another."""
    optim, model, validation = config.optim, config.model, config.validation
    if optim.lr_warmup_steps >= num_steps > 0 and optim.lr_scheduler != "constant":
        what = f"lr_warmup_steps is {optim.lr_warmup_steps} of {num_steps} steps: the learning rate never gets to"
        yield _warning("lr_warmup_steps", f"{what} {optim.learning_rate:g}.", "Lower it, or train for more steps.")
    if optim.lr_end > optim.learning_rate and not optim.lr_scheduler.startswith("constant"):
        what = f"lr_end is {optim.lr_end:g}, above learning_rate {optim.learning_rate:g}: the rate rises."
        yield _warning("lr_end", what, "Set it below learning_rate.")
    if optim.checkpoint_step_interval > num_steps > 0:
        what = f"checkpoint_step_interval is {optim.checkpoint_step_interval} of {num_steps} steps: there is one"
        yield _notice("checkpoint_step_interval", f"{what} checkpoint, at the end.")
    if has_samples and validation.step_interval > num_steps > 0:
        what = f"validation_step_interval is {validation.step_interval} of {num_steps} steps: samples are rendered"
        yield _notice("validation_step_interval", f"{what} at the end alone.")
    if not has_held_out and validation.eval_step_interval is not None:
        what = "eval_steps_interval does nothing: no clips are held out, or eval_loss_disable is true."
        yield _warning("eval_steps_interval", what, "Name a dataset in eval_dataset_id, or delete the key.")
    if device is not None and device.type == "cpu":
        for key, is_set in (
            ("musubi_blocks_to_swap", model.blocks_to_swap),
            ("enable_group_offload", model.group_offload),
        ):
            if is_set:
                what = f"{key} does nothing here: the model runs in main memory, where its weights are anyway."
                yield _warning(key, what, "Delete it.")
    elif 0 < model.blocks_to_swap <= NUM_SLOTS:
        what = f"musubi_blocks_to_swap {model.blocks_to_swap} saves no memory: {NUM_SLOTS} blocks are on the device"
        yield _warning("musubi_blocks_to_swap", f"{what} anyway.", f"Set it above {NUM_SLOTS}, or to 0.")
    elif depth is not None and model.blocks_to_swap >= depth:
        what = f"musubi_blocks_to_swap is {model.blocks_to_swap}, but the transformer has {depth} blocks:"
        yield _notice("musubi_blocks_to_swap", f"{what} {depth - 1} are swapped.")


def _existing(folder: Path) -> Path:
    """The folder, or what is nearest above it and there."""
    folder = folder.absolute()
    # A Path raises for one that lies in a folder which may not be looked into.
    while not os.access(folder, os.F_OK) and folder != folder.parent:
        folder = folder.parent
    return folder


def _unwritable(folder: Path) -> Path | None:
    """What keeps the folder from being made or written to; None where nothing does."""
    place = _existing(folder)
    return None if place.is_dir() and os.access(place, os.W_OK | os.X_OK) else place


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _warning(key: str, what: str, remedy: str) -> Issue:
    return _issue(IssueCode.KEY_NOT_USED, Severity.WARNING, key, what, remedy)


def _notice(key: str, what: str) -> Issue:
    return _issue(IssueCode.KEY_NORMALISED, Severity.NOTICE, key, what, "")


def _issue(code: IssueCode, severity: Severity, subject: str, message: str, remedy: str) -> Issue:
    return Issue(code=code, severity=severity, subject=subject, message=message, remedy=remedy)
