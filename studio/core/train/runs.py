"""What can be done with runs that lie in a folder: compared, continued elsewhere, exported, deleted."""

from __future__ import annotations

import csv
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from studio.core.config import RunConfig
from studio.core.config_json import run_config_to_json
from studio.core.errors import CheckpointError, ConfigError, StudioError
from studio.core.events import CheckpointSaved, HeldOutLoss, SampleSaved, StepDone, encode_event
from studio.core.filelock import is_locked
from studio.core.runlog import CONFIG_FILE, EVENTS_FILE, LOCK_FILE, RunFolder, RunSnapshot, RunState, list_runs
from studio.core.runwatch import RunReader
from studio.core.simpletuner_keys import CONFIG_KEYS, DATASET_KEYS, VIDEO_KEYS, Honoured
from studio.core.train.checkpoint_files import list_checkpoints, verify_checkpoint
from studio.core.train.disk import disk_full, is_full, require_room

RECENT = 50
"""The loss of a run is the mean of this many last steps."""

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
    is_training: bool
    """A process writes it now."""
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
    began: float
    """Unix time in seconds."""
    sample: Path | None
    """The newest sample that is there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointState:
    """A checkpoint as it lies on the disk."""

    step: int
    damage: str
    """What is wrong with it, a sentence; empty: it is whole."""
    num_bytes: int


@dataclass(slots=True)
class RunCache:
    """What is known of runs, read again only once their files have changed."""

    _reader: RunReader = field(default_factory=RunReader)
    _figures: dict[Path, tuple[tuple[Any, ...], RunFigures]] = field(default_factory=dict)
    _checkpoints: dict[Path, tuple[tuple[Any, ...], CheckpointState]] = field(default_factory=dict)

    def figures(self, run: RunFolder) -> RunFigures:
        """As `figures`, anew for new events and another lock; what else comes into the folder is not seen."""
        key = _run_key(run)
        held = self._figures.get(run.path)
        if held is None or held[0] != key:
            held = self._figures[run.path] = (key, figures(run, self.snapshot(run)))
        return held[1]

    def snapshot(self, run: RunFolder) -> RunSnapshot:
        """As `run.snapshot()`; of a run that goes on only what is new is read."""
        return self._reader.snapshot(run)

    def checkpoints(self, run: RunFolder) -> tuple[CheckpointState, ...]:
        """As `checkpoints_of`, a checkpoint anew when one of its files has another size or time."""
        found = (self._checkpoint(path) for path in reversed(list_checkpoints(run.path / "checkpoints")))
        return tuple(checkpoint for checkpoint in found if checkpoint)

    def _checkpoint(self, path: Path) -> CheckpointState | None:
        try:
            key = tuple(sorted((file.name, *_file_key(file)) for file in path.iterdir()))
        except (FileNotFoundError, NotADirectoryError):
            # The run that lives has pruned it, or it is no folder.
            return None
        held = self._checkpoints.get(path)
        if held is None or held[0] != key:
            held = self._checkpoints[path] = (key, _checkpoint_state(path))
        return held[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplePair:
    """What two runs made of one start frame."""

    name: str
    first: SampleSaved
    second: SampleSaved
    is_alike: bool
    """The same picture, prompt and settings; False: only the name is the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A setting in which two runs differ."""

    key: str
    """In SimpleTuner's words, `<dataset id>.<key>` for one of a dataset."""
    first: Any
    second: Any
    """None where a run has no such setting."""


def figures(run: RunFolder, snapshot: RunSnapshot | None = None) -> RunFigures:
    """What a run has come to; `snapshot` is what its folder says, where that is known already."""
    snapshot = snapshot or run.snapshot()
    losses = [loss for _, loss in snapshot.losses[-RECENT:]]
    held_out = snapshot.held_out[-1] if snapshot.held_out else None
    return RunFigures(
        name=run.name,
        state=snapshot.state,
        is_training=is_locked(run.path / LOCK_FILE),
        step=snapshot.step,
        num_steps=snapshot.num_steps,
        loss=fmean(losses) if losses else None,
        held_out=held_out.loss if held_out else None,
        held_out_of_base=held_out.loss / held_out.base_loss if held_out and held_out.base_loss else None,
        seconds=sum(step.seconds for step in snapshot.steps),
        num_samples=len(snapshot.samples),
        num_checkpoints=len(list_checkpoints(run.path / "checkpoints")),
        num_bytes=size_on_disk(run.path),
        began=_began(run),
        sample=next((file for s in reversed(snapshot.samples) if (file := sample_file(run, s))), None),
    )


def find_run(output_dir: Path, name: str, *, is_whole: bool = False) -> RunFolder:
    """The run of that name; a beginning of it will do where no other run begins so, unless `is_whole`.

    Raises ConfigError.
    """
    runs = list_runs(output_dir)
    found = [run for run in runs if run.name == name]
    if not found and name and not is_whole:
        found = [run for run in runs if run.name.startswith(name)]
    if len(found) != 1:
        what = "begins several runs" if found else "is no run"
        raise ConfigError(f"{name[:80]} {what} in {output_dir}.", "Take a name of the list.")
    return found[0]


def sample_file(run: RunFolder, sample: SampleSaved) -> Path | None:
    """The video of a sample; None where it is gone, or is no file of the run."""
    file = (run.path / sample.path).resolve()
    return file if file.is_file() and file.is_relative_to(run.path.resolve()) else None


def size_on_disk(folder: Path) -> int:
    """Bytes of all files in it; those that go meanwhile are not counted."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += Path(place, name).stat().st_size
    return total


def checkpoints_of(run: RunFolder) -> tuple[CheckpointState, ...]:
    """The checkpoints of a run, newest first, each with its files read and compared with their sums."""
    return tuple(_checkpoint_state(path) for path in reversed(list_checkpoints(run.path / "checkpoints")))


def side_by_side(first: RunFolder, second: RunFolder) -> tuple[SamplePair, ...]:
    """Samples that both runs rendered of a start frame: after the last step that both rendered it at, else the newest
    of each.
    """
    ours, theirs = (_samples_by_name(run) for run in (first, second))
    pairs = []
    for name in (name for name in ours if name in theirs):
        common = max(ours[name].keys() & theirs[name].keys(), default=None)
        steps = (common, common) if common is not None else (max(ours[name]), max(theirs[name]))
        pair = ours[name][steps[0]], theirs[name][steps[1]]
        is_alike = Path(pair[0].base).name == Path(pair[1].base).name
        pairs.append(SamplePair(name=name, first=pair[0], second=pair[1], is_alike=is_alike))
    return tuple(pairs)


def differences(first: RunConfig, second: RunConfig) -> tuple[Difference, ...]:
    """The settings in which two configurations differ, in the order of their keys."""
    before, after = settings_of(first), settings_of(second)
    keys = sorted(before.keys() | after.keys())
    return tuple(
        Difference(key=key, first=before.get(key), second=after.get(key))
        for key in keys
        if before.get(key) != after.get(key)
    )


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Every setting of a run by its key, in SimpleTuner's words, as `differences` names them."""
    names = {rule.field: key for key, rule in CONFIG_KEYS.items() if isinstance(rule, Honoured)}
    of_dataset = {rule.field: key for key, rule in DATASET_KEYS.items() if isinstance(rule, Honoured)} | {
        rule.field: f"video.{key}" for key, rule in VIDEO_KEYS.items() if isinstance(rule, Honoured)
    }
    found: dict[str, Any] = {}
    for section, value in run_config_to_json(config).items():
        for member, item in value.items() if isinstance(value, dict) else [(section, value)]:
            path = f"{section}.{member}" if isinstance(value, dict) else f"run.{member}"
            if path != "data.datasets":
                found[_NAMES.get(path) or names.get(path) or path.removeprefix("run.")] = item
    for dataset in run_config_to_json(config)["data"]["datasets"]:
        for member, item in dataset.items():
            key = of_dataset.get(f"dataset.{member}") or _NAMES.get(member, member)
            found[f"{dataset['id']}.{key}"] = item
    return found


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
        left = doomed if doomed.exists() else run.path
        raise ConfigError(
            f"The run {run.name} cannot be deleted: {error.strerror or error}.", f"Delete the folder {left.name}."
        ) from error


def branch_run(run: RunFolder, step: int) -> RunFolder:
    """A new run that goes on from the checkpoint of `step`: resume it. The old run stays as it is.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
        ConfigError: its configuration cannot be read, or no run can be made here.
        DiskFull: there is no room for it.
    """
    checkpoint = run.path / "checkpoints" / f"step-{step:06d}"
    if not checkpoint.is_dir():
        there = ", ".join(str(int(path.name[5:])) for path in list_checkpoints(checkpoint.parent)) or "none"
        raise CheckpointError(f"The run {run.name} has no checkpoint of step {step}.", f"There are: {there}.")
    verify_checkpoint(checkpoint)
    config, needed, new = run.config(), size_on_disk(checkpoint), None
    kept = [
        encode_event(event, time=time)
        for time, event in run.events()
        if isinstance(event, StepDone | HeldOutLoss) and event.step <= step
    ]
    try:
        require_room("the checkpoint", run.path.parent, needed)
        new = RunFolder.create(run.path.parent, config)
        shutil.copytree(checkpoint, new.path / "checkpoints" / checkpoint.name)
        (new.path / EVENTS_FILE).write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        new.append(CheckpointSaved(step=step, path=f"checkpoints/{checkpoint.name}"))
    except OSError as error:
        if new is not None:
            shutil.rmtree(new.path, ignore_errors=True)
        if is_full(error):
            raise disk_full("the checkpoint", run.path.parent, needed) from error
        what = error.strerror or "the checkpoint cannot be copied"
        raise ConfigError(
            f"No run can be made in {run.path.parent}: {what}.", "Check that the folder and the disk can be written."
        ) from error
    return new


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


def _run_key(run: RunFolder) -> tuple[Any, ...]:
    """Changes with whatever changes the figures of a run."""
    return (*_file_key(run.path / EVENTS_FILE), is_locked(run.path / LOCK_FILE))


def _file_key(path: Path) -> tuple[int, int]:
    """Time and size of a file; zeros where there is none."""
    try:
        state = path.stat()
    except FileNotFoundError:
        return 0, 0
    return state.st_mtime_ns, state.st_size


def _began(run: RunFolder) -> float:
    """Unix time at which the run was made, by its name; of one that was given another name, by its configuration."""
    try:
        return datetime.strptime(run.name[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return _file_key(run.path / CONFIG_FILE)[0] / 1e9


def _checkpoint_state(path: Path) -> CheckpointState:
    try:
        verify_checkpoint(path)
        damage = ""
    except StudioError as error:
        damage = error.message
    return CheckpointState(step=int(path.name[5:]), damage=damage, num_bytes=size_on_disk(path))


def _samples_by_name(run: RunFolder) -> dict[str, dict[int, SampleSaved]]:
    """Samples whose files are there, by the name of their start frame and their step."""
    found: dict[str, dict[int, SampleSaved]] = {}
    for sample in run.snapshot().samples:
        name = re.fullmatch(r"step-\d+-(.+)\.mp4", Path(sample.path).name)
        if name and sample_file(run, sample):
            found.setdefault(name[1], {})[sample.step] = sample
    return found
