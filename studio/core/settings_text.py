"""The two files of a project as texts that someone edits; the files themselves are never written to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from studio.core.config import DatasetConfig, ModelConfig, RunConfig
from studio.core.errors import ConfigError
from studio.core.jsonc import Document, JsonPath, JsonValue, parse_jsonc, with_value
from studio.core.remedy import CONFIG_NAME, Setting
from studio.core.simpletuner import Project
from studio.core.simpletuner_keys import ALIASES, CONFIG_KEYS, DATASET_KEYS, VIDEO_KEYS, Honoured


@dataclass(frozen=True, slots=True)
class SettingsText:
    """What stands in config.json and in multidatabackend.json, or would."""

    config: str
    datasets: str


def texts_of(project: Project, model: ModelConfig) -> SettingsText:
    """The files as they are written; of a plain folder what they would say, with `model` in it."""
    written = project.written
    config = written.text or _json(_model_keys(model))
    datasets = written.datasets.text or _json([_entry(dataset) for dataset in project.run.data.datasets])
    return SettingsText(config, datasets)


def with_settings(texts: SettingsText, settings: Sequence[Setting], project: Project) -> SettingsText:
    """The texts with these settings in them, all else as it was; `project` is what they were read as.

    A key of multidatabackend.json names its dataset first, `clips.video.num_frames`.

    Raises:
        ConfigError: a text is not JSON, or not of the right kind.
    """
    for file, key, value in settings:
        if file == CONFIG_NAME:
            document = parse_jsonc(texts.config, name=file)
            texts = replace(texts, config=_set(document, (_written_key(document, key),), value))
        else:
            document = parse_jsonc(texts.datasets, name=file)
            texts = replace(texts, datasets=_set(document, _dataset_path(document, key, project), value))
    return texts


def changed(config: RunConfig, settings: Sequence[Setting]) -> RunConfig:
    """The configuration with these settings. Raises KeyError for a key that fills no field."""
    for file, key, value in settings:
        if file == CONFIG_NAME:
            section, field = field_of(key).split(".")
            child = replace(getattr(config, section), **{field: value})
            config = replace(config, **{section: child})
        else:
            name, own_key = _split(key, [dataset.id for dataset in config.data.datasets])
            field = field_of(own_key).removeprefix("dataset.")
            datasets = tuple(replace(d, **{field: value}) if d.id == name else d for d in config.data.datasets)
            config = replace(config, data=replace(config.data, datasets=datasets))
    return config


def field_of(key: str) -> str:
    """Section and field of a RunConfig that a key fills, `optim.learning_rate`; `dataset.num_frames` of a dataset.

    Raises KeyError: it fills none.
    """
    table = VIDEO_KEYS if key.startswith("video.") else CONFIG_KEYS if key in CONFIG_KEYS else DATASET_KEYS
    rule = table[key.removeprefix("video.")]
    if not isinstance(rule, Honoured):
        raise KeyError(key)
    return rule.field.replace("defaults.", "dataset.")


def _set(document: Document, path: JsonPath, value: JsonValue) -> str:
    try:
        return with_value(document, path, value)
    except (KeyError, IndexError, TypeError) as error:
        raise ConfigError(
            f"{document.name} has no place for {path[-1]}.", "Correct what is listed under the text first."
        ) from error


def _written_key(document: Document, key: str, at: JsonPath = ()) -> str:
    """The key as it stands in the object at `at`: with dashes, or under its other name."""
    members: Any = document.value
    for part in at:
        members = members[part]
    names = members if isinstance(members, dict) else {}
    return next((name for name in names if ALIASES.get(name.lstrip("-"), name.lstrip("-")) == key), key)


def _dataset_path(document: Document, key: str, project: Project) -> JsonPath:
    """Where a key of a dataset stands, or belongs."""
    configs = project.run.data.datasets
    name, own_key = _split(key, [dataset.id for dataset in configs])
    index = project.written.datasets.positions or range(len(configs))
    at = dict(zip((dataset.id for dataset in configs), index, strict=True))[name]
    if not own_key.startswith("video."):
        return (at, own_key)
    inner = own_key.removeprefix("video.")
    # The guide writes some of these beside the block.
    return (at, inner) if (at, inner) in document.spans else (at, "video", inner)


def _split(key: str, names: Sequence[str]) -> tuple[str, str]:
    """(dataset id, key) of `<id>.<key>`; ids may have dots in them. Raises KeyError."""
    for name in sorted(names, key=len, reverse=True):
        if key.startswith(f"{name}."):
            return name, key[len(name) + 1 :]
    raise KeyError(key)


def _model_keys(model: ModelConfig) -> dict[str, JsonValue]:
    """The keys of config.json that say what model this is, where that is not the default."""
    keys = {rule.field: key for key, rule in CONFIG_KEYS.items() if isinstance(rule, Honoured)}
    keys["model.source"] = "pretrained_model_name_or_path"
    default = ModelConfig()
    values = [(f.name, getattr(model, f.name)) for f in fields(model) if f"model.{f.name}" in keys]
    return {keys[f"model.{n}"]: value for n, value in values if value != getattr(default, n)}


def _entry(dataset: DatasetConfig) -> dict[str, JsonValue]:
    """A dataset of a plain folder as an entry of the list."""
    entry: dict[str, JsonValue] = {
        "id": dataset.id,
        "type": "local",
        "dataset_type": dataset.kind,
        "instance_data_dir": str(dataset.directory),
        "caption_strategy": dataset.caption_strategy,
        "resolution": int(dataset.resolution) if dataset.resolution.is_integer() else dataset.resolution,
        "resolution_type": dataset.resolution_type,
    }
    if dataset.conditioning_ids:
        entry["conditioning_data"] = list(dataset.conditioning_ids)
    if dataset.kind == "video":
        entry["video"] = {"num_frames": dataset.num_frames, "is_i2v": dataset.is_i2v}
    return entry


def _json(value: JsonValue) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
