"""Errors that a user can act on: each carries what is wrong and what to do about it."""

from __future__ import annotations

from studio.core.remedy import Change, Setting


class StudioError(Exception):
    """A problem that the user can mend; `remedy` says how. Faces print both, never a traceback."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".rstrip()


class ConfigError(StudioError):
    """A configuration file or value cannot be used."""


class DatasetError(StudioError):
    """A dataset has errors; the report that lists them all belongs to whoever checked it."""


class MediaError(StudioError):
    """A clip or an image cannot be read."""


class DamagedClipError(MediaError):
    """A clip opens, but not all of its frames are whole."""


class CheckStopped(StudioError):
    """The check of a dataset was stopped; the message says how far it had come."""


class CheckpointError(StudioError):
    """A model checkpoint is missing a part, or a part does not fit."""


class AdapterError(StudioError):
    """A LoRA does not fit the model, or its file cannot be read."""


class DeviceError(StudioError):
    """The device asked for is not here, or cannot do what was asked."""


class OutOfMemory(StudioError):
    """The device has less memory than the work needs; the remedy is the cheapest change that fits."""

    def __init__(self, message: str, remedy: str | Change) -> None:
        super().__init__(message, str(remedy))
        self.settings: tuple[Setting, ...] = remedy.settings if isinstance(remedy, Change) else ()
        """The remedy as settings; empty where it is a sentence alone."""


class ProcessLost(StudioError):
    """One of several processes that work together has ended, and with it all of them."""


class JobAlreadyRunning(StudioError):
    """A run is being trained already; a second one would fight for the device."""


class DiskFull(StudioError):
    """There is no room for a file; the message says how much it needs and how much is free."""


class MendError(StudioError):
    """A mended dataset cannot be written, or not there."""


class MendStopped(MendError):
    """The writing of a mended dataset was stopped; nothing is left of it."""


class UploadError(StudioError):
    """A LoRA could not be brought to the hub; it lies where it lay."""
