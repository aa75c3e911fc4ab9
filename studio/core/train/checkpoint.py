"""Checkpoints of a run: the LoRA, the optimiser and the step, all of it or nothing.

    checkpoints/step-000100/
        lora.safetensors    fp32, keys `<module>.lora_A.weight`
        optim.safetensors   keys `<parameter>.<name>`, such as `0.exp_avg`
        state.json          step, configuration, settings of the optimiser, sha256 of the two files

There is no random state to keep: every draw follows from the seed and the step.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from studio.core.config import RunConfig
from studio.core.config_json import run_config_to_json
from studio.core.data.digest import file_hash
from studio.core.errors import CheckpointError, MediaError

logger = logging.getLogger(__name__)

LORA = "lora.safetensors"
OPTIM = "optim.safetensors"
STATE = "state.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A whole checkpoint, as read."""

    path: Path
    step: int
    lora: Mapping[str, torch.Tensor]
    optim: Mapping[str, Any]
    """What `Optimizer.load_state_dict` takes."""
    config: Mapping[str, Any]
    """The run's configuration at the time, as JSON."""


def save_checkpoint(
    folder: Path,
    step: int,
    *,
    lora: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    config: RunConfig,
) -> Path:
    """Writes `folder`/step-000100, then deletes the oldest ones beyond `checkpoints_total_limit` (0: keeps all).

    Written and synced under another name, then renamed: what has the final name is whole. Raises OSError.
    """
    final = folder / f"step-{step:06d}"
    unfinished = folder / f".{final.name}.part"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    optim = optimizer.state_dict()
    save_file(dict(lora), unfinished / LORA)
    save_file(_flatten(optim["state"]), unfinished / OPTIM)
    state = {
        "step": step,
        "seed": config.seed,
        "config": run_config_to_json(config),
        "param_groups": optim["param_groups"],
        "sha256": {name: file_hash(unfinished / name) for name in (LORA, OPTIM)},
    }
    (unfinished / STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    for path in (*unfinished.iterdir(), unfinished):
        _sync(path)
    shutil.rmtree(final, ignore_errors=True)
    unfinished.rename(final)
    _sync(folder)
    _prune(folder, config.optim.checkpoints_total_limit)
    return final


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a `checkpoints` folder; damaged ones are passed over, with a warning."""
    for path in reversed(_finished(folder)):
        try:
            return read_checkpoint(path)
        except CheckpointError as error:
            logger.warning("checkpoint=%s passed over: %s", path.name, error.message)
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint whose files are what was written.

    Raises:
        CheckpointError: a file is missing, cut off or changed.
    """
    remedy = "Resume from an older checkpoint, or start the run again."
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        changed = [name for name, digest in state["sha256"].items() if file_hash(path / name) != digest]
        if changed:
            raise CheckpointError(f"{path.name}/{changed[0]} has changed since it was written.", remedy)
        return Checkpoint(
            path=path,
            step=state["step"],
            lora=load_file(path / LORA),
            optim={"state": _unflatten(load_file(path / OPTIM)), "param_groups": state["param_groups"]},
            config=state["config"],
        )
    except (OSError, ValueError, KeyError, MediaError) as error:
        raise CheckpointError(f"{path.name} is not whole: {error}", remedy) from error


def _finished(folder: Path) -> list[Path]:
    """Oldest first; what else lies there, such as `step-3-copy`, is left alone."""
    numbered = [(path.name.removeprefix("step-"), path) for path in folder.glob("step-*")]
    return [path for _, path in sorted((int(step), path) for step, path in numbered if re.fullmatch("[0-9]+", step))]


def _prune(folder: Path, limit: int) -> None:
    for path in _finished(folder)[:-limit] if limit > 0 else ():
        shutil.rmtree(path)


def _flatten(state: Mapping[int, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {
        f"{index}.{name}": tensor.detach().cpu().contiguous()
        for index, values in state.items()
        for name, tensor in values.items()
    }


def _unflatten(tensors: Mapping[str, torch.Tensor]) -> dict[int, dict[str, torch.Tensor]]:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    return state


def _sync(path: Path) -> None:
    """Brings a file or folder to the disk; folders cannot be synced on Windows."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
