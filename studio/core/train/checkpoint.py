"""Checkpoints of a run: the LoRA, the optimiser and the step, all of it or nothing.

    checkpoints/step-000100/
        lora.safetensors    fp32, keys `<module>.lora_A.weight`
        ema.safetensors     the same of the moving average, with use_ema
        optim.safetensors   keys `<parameter>.<name>`, such as `0.exp_avg`
        state.json          step, configuration, settings of the optimiser
        manifest.json       sha256 of each file above; written last

There is no random state to keep: every draw follows from the seed and the step.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from studio.core.config import RunConfig
from studio.core.config_json import run_config_to_json
from studio.core.errors import CheckpointError
from studio.core.train.checkpoint_files import EMA, LORA, MANIFEST, OPTIM, STATE, list_checkpoints, verify_checkpoint
from studio.core.train.disk import disk_full, is_full, require_room, sync_folder, write_synced

logger = logging.getLogger(__name__)

_UNFINISHED = (".step-*.part", ".step-*.old")
"""Names while a checkpoint is written, and while one is deleted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A whole checkpoint, as read."""

    path: Path
    step: int
    lora: Mapping[str, torch.Tensor]
    ema: Mapping[str, torch.Tensor] | None
    """The moving average of `lora`; None for a run without one."""
    optim: Mapping[str, Any]
    """What `Optimizer.load_state_dict` takes."""
    config: Mapping[str, Any]
    """The run's configuration at the time, as JSON."""


def save_checkpoint(
    folder: Path,
    step: int,
    *,
    lora: Mapping[str, torch.Tensor],
    ema: Mapping[str, torch.Tensor] | None,
    optimizer: torch.optim.Optimizer,
    config: RunConfig,
) -> Path:
    """Writes `folder`/step-000100, then deletes the oldest ones beyond `checkpoints_total_limit` (0: keeps all).

    Every file is written and synced under another folder name, the manifest last, then the folder is renamed: what
    has the final name is whole. What was there before stays as it is when anything goes wrong.

    Raises:
        DiskFull: there is no room for it; says how much it needs.
        OSError: the folder cannot be written for another reason.
    """
    final = folder / f"step-{step:06d}"
    optim = optimizer.state_dict()
    files = {LORA: save(dict(lora)), OPTIM: save(_flatten(optim["state"]))}
    if ema is not None:
        files[EMA] = save(dict(ema))
    files[STATE] = _json({"step": step, "config": run_config_to_json(config), "param_groups": optim["param_groups"]})
    needed = sum(map(len, files.values()))
    unfinished = folder / f".{final.name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        require_room(final.name, folder, needed)
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        for name, data in files.items():
            write_synced(unfinished / name, data)
        sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        write_synced(unfinished / MANIFEST, _json(sums))
        sync_folder(unfinished)
        _set_aside(final)
        unfinished.rename(final)
        sync_folder(folder)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if is_full(error):
            raise disk_full(final.name, folder, needed) from error
        raise
    _prune(folder, config.optim.checkpoints_total_limit)
    return final


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, tuple[str, ...]]:
    """The newest whole checkpoint of a `checkpoints` folder, and a sentence for each damaged one passed over."""
    passed_over = []
    for path in reversed(list_checkpoints(folder)):
        try:
            return read_checkpoint(path), tuple(passed_over)
        except CheckpointError as error:
            logger.warning("checkpoint=%s passed over: %s", path.name, error.message)
            passed_over.append(f"{error.message} It is passed over.")
    return None, tuple(passed_over)


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint whose files are what was written.

    Raises:
        CheckpointError: a file is missing, cut off or changed.
    """
    remedy = "Resume from an older checkpoint, or start the run again."
    verify_checkpoint(path)
    try:
        state = json.loads((path / STATE).read_bytes())
        return Checkpoint(
            path=path,
            step=state["step"],
            lora=load_file(path / LORA),
            ema=load_file(path / EMA) if (path / EMA).exists() else None,
            optim={"state": _unflatten(load_file(path / OPTIM)), "param_groups": state["param_groups"]},
            config=state["config"],
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{path.name} cannot be read: {error}.", remedy) from error


def remove_leftovers(folder: Path) -> None:
    """Deletes the half-written and half-deleted checkpoints that a killed process left behind."""
    for pattern in _UNFINISHED:
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def _set_aside(path: Path) -> None:
    """Deletes a checkpoint in such a way that no half of it keeps its name."""
    if path.exists():
        aside = path.with_name(f".{path.name}.old")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def _prune(folder: Path, limit: int) -> None:
    for path in list_checkpoints(folder)[:-limit] if limit > 0 else ():
        try:
            _set_aside(path)
        except OSError as error:
            logger.warning("checkpoint=%s could not be deleted: %s", path.name, error)


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


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
