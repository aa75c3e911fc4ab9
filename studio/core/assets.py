"""Where the files that ship with the studio lie: in the installed package, or in the repository."""

from __future__ import annotations

from pathlib import Path

TINY = "tiny"
"""Name of the small trained checkpoint, accepted wherever a checkpoint is."""


def asset_path(name: str) -> Path:
    """Folder of a shipped asset: `tiny`, `shapes` or `shapes_broken`."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "_assets" / name
    return installed if installed.exists() else package.parent / "assets" / name
