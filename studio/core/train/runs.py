"""What can be done with runs that lie in a folder: compared, continued elsewhere, exported, deleted."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from studio.core.config import RunConfig
from studio.core.config_json import run_config_to_json
from studio.core.errors import CheckpointError, ConfigError
from studio.core.events import CheckpointSaved, HeldOutLoss, StepDone, encode_event
from studio.core.runlog import EVENTS_FILE, RunFolder, RunState
from studio.core.simpletuner_keys import CONFIG_KEYS, DATASET_KEYS, VIDEO_KEYS, Honoured
from studio.core.train.checkpoint import list_checkpoints, verify_checkpoint

RECENT = 50
"""The loss of a run is the mean of this many last steps."""

MAX_POINTS = 1000

_NAMES = {
    "model.source": "pretrained_model_name_or_path",
    "lora.init_from": "init_lora",
    "validation.eval_dataset_id": "eval_dataset_id",
    "directory": "instance_data_dir",
    "kind": "dataset_type",
    "conditioning_ids": "conditioning_data",
    "cache_dir": "cache_dir_vae",
}
"""Fields that several keys fill, or that are read before they get there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFigures:
    """A run in a row of a table."""

    name: str
    state: RunState
    step: int
    num_steps: int
    loss: float | None
    """Mean of the last steps; None before the first."""
    held_out: float | None
    """The last held-out loss."""
    held_out_of_base: float | None
    """The same as a share of the base model's: below 1 the LoRA has learnt something that holds elsewhere."""
    seconds: float
    """Of all steps that count."""
    num_samples: int
    num_checkpoints: int
    num_bytes: int
    """On the disk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A setting in which two runs differ."""

    key: str
    """In SimpleTuner's words, `<dataset id>.<key>` for one of a dataset."""
    first: Any
    second: Any
    """None where a run has no such setting."""


def figures(run: RunFolder) -> RunFigures:
    """What a run has come to."""
    snapshot = run.snapshot()
    losses = [loss for _, loss in snapshot.losses[-RECENT:]]
    held_out = snapshot.held_out[-1] if snapshot.held_out else None
    return RunFigures(
        name=run.name,
        state=snapshot.state,
        step=snapshot.step,
        num_steps=snapshot.num_steps,
        loss=fmean(losses) if losses else None,
        held_out=held_out.loss if held_out else None,
        held_out_of_base=held_out.loss / held_out.base_loss if held_out and held_out.base_loss else None,
        seconds=sum(step.seconds for step in snapshot.steps),
        num_samples=len(snapshot.samples),
        num_checkpoints=len(list_checkpoints(run.path / "checkpoints")),
        num_bytes=sum(file.stat().st_size for file in run.path.rglob("*") if file.is_file()),
    )


def differences(first: RunConfig, second: RunConfig) -> tuple[Difference, ...]:
    """The settings in which two configurations differ, in the order of their keys."""
    before, after = _by_key(first), _by_key(second)
    keys = sorted(before.keys() | after.keys())
    return tuple(
        Difference(key=key, first=before.get(key), second=after.get(key))
        for key in keys
        if before.get(key) != after.get(key)
    )


def delete_run(run: RunFolder) -> None:
    """Deletes a run with all that it made.

    Raises:
        JobAlreadyRunning: it lives.
        ConfigError: the folder is no run, or cannot be deleted.
    """
    run.config()
    doomed = run.path.with_name(f".{run.name}.deleted")
    try:
        # Its only writer is now here, and what is half deleted is no run any more.
        with run.locked():
            run.path.rename(doomed)
        shutil.rmtree(doomed)
    except OSError as error:
        raise ConfigError(f"The run {run.name} cannot be deleted: {error.strerror}.", "Delete its folder.") from error


def branch_run(run: RunFolder, step: int) -> RunFolder:
    """A new run that goes on from the checkpoint of `step`: resume it. The old run stays as it is.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    checkpoint = run.path / "checkpoints" / f"step-{step:06d}"
    if not checkpoint.is_dir():
        there = ", ".join(str(int(path.name[5:])) for path in list_checkpoints(checkpoint.parent)) or "none"
        raise CheckpointError(f"The run {run.name} has no checkpoint of step {step}.", f"There are: {there}.")
    verify_checkpoint(checkpoint)
    config = run.config()
    new = RunFolder.create(run.path.parent, config)
    shutil.copytree(checkpoint, new.path / "checkpoints" / checkpoint.name)
    kept = [
        encode_event(event, time=time)
        for time, event in run.events()
        if isinstance(event, StepDone | HeldOutLoss) and event.step <= step
    ]
    (new.path / EVENTS_FILE).write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    new.append(CheckpointSaved(step=step, path=f"checkpoints/{checkpoint.name}"))
    return new


def thinned(points: Sequence[tuple[float, float]], limit: int = MAX_POINTS) -> tuple[tuple[float, float], ...]:
    """At most `limit` of the (x, y) points, in their order: of each part the lowest and the highest, and both ends."""
    if len(points) <= limit:
        return tuple(points)
    inner, num_parts = points[1:-1], (limit - 2) // 2
    kept = {0, len(points) - 1}
    for part in range(num_parts):
        places = range(part * len(inner) // num_parts + 1, (part + 1) * len(inner) // num_parts + 1)
        kept |= {min(places, key=lambda i: points[i][1]), max(places, key=lambda i: points[i][1])}
    return tuple(points[i] for i in sorted(kept))


def write_csv(run: RunFolder, file: Path) -> None:
    """Writes the series of a run, a row a step, into a new file.

    Raises:
        ConfigError: the file is there already, or cannot be written.
    """
    snapshot = run.snapshot()
    held_out = {look.step: look for look in snapshot.held_out}
    columns = ("step", "time", "loss", "learning_rate", "grad_norm", "seconds", "peak_bytes", "clips", "clip_losses")
    try:
        with file.open("x", newline="", encoding="utf-8") as out:
            writer = csv.writer(out)
            writer.writerow((*columns, "held_out_loss", "held_out_base_loss"))
            for when, step in zip(snapshot.times, snapshot.steps, strict=True):
                look = held_out.get(step.step)
                writer.writerow(
                    (
                        step.step, when, step.loss, step.learning_rate, step.grad_norm, step.seconds,
                        step.peak_bytes, " ".join(step.clips), " ".join(map(str, step.clip_losses)),
                        look.loss if look else None, look.base_loss if look else None,
                    )
                )  # fmt: skip
    except FileExistsError:
        raise ConfigError(f"{file.name} is there already.", "Give another name; nothing is overwritten.") from None
    except OSError as error:
        raise ConfigError(f"{file.name} cannot be written: {error.strerror}.", "Choose another place.") from error


def _by_key(config: RunConfig) -> dict[str, Any]:
    names = {rule.field: key for key, rule in CONFIG_KEYS.items() if isinstance(rule, Honoured)}
    of_dataset = {rule.field: key for key, rule in DATASET_KEYS.items() if isinstance(rule, Honoured)} | {
        rule.field: f"video.{key}" for key, rule in VIDEO_KEYS.items() if isinstance(rule, Honoured)
    }
    found: dict[str, Any] = {}
    for section, value in run_config_to_json(config).items():
        for field, item in value.items() if isinstance(value, dict) else [(section, value)]:
            path = f"{section}.{field}" if isinstance(value, dict) else f"run.{field}"
            if path != "data.datasets":
                found[_NAMES.get(path) or names.get(path) or path.removeprefix("run.")] = item
    for dataset in run_config_to_json(config)["data"]["datasets"]:
        for field, item in dataset.items():
            key = of_dataset.get(f"dataset.{field}") or _NAMES.get(field, field)
            found[f"{dataset['id']}.{key}"] = item
    return found
