"""Mends of a dataset: offered, planned, and written as a new dataset; the user's own files are never touched."""

from __future__ import annotations

from studio.core.data.mend.plan import offered_mends, plan_mends
from studio.core.data.mend.types import MendChoice, MendKind, MendPlan, PlannedClip
from studio.core.data.mend.write import write_mends

__all__ = ["MendChoice", "MendKind", "MendPlan", "PlannedClip", "offered_mends", "plan_mends", "write_mends"]
