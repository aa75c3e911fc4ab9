"""Writes a mended dataset: whole, as a new folder, or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from studio.core.data.digest import file_hash
from studio.core.data.mend.clip import raise_if, write_clip
from studio.core.data.mend.config import RECORD_NAME, Home, homes, new_config, new_datasets
from studio.core.data.mend.types import MendKind, MendPlan, PlannedClip, frame_rate
from studio.core.errors import DiskFull, MendError
from studio.core.simpletuner import CONFIG_NAME, DATASETS_NAME

_SCHEMA = 1
"""Of mends.json: raised when a field changes its meaning or goes."""
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def write_mends(
    plan: MendPlan,
    into: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Path:
    """Writes the planned dataset as the new folder `into`, and returns it.

    Clips, start frames, captions, config.json, multidatabackend.json, and mends.json, which says of each clip where
    it comes from and what was done. `progress` is called with (clips done, clips in all). Everything is written
    under another name, on the same disk, and renamed when it is whole: after an error, or a stop, nothing is left.

    Raises:
        MendError: `into` is not empty or lies inside the dataset, or cannot be written.
        DiskFull: there is no room.
        MediaError: a file has gone since it was checked, or its frames are others. (What is copied is not decoded
            again: its sha256 in mends.json says what it was.)
        MendStopped: `should_stop` said so.
    """
    into = into.absolute()
    try:
        _refuse_place(plan, into)
        there = next(folder for folder in into.parents if folder.exists())
        _require_room(plan, there)
        unfinished = there / f".mend-{uuid.uuid4().hex}"
        try:
            unfinished.mkdir()
            _write(plan, unfinished, progress, should_stop or (lambda: False))
            into.parent.mkdir(parents=True, exist_ok=True)
            if into.exists():
                into.rmdir()
            unfinished.rename(into)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(f"The disk is full: {into.name} could not be written.", "Free some space.") from error
        raise MendError(f"{into} cannot be written: {error.strerror}.", "Choose another folder.") from error
    except UnicodeError as error:
        raise MendError(f"{into} has a path that is not UTF-8.", "Rename its folders.") from error
    return into


def _refuse_place(plan: MendPlan, into: Path) -> None:
    if "\0" in str(into):
        raise MendError("The new folder has a NUL character in its name.", "Choose another name.")
    for dataset in plan.project.run.data.datasets:
        if Path(os.path.realpath(into)).is_relative_to(os.path.realpath(dataset.directory)):
            raise MendError(f"{into} lies inside {dataset.id}, the dataset itself.", "Choose a folder beside it.")
    if into.is_symlink() or (into.exists() and not into.is_dir()) or (into.is_dir() and any(into.iterdir())):
        raise MendError(f"{into} exists already, and nothing is overwritten.", "Choose a new folder.")


def _require_room(plan: MendPlan, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < plan.num_bytes:
        raise DiskFull(
            f"The mended dataset takes about {plan.num_bytes / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free "
            f"in {folder}.",
            "Free some space, or choose another disk.",
        )


def _write(
    plan: MendPlan, folder: Path, progress: Callable[[int, int], None] | None, should_stop: Callable[[], bool]
) -> None:
    where = homes(plan)
    if plan.clips:
        for home in where.values():
            for name in filter(None, (home.clips, home.start_frames)):
                (folder / name).mkdir(exist_ok=True)
    records = []
    for done, planned in enumerate(plan.clips, start=1):
        raise_if(should_stop)
        records.append(_write_and_record(planned, where[planned.pair.dataset_id], folder, should_stop))
        if progress:
            progress(done, len(plan.clips))
    _write_json(folder / DATASETS_NAME, new_datasets(plan, where))
    _write_json(folder / CONFIG_NAME, new_config(plan))
    _write_json(folder / RECORD_NAME, _record(plan, records))


def _write_and_record(
    planned: PlannedClip, home: Home, folder: Path, should_stop: Callable[[], bool]
) -> dict[str, Any]:
    source = planned.pair.clip_path
    digest = file_hash(source)
    target = write_clip(planned, home, folder, should_stop)
    start_frame = planned.start_frame
    return {
        "dataset": planned.pair.dataset_id,
        "file": target.relative_to(folder).as_posix(),
        "source": str(source),
        "source_sha256": digest,
        "changes": [kind.value for kind in planned.changes],
        "first_frame": planned.first_frame,
        "num_frames": planned.num_frames,
        "new_num_frames": planned.new_num_frames,
        "fps": planned.fps,
        "new_fps": planned.new_fps,
        "size": list(planned.size),
        "new_size": list(planned.new_size),
        "start_frame": str(start_frame) if isinstance(start_frame, Path) else start_frame,
        "captions": list(planned.captions),
    }


def _record(plan: MendPlan, clips: list[dict[str, Any]]) -> dict[str, Any]:
    choice = plan.choice
    return {
        "schema": _SCHEMA,
        "mends": [kind.value for kind in MendKind if kind in choice.kinds],
        "frame_rate": frame_rate(plan.project, choice) if MendKind.FRAME_RATE in choice.kinds else None,
        "caption_template": choice.caption_template if MendKind.CAPTIONS in choice.kinds else None,
        "clips": clips,
        "left_out": [
            {"dataset": pair.dataset_id, "source": str(pair.clip_path), "reason": reason}
            for pair, reason in plan.left_out
        ],
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
