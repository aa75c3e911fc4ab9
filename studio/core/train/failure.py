"""Whatever ends a run too early, in one sentence with the last good checkpoint in it."""

from __future__ import annotations

import shutil

import torch

from studio.core.errors import OutOfMemory, StudioError
from studio.core.events import RunFailed
from studio.core.runlog import RunFolder
from studio.core.train.checkpoint_files import newest_whole
from studio.core.train.disk import is_full


def failure_of(error: Exception, step: int, folder: RunFolder) -> RunFailed:
    """The last event of a run that `error` ended after `step`."""
    message, remedy = _said(error, step, folder)
    checkpoint = newest_whole(folder.path / "checkpoints")
    if checkpoint is not None:
        remedy = f"{remedy} The last good checkpoint is {checkpoint.name}: resume the run to go on from it."
    path = "" if checkpoint is None else checkpoint.relative_to(folder.path).as_posix()
    settings = error.settings if isinstance(error, OutOfMemory) else ()
    return RunFailed(step=step, message=message, remedy=remedy.strip(), checkpoint=path, settings=settings)


def _said(error: Exception, step: int, folder: RunFolder) -> tuple[str, str]:
    """(what is wrong, what to do about it)"""
    if isinstance(error, StudioError):
        return error.message, error.remedy
    if is_full(error):
        free = shutil.disk_usage(folder.path).free
        return f"The disk is full: {free / 1e6:,.1f} MB are free in {folder.name}.", "Free some space."
    if is_lost_device(error):
        first = str(error).strip().splitlines()[0]
        return f"The device was lost after step {step} ({first}).", "Start the studio again."
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename} cannot be used: {error.strerror}.", "Check that it is there and may be used."
    what = f"Something unexpected went wrong after step {step} ({type(error).__name__})."
    return what, "The log has the details."


def is_lost_device(error: BaseException) -> bool:
    """True for an error after which CUDA answers no more in this process."""
    return isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and str(error).startswith("CUDA error")
    )
