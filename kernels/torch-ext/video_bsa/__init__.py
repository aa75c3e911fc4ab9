"""Block-sparse attention over a (time, height, width) grid of video tokens."""

from .grid import BlockGrid
from .reference import block_sparse_attention
from .select import BlockSelection, select_blocks

__all__ = ["BlockGrid", "BlockSelection", "block_sparse_attention", "select_blocks"]
