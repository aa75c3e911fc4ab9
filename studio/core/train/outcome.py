"""What a run leaves: the LoRA, and in its metadata enough to train it again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from studio.core.config import RunConfig
from studio.core.config_json import run_config_to_json
from studio.core.model.load import ModelBundle
from studio.core.model.lora import save_lora
from studio.core.runlog import RunFolder
from studio.core.train.learner import Learner

PACKAGES = ("longcat-studio", "torch", "diffusers", "peft", "transformers")


def save_outcome(config: RunConfig, folder: RunFolder, bundle: ModelBundle, learner: Learner, step: int) -> str:
    """Writes the LoRA as it stands into `lora/` for diffusers and for peft; returns its path in the run folder.

    Each file is written under another name and renamed. Raises OSError.
    """
    final, unfinished = folder.path / "lora", folder.path / ".lora.part"
    with bundle.lock, learner.averaged():
        file = save_lora(bundle.dit, unfinished, config.lora, describe_run(config, folder, bundle, step))
    final.mkdir(exist_ok=True)
    for written in sorted(unfinished.iterdir()):
        written.replace(final / written.name)
    unfinished.rmdir()
    return (final / file.name).relative_to(folder.path).as_posix()


def describe_run(config: RunConfig, folder: RunFolder, bundle: ModelBundle, step: int) -> Mapping[str, str]:
    """Metadata of the LoRA file, text by text; of paths only the last name, because LoRAs are passed on."""
    dit_config = json.dumps(dict(bundle.dit.config), sort_keys=True, default=str)
    return {
        "studio.model": Path(config.model.source).name if Path(config.model.source).is_absolute() else bundle.source,
        "studio.model_config_sha256": hashlib.sha256(dit_config.encode()).hexdigest(),
        "studio.run": folder.name,
        "studio.datasets": json.dumps([dataset.id for dataset in config.data.datasets]),
        "studio.steps": str(step),
        "studio.seed": str(config.seed),
        "studio.versions": json.dumps({name: _version(name) for name in PACKAGES}),
        "studio.config": json.dumps(without_folders(run_config_to_json(config))),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def without_folders(value: Any) -> Any:
    """A JSON value with the last name alone of every absolute path in it."""
    if isinstance(value, dict):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
