"""Random streams that depend on what they are for, and on nothing that happened before."""

from __future__ import annotations

import hashlib

import torch


def seeded(*parts: str | int) -> torch.Generator:
    """A CPU generator for these parts, such as (seed, "noise", step, index): equal parts, equal numbers.

    A run that resumes at a step draws what the unbroken run drew there.
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
