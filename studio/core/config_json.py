"""A RunConfig as JSON and back: every field by its own name, strictly."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from studio.core.assets import TINY
from studio.core.config import RunConfig
from studio.core.errors import ConfigError


def run_config_to_json(config: RunConfig) -> dict[str, Any]:
    """What `json.dumps` takes; paths as text, as they are in `config`."""
    return _plain(asdict(config))


def write_run_config(path: Path, config: RunConfig) -> None:
    """Writes `config` with absolute paths, so that it means the same from every working directory."""
    path.write_text(json.dumps(run_config_to_json(with_absolute_paths(config)), indent=2) + "\n", encoding="utf-8")


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """The same run, whatever the working directory."""
    datasets = tuple(
        replace(d, directory=d.directory.absolute(), cache_dir=d.cache_dir.absolute() if d.cache_dir else None)
        for d in config.data.datasets
    )
    is_folder = config.model.source != TINY and Path(config.model.source).is_dir()
    source = str(Path(config.model.source).absolute()) if is_folder else config.model.source
    init_from = config.lora.init_from
    return replace(
        config,
        data=replace(config.data, datasets=datasets),
        lora=replace(config.lora, init_from=init_from.absolute() if init_from else None),
        model=replace(config.model, source=source),
        output_dir=config.output_dir.absolute(),
    )


def read_run_config(path: Path) -> RunConfig:
    """The configuration that `write_run_config` wrote; fields that are missing keep their defaults.

    Raises:
        ConfigError: no such file, not JSON, or a field that is unknown or of another type.
    """
    try:
        return run_config_from_json(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{path.name} cannot be read: {error.strerror}.", "Choose the folder of a run.") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{path.name} is not the configuration of a run: {error}.", "Start the run again from its project."
        ) from error


def run_config_from_json(value: Any) -> RunConfig:
    """The configuration that `run_config_to_json` gave; fields that are missing keep their defaults.

    Raises ValueError or TypeError: a field is unknown or of another type.
    """
    return _build(RunConfig, value, "")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _build(kind: Any, value: Any, where: str) -> Any:
    """`value`, as it came from JSON, as the annotated type `kind`. Raises ValueError or TypeError."""
    if get_origin(kind) in (UnionType, Union):
        options = get_args(kind)
        if value is None and type(None) in options:
            return None
        return _build(next(option for option in options if option is not type(None)), value, where)
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(f"{where} is {value!r}")
        return value
    if get_origin(kind) is tuple:
        items = get_args(kind)
        kinds = [items[0]] * len(value) if Ellipsis in items else items
        return tuple(_build(k, v, where) for k, v in zip(kinds, value, strict=True))
    if isinstance(kind, type) and is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{where or 'it'} is no object")
        hints = get_type_hints(kind)
        unknown = set(value) - {field.name for field in fields(kind)}
        if unknown:
            raise ValueError(f"{where or 'it'} holds {', '.join(sorted(unknown))}")
        return kind(**{name: _build(hints[name], item, name) for name, item in value.items()})
    if kind is Path:
        return Path(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{where} is {value!r}, not {kind.__name__}")
    return value
