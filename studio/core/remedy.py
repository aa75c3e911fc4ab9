"""A remedy that a button can apply: settings, and the sentence that says the same."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

CONFIG_NAME, DATASETS_NAME = "config.json", "multidatabackend.json"

SettingValue = bool | int | float | str
Setting = tuple[str, str, SettingValue]
"""(file, key, value). The value of `resolution` may be a size, `352x640` (height x width): the resolution that gives
it depends on the clips.
"""


@dataclass(frozen=True, slots=True)
class Change:
    """Settings to change; `str` gives the sentence, with keys, values and files."""

    settings: tuple[Setting, ...]
    note: str = ""
    """What that gives, in a few words."""

    def __str__(self) -> str:
        """`Set musubi_blocks_to_swap to 24 and train_batch_size to 1 in config.json (predicted ...).`"""
        files = groupby(self.settings, key=lambda setting: setting[0])
        parts = [
            " and ".join(f"{key} to {_worded(key, value)}" for _, key, value in settings) + f" in {file}"
            for file, settings in files
        ]
        return f"Set {' and '.join(parts)}{f' ({self.note})' if self.note else ''}."


def shown(value: SettingValue) -> str:
    """A value as one types it, without quotes."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _worded(key: str, value: SettingValue) -> str:
    is_size = key == "resolution" and isinstance(value, str)
    return f"one that gives {value} (height x width)" if is_size else shown(value)
