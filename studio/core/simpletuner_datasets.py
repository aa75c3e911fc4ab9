"""The list of datasets in multidatabackend.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from studio.core.config import DatasetConfig
from studio.core.geometry import bucket_size
from studio.core.jsonc import Document, JsonPath, JsonValue
from studio.core.published_buckets import PUBLISHED_BUCKETS, RESOLUTIONS, UNITS
from studio.core.simpletuner_keys import DATASET_KEYS, SKIPPED_DATASET_TYPES, VIDEO_KEYS
from studio.core.simpletuner_reading import Reading
from studio.core.types import Issue, IssueCode, Severity

_LIFTED = ("is_i2v", "num_frames")
"""Keys of the `video` block that are accepted beside it too; the guide writes `is_i2v` there."""
_EDGES = (16, 4096)
_MEGAPIXELS = (0.0, 17.0)
"""What a resolution can be, in pixels and in megapixels; beyond it the unit was mistaken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Datasets:
    """What a list of datasets holds."""

    datasets: tuple[DatasetConfig, ...]
    eval_ids: tuple[str, ...]
    """Those of dataset_type `eval`."""
    issues: tuple[Issue, ...]
    folder: Path = Path()
    """What relative paths in `items` start from."""
    items: tuple[JsonValue, ...] = ()
    """The list as written."""
    positions: tuple[int, ...] = ()
    """Where in `items` each of `datasets` stands."""
    text: str = ""
    """The file as written."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """One dataset, and where in the document it stands."""

    config: DatasetConfig
    at: JsonPath
    is_eval: bool


def resolve_path(written: str, folder: Path) -> Path:
    """The path as the user meant it: absolute, from the home folder, or relative to `folder`."""
    return folder / (Path(written).expanduser() if written.split("/")[0] == "~" else written)


def read_datasets(document: Document, *, folder: Path, defaults: Mapping[str, Any], alignment: int) -> Datasets:
    """The datasets of a document, which should be a list of objects.

    `folder` is what relative paths start from; `defaults` are fields that config.json sets for all datasets;
    `alignment` is the bucket alignment in pixels, for what is said about resolutions.
    """
    reading = Reading(document)
    if not isinstance(document.value, list):
        what = "a list of datasets in square brackets is expected."
        reading.error((), document.name, what, "Put [ before the first dataset and ] after the last.")
        return Datasets(datasets=(), eval_ids=(), issues=tuple(reading.issues))
    entries: list[_Entry] = []
    for index, item in enumerate(document.value):
        entry = _read_entry(reading, item, index, folder, defaults, {e.config.id for e in entries})
        if entry:
            entries.append(_with_known_resolution(reading, entry, alignment))
    _check_clips(reading, entries)
    return Datasets(
        datasets=tuple(_with_known_references(reading, entry, entries) for entry in entries),
        eval_ids=tuple(entry.config.id for entry in entries if entry.is_eval),
        issues=tuple(reading.issues),
        folder=folder,
        items=tuple(document.value),
        positions=tuple(int(entry.at[0]) for entry in entries),
        text=document.text,
    )


def _read_entry(
    reading: Reading, item: JsonValue, index: int, folder: Path, defaults: Mapping[str, Any], taken: set[str]
) -> _Entry | None:
    """One dataset; None when it is disabled, only names a cache, or lacks what cannot be assumed."""
    at: JsonPath = (index,)
    if not isinstance(item, dict):
        reading.error(at, f"[{index}]", "a dataset in braces is expected.", "Write { ... } around its keys.")
        return None
    identity = item.get("id")
    prefix = f"{identity}." if isinstance(identity, str) and identity.strip() else f"[{index}]."
    outer = {key: value for key, value in item.items() if key not in ("video", *_LIFTED)}
    sections = reading.object(outer, at, DATASET_KEYS, prefix)
    video = _read_video(reading, item, at, prefix)
    settings = sections.get("reader", {})
    if settings.get("disabled"):
        reading.notice(at, prefix.rstrip("."), "this dataset is disabled and left out.")
        return None
    kind = _read_kind(reading, item, at, prefix, settings)
    if kind is None or not _has_directory(reading, item, at, prefix, settings):
        return None
    fields = {**defaults, **sections.get("dataset", {}), **video}
    if kind == "conditioning":
        fields["caption_strategy"] = None
    else:
        _say_defaults(reading, at, prefix, fields)
    if settings.get("only_instance_prompt"):
        fields["caption_strategy"] = "instanceprompt"
    if settings.get("whole_captions"):
        fields["split_captions"] = False
    _check_instance_prompt(reading, at, prefix, fields)
    _check_limits(reading, at, prefix, fields)
    cache = settings.get("cache_dir")
    config = DatasetConfig(
        id=_read_id(reading, item, index, settings, taken),
        kind=kind,
        directory=resolve_path(settings["directory"], folder),
        cache_dir=resolve_path(cache, folder) if cache else None,
        **fields,
    )
    return _Entry(config, at, settings["dataset_type"] == "eval")


def _check_instance_prompt(reading: Reading, at: JsonPath, prefix: str, fields: dict[str, Any]) -> None:
    """Without a prompt there is none to use, or to put before captions."""
    if fields.get("instance_prompt"):
        return
    remedy = "Write the prompt into instance_prompt."
    if fields.get("caption_strategy") == "instanceprompt":
        what = "caption_strategy is instanceprompt, but instance_prompt is empty."
        reading.error(at, f"{prefix}instance_prompt", what, remedy)
        fields["caption_strategy"] = None
    if fields.pop("prepend_instance_prompt", False):
        what = "prepend_instance_prompt is true, but instance_prompt is empty."
        reading.error(at, f"{prefix}instance_prompt", what, remedy)


def _check_limits(reading: Reading, at: JsonPath, prefix: str, fields: dict[str, Any]) -> None:
    """A lower limit above the upper one would leave out every clip."""
    limits = (
        ("min_frames", "max_frames", "video.min_frames", "video.max_frames"),
        ("min_aspect", "max_aspect", "minimum_aspect_ratio", "maximum_aspect_ratio"),
    )
    for low, high, low_key, high_key in limits:
        least, most = fields.get(low), fields.get(high)
        if least is not None and most is not None and least > most:
            what = f"{low_key} is {least:g}, but {high_key} is {most:g}: no clip fits both."
            reading.error(at, prefix + low_key, what, "Correct one of the two.")
            del fields[low]


def _read_video(reading: Reading, item: Mapping[str, JsonValue], at: JsonPath, prefix: str) -> dict[str, Any]:
    """Fields from the `video` block, and from its keys where they are written beside it."""
    beside = reading.object({key: item[key] for key in _LIFTED if key in item}, at, VIDEO_KEYS, prefix)
    block = item.get("video")
    inside = reading.object(block, (*at, "video"), VIDEO_KEYS, f"{prefix}video.") if block is not None else {}
    fields: dict[str, Any] = dict(inside.get("dataset", {}))
    for key in _LIFTED:
        if key not in beside.get("dataset", {}):
            continue
        value = beside["dataset"][key]
        if fields.setdefault(key, value) == value:
            reading.notice((*at, key), prefix + key, f"{key} is taken as if it stood in the video block.")
        else:
            what = f"{key} is {_word(value)} here, but {_word(fields[key])} in the video block."
            reading.error((*at, key), prefix + key, what, "Delete one of the two.")
    return fields


def _word(value: object) -> str:
    return str(value).lower()


def _read_kind(
    reading: Reading, item: Mapping[str, JsonValue], at: JsonPath, prefix: str, settings: Mapping[str, Any]
) -> Literal["video", "conditioning"] | None:
    """What the dataset is for; None, and said why, when it is for nothing here."""
    written, subject = settings.get("dataset_type"), f"{prefix}dataset_type"
    if written == "conditioning":
        return "conditioning"
    if written in ("video", "eval"):
        return "video"
    if written in SKIPPED_DATASET_TYPES:
        what = f"a dataset of type {written} is not needed here and is left out."
        reading.notice((*at, "dataset_type"), subject, what, code=IssueCode.KEY_NOT_USED)
        return None
    remedy = 'Write "video" for clips, or "conditioning" for start frames.'
    if written is None and item.get("dataset_type") is None:
        reading.error(at, subject, "dataset_type is missing.", remedy)
    elif written is not None:
        what = f"dataset_type is {written}, which cannot be trained on here."
        reading.error((*at, "dataset_type"), subject, what, remedy)
    return None


def _has_directory(
    reading: Reading, item: Mapping[str, JsonValue], at: JsonPath, prefix: str, settings: Mapping[str, Any]
) -> bool:
    """True when a folder is named; a wrong value has been told of already."""
    if "directory" not in settings and item.get("instance_data_dir") is None:
        subject = f"{prefix}instance_data_dir"
        reading.error(at, subject, "instance_data_dir is missing.", "Write the folder of the files.")
    return "directory" in settings


def _read_id(
    reading: Reading, item: Mapping[str, JsonValue], index: int, settings: Mapping[str, Any], taken: set[str]
) -> str:
    """The id, or one made up (after an error) so that the rest can still be checked."""
    dataset_id = settings.get("id", f"dataset-{index + 1}")
    if item.get("id") is None:
        reading.error((index,), f"[{index}].id", "id is missing.", "Give the dataset a name of its own.")
    if dataset_id in taken:
        what = f"id {dataset_id} is given to two datasets."
        reading.error((index, "id"), f"{dataset_id}.id", what, "Rename one of the two.")
        dataset_id = f"{dataset_id} ({index + 1})"
    return dataset_id


def _say_defaults(reading: Reading, at: JsonPath, prefix: str, fields: Mapping[str, Any]) -> None:
    """Notices on what a clips dataset leaves open."""
    silent = {
        "num_frames": "video.num_frames is not set: 93 frames are taken",
        "is_i2v": "is_i2v is not set: image-to-video is assumed",
        "caption_strategy": "caption_strategy is not set: captions are text files beside the clips",
        "resolution": "resolution is not set: 480 is taken",
    }
    for key, what in silent.items():
        if key not in fields:
            reading.notice(at, f"{prefix}{'video.' if key == 'num_frames' else ''}{key}", f"{what}.")
    if fields.get("is_i2v", True) and not fields.get("conditioning_ids"):
        what = "conditioning_data is not set: start frames are looked for beside the clips."
        reading.notice(at, f"{prefix}conditioning_data", what)


def _with_known_resolution(reading: Reading, entry: _Entry, alignment: int) -> _Entry:
    """The dataset with sizes that exist: of published ones that do not, the default formula takes the place."""
    config = entry.config
    if config.resolution_type == "published" and config.kind == "video":
        if (config.resolution, alignment) in PUBLISHED_BUCKETS:
            return entry
        reading.error(
            (*entry.at, "resolution_type"),
            f"{config.id}.resolution_type",
            f"resolution_type is published, but there is no published table for resolution {config.resolution:g} and "
            f"aspect_bucket_alignment {alignment}.",
            f"Use resolution {' or '.join(map(str, RESOLUTIONS))}, and as alignment one of "
            f"{', '.join(map(str, UNITS))}.",
        )
        return replace(entry, config=replace(config, resolution_type="pixel_area"))
    _check_resolution(reading, entry, alignment)
    return entry


def _check_resolution(reading: Reading, entry: _Entry, alignment: int) -> None:
    """Refuse a resolution in the wrong unit, and show what an edge off the grid becomes."""
    config, subject = entry.config, f"{entry.config.id}.resolution"
    place = (*entry.at, "resolution")
    is_area = config.resolution_type == "area"
    low, high = _MEGAPIXELS if is_area else _EDGES
    if not low < config.resolution <= high:
        unit = "megapixels" if is_area else "pixels"
        what = f"resolution is {config.resolution:g} {unit}, with resolution_type {config.resolution_type}."
        reading.error(place, subject, what, f"Write {unit} up to {high:g}, or change resolution_type.")
        return
    if is_area or config.resolution % alignment == 0 or config.kind == "conditioning":
        return
    wide, square = (
        bucket_size(
            height,
            width,
            resolution=config.resolution,
            resolution_type=config.resolution_type,
            alignment=alignment,
        )
        for height, width in ((480, 832), (512, 512))
    )
    what = (
        f"resolution {config.resolution:g} is not on the {alignment} px grid: 480x832 clips become "
        f"{wide[0]}x{wide[1]}, square ones {square[0]}x{square[1]} (height x width)."
    )
    reading.notice(place, subject, what, code=IssueCode.SIZE_OFF_GRID)


def _check_clips(reading: Reading, entries: list[_Entry]) -> None:
    """There must be something to train on, and what is there should be used."""
    if not any(entry.config.kind == "video" for entry in entries):
        what = "there is no usable dataset of dataset_type video, so there is nothing to train on."
        remedy = "Add one that names the folder of your clips."
        reading.error((), reading.document.name, what, remedy, code=IssueCode.NO_CLIPS)
    used = {name for entry in entries for name in entry.config.conditioning_ids}
    for entry in entries:
        name = entry.config.id
        if entry.config.kind == "conditioning" and name not in used:
            reading.error(
                entry.at,
                name,
                f"no dataset names {name} in its conditioning_data, so it is not used.",
                f'Write "conditioning_data": ["{name}"] into the dataset of the clips.',
                code=IssueCode.KEY_NOT_USED,
                severity=Severity.WARNING,
            )


def _with_known_references(reading: Reading, entry: _Entry, entries: list[_Entry]) -> DatasetConfig:
    """The dataset with those of its conditioning ids that name a conditioning dataset."""
    kinds = {other.config.id: other.config.kind for other in entries}
    known = tuple(name for name in entry.config.conditioning_ids if kinds.get(name) == "conditioning")
    for name in entry.config.conditioning_ids:
        if name in known:
            continue
        fault = "is not of dataset_type conditioning" if name in kinds else "is not defined"
        what = f"conditioning_data names {name}, which {fault}. Datasets here: {', '.join(kinds)}."
        reading.error(
            (*entry.at, "conditioning_data"),
            f"{entry.config.id}.conditioning_data",
            what,
            "Name the dataset that holds the start frames.",
            code=IssueCode.DATASET_UNKNOWN,
        )
    return replace(entry.config, conditioning_ids=known)
