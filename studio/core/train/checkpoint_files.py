"""The files of a checkpoint, listed and verified without reading a tensor; `checkpoint.py` says what they hold."""

from __future__ import annotations

import json
import re
from pathlib import Path

from studio.core.data.digest import file_hash
from studio.core.errors import CheckpointError, MediaError

LORA = "lora.safetensors"
EMA = "ema.safetensors"
OPTIM = "optim.safetensors"
STATE = "state.json"
MANIFEST = "manifest.json"


def list_checkpoints(folder: Path) -> list[Path]:
    """What has the name of a checkpoint, oldest first; what else lies there, such as `step-3-copy`, is left out."""
    numbered = [(path.name.removeprefix("step-"), path) for path in folder.glob("step-*")]
    return [path for _, path in sorted((int(step), path) for step, path in numbered if re.fullmatch("[0-9]+", step))]


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint whose files are what was written."""
    for path in reversed(list_checkpoints(folder)):
        try:
            verify_checkpoint(path)
        except CheckpointError:
            continue
        return path
    return None


def verify_checkpoint(path: Path) -> None:
    """Raises CheckpointError, naming the first file that is missing or is not what was written."""
    remedy = "Resume from an older checkpoint, or start the run again."
    try:
        manifest = path / MANIFEST
        # Before there were manifests, state.json had the sums of the two others.
        source = manifest if manifest.exists() else path / STATE
        sums = json.loads(source.read_bytes())
        sums = sums if source == manifest else sums["sha256"]
        expected = {LORA, OPTIM} | ({STATE} if source == manifest else set()) | ({EMA} if EMA in sums else set())
        if sums.keys() != expected or (EMA not in sums and (path / EMA).exists()):
            raise CheckpointError(f"{path.name}/{source.name} has changed since it was written.", remedy)
        for name, digest in sums.items():
            if file_hash(path / name) != digest:
                raise CheckpointError(f"{path.name}/{name} has changed since it was written.", remedy)
    except MediaError as error:
        raise CheckpointError(f"{path.name} is not whole: {error.message}", remedy) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path.name} is not whole: its list of files cannot be read.", remedy) from error
