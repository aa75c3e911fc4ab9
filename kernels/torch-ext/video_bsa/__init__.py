"""Block-sparse attention over a (time, height, width) grid of video tokens."""

from .attention import block_sparse_attention, kernel_refusal, select_blocks
from .grid import BlockGrid
from .measure import list_overlap, retained_mass
from .select import BlockSelection, check_lists

__all__ = [
    "BlockGrid",
    "BlockSelection",
    "block_sparse_attention",
    "check_lists",
    "kernel_refusal",
    "list_overlap",
    "retained_mass",
    "select_blocks",
]
