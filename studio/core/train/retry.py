"""A run that ran out of memory, or would, once more with the settings that make it fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from studio.core.config import DatasetConfig, RunConfig
from studio.core.config_json import write_run_config
from studio.core.errors import ConfigError
from studio.core.geometry import bucket_size
from studio.core.published_buckets import RESOLUTIONS
from studio.core.remedy import CONFIG_NAME, Setting
from studio.core.runlog import CONFIG_FILE, RunFolder, RunSnapshot
from studio.core.settings_text import changed, field_of
from studio.core.train.learner import MAY_CHANGE
from studio.core.types import Pair


def offered_settings(snapshot: RunSnapshot) -> tuple[Setting, ...]:
    """What would mend a run that is over; empty where there is nothing to mend, or no settings for it."""
    if snapshot.state.is_live:
        return ()
    if snapshot.failure is not None:
        return snapshot.failure.settings
    return snapshot.fit.settings if snapshot.fit is not None and not snapshot.fit.fits else ()


def concrete(settings: Sequence[Setting], config: RunConfig, pairs: Sequence[Pair]) -> tuple[Setting, ...]:
    """The settings with every key of multidatabackend.json under the name of its dataset, `clips.video.num_frames`,
    and sizes as the resolutions that give them, or less, for the clips of `pairs`.

    Raises ConfigError: no resolution gives a size.
    """
    found: list[Setting] = []
    for file, key, value in settings:
        if file == CONFIG_NAME:
            found.append((file, key, value))
            continue
        for dataset in config.data.datasets:
            if dataset.kind != "video":
                continue
            if key == "video.num_frames" and isinstance(value, int) and dataset.num_frames > value:
                found.append((file, f"{dataset.id}.{key}", value))
            elif key == "resolution":
                number = _resolution_for(str(value), dataset, config, pairs)
                found += [(file, f"{dataset.id}.{key}", number)] if number != dataset.resolution else []
    return tuple(found)


def is_same_data(config: RunConfig, other: RunConfig) -> bool:
    """True when both train on datasets of the same names in the same folders."""
    return _places(config) == _places(other)


def _places(config: RunConfig) -> dict[str, Path]:
    return {dataset.id: dataset.directory.resolve() for dataset in config.data.datasets}


def can_continue_with(settings: Sequence[Setting]) -> bool:
    """True when a run may go on from its checkpoint under these settings: they change no loss."""
    return all(file == CONFIG_NAME and field_of(key).startswith(MAY_CHANGE) for file, key, _ in settings)


def change_run(run: RunFolder, settings: Sequence[Setting]) -> None:
    """Writes settings that `can_continue_with` into the configuration of a run, for when it is resumed.

    Raises:
        JobAlreadyRunning: it lives.
        ConfigError: its configuration cannot be read or written.
    """
    config = changed(run.config(), settings)
    unfinished = run.path / f".{CONFIG_FILE}.part"
    try:
        with run.locked():
            write_run_config(unfinished, config)
            unfinished.replace(run.path / CONFIG_FILE)
    except OSError as error:
        raise ConfigError(
            f"{run.name} cannot be written: {error.strerror}.", "Check its folder and the disk."
        ) from error


def _resolution_for(size: str, dataset: DatasetConfig, config: RunConfig, pairs: Sequence[Pair]) -> float:
    """The largest resolution, the present one at most, at which no clip has more pixels than `size`, `352x640`."""
    height, width = map(int, size.split("x"))
    clips = {(p.clip.height, p.clip.width) for p in pairs if p.clip and p.bucket and p.dataset_id == dataset.id}
    alignment, kind = config.data.aspect_bucket_alignment, dataset.resolution_type
    edges = range(int(max(height, width) * 2 // alignment) * alignment, 0, -alignment)
    candidates: Sequence[float] = [edge**2 / 1e6 for edge in edges] if kind == "area" else list(edges)
    candidates = sorted(RESOLUTIONS, reverse=True) if kind == "published" else candidates
    for candidate in (dataset.resolution, *(c for c in candidates if c < dataset.resolution)):
        sizes = (
            bucket_size(*clip, resolution=candidate, resolution_type=kind, alignment=alignment) for clip in clips
        )  # fmt: skip
        if all(high * wide <= height * width for high, wide in sizes):
            return candidate
    raise ConfigError(
        f"No resolution gives {dataset.id} {size} (height x width) or less.", "Lower aspect_bucket_alignment."
    )
