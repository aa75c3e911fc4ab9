"""What the app is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from studio.core.assets import TINY, asset_path
from studio.core.config import ModelConfig
from studio.view.words import Language

DEMO, BROKEN_DEMO = "shapes", "shapes_broken"
"""Asset names of the demo datasets."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AppSettings:
    """The app as it was asked for."""

    model: ModelConfig = field(default_factory=lambda: ModelConfig(source=TINY))
    """Used unless the opened project's config.json names another."""
    output_dir: Path = Path("runs")
    """Where runs are written and looked for, unless the opened project's config.json names another folder."""
    project: Path | None = None
    """Opened when the page is first loaded."""
    demo: Path = field(default_factory=lambda: asset_path(DEMO))
    """The demo dataset."""
    broken_demo: Path = field(default_factory=lambda: asset_path(BROKEN_DEMO))
    """The demo dataset with faults in it."""
    num_gpus: int | None = None
    """That a run or a sample may be given; None: all that PyTorch sees."""
    language: Language = "en"
    """Of the page at /; the other languages have pages of their own."""
