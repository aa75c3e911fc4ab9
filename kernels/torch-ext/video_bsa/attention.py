"""What a caller of video_bsa calls: the choice of blocks and the attention to them, inputs checked.

Letters: B batch, N heads, S tokens, D head width, Mq and Mk query and key blocks, R listed blocks.
"""

from __future__ import annotations

import torch

from .grid import BlockGrid, Triple, check_sizes
from .op import attend_op, load_kernels, select_op
from .select import BlockSelection, check_list_shapes

DEFAULT_SPARSITY = 0.9375
"""Keeps 1 key block in 16. Source: `bsa_params` of the published LongCat-Video checkpoint."""

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
DEVICES = ("cpu", "cuda", "meta")
"""The reference takes products in fp64, which other devices may lack."""


def block_sparse_attention(
    q_BNSD: torch.Tensor,
    k_BNSD: torch.Tensor,
    v_BNSD: torch.Tensor,
    *,
    grid_q: Triple,
    grid_k: Triple,
    block: Triple = (4, 4, 4),
    sparsity: float | None = None,
    cdf: float | None = None,
    keep_first: bool = False,
    lists: BlockSelection | None = None,
) -> torch.Tensor:
    """Attention [B, N, Sq, D] of each query block to its own key blocks, in q's type; softmax scale D^-0.5.

    Grids and block are (t, h, w) in tokens; tokens lie in row-major (t, h, w) order. No grid needs to be a
    multiple of the block, and the two grids may differ. The rules of `select_blocks` pick the key blocks,
    unless `lists` fixes them. A query block with an empty list gets zeros. Sums are fp32, or fp64 for fp64
    inputs. Differentiable in q, k and v; the choice of blocks is not. In memory the result lies as
    [B, Sq, N, D].

    What `lists` holds is read on a CPU only: elsewhere it would make the host wait for the device. There the
    result of wrong numbers is undefined, as kernels may read outside of k and v. `check_lists` reads lists
    wherever they are.

    Raises:
        ValueError: shapes or types do not fit the grids or one another, `lists` comes with a rule or is not
            ascending or out of range, a rule is out of range, or the kernels of the device do not take these
            inputs.
    """
    blocks_q, blocks_k = check_inputs(q_BNSD, k_BNSD, grid_q=grid_q, grid_k=grid_k, block=block)
    if v_BNSD.shape != k_BNSD.shape:
        raise ValueError(f"v {tuple(v_BNSD.shape)} must have the shape of k {tuple(k_BNSD.shape)}")
    _check_alike("v", v_BNSD, q_BNSD)
    if lists is None:
        lists = select_blocks(
            q_BNSD,
            k_BNSD,
            grid_q=grid_q,
            grid_k=grid_k,
            block=block,
            sparsity=sparsity,
            cdf=cdf,
            keep_first=keep_first,
        )
    else:
        if sparsity is not None or cdf is not None or keep_first:
            raise ValueError("lists fix the key blocks; give no sparsity, cdf or keep_first with them")
        check_list_shapes(lists, rows=(*q_BNSD.shape[:2], blocks_q.num_blocks), device=q_BNSD.device)
    out, _ = attend_op(q_BNSD, k_BNSD, v_BNSD, lists.indices, lists.counts, list(grid_q), list(grid_k), list(block))
    return out


def select_blocks(
    q_BNSD: torch.Tensor,
    k_BNSD: torch.Tensor,
    *,
    grid_q: Triple,
    grid_k: Triple,
    block: Triple = (4, 4, 4),
    sparsity: float | None = None,
    cdf: float | None = None,
    keep_first: bool = False,
    published: bool = False,
) -> BlockSelection:
    """The key blocks whose mean key has the largest product with the mean query, by batch and head.

    Means divide by the tokens that an edge block has; scores are fp32 (fp64 for fp64 inputs) whatever the
    settings of the matrix units; equal scores go to the lower block number. Not differentiable.

    - `sparsity` in [0, 1) keeps `int((1 - sparsity) * Mk)` blocks and never fewer than one. It is 0.9375 where
      no rule is given.
    - `cdf` in (0, 1] takes the softmax of the scores times D^-0.5 over the key blocks, and keeps the fewest
      best blocks whose mass reaches it, the block that crosses it included. R is then Mk.
    - Both: the larger of the two counts.
    - `keep_first` keeps the key block at the query block's (h, w) in the first block row of time, where the
      conditioning frame is: it goes ahead of all others, and counts with its own mass for `cdf`.
    - `published` chooses as the published code does, to compare with it: means and scores in the inputs' type,
      equal ones in any order, the block that crosses `cdf` left out. It still keeps one block at least, and
      takes edge blocks, where that code keeps none and takes none.

    Raises:
        ValueError: shapes or types do not fit the grids or one another, a rule is out of range, `keep_first`
            on grids of different h or w or with `published`, or the kernels of the device do not take these
            inputs.

    Source: LongCat-Video 6b3f4b8, `longcat_video/block_sparse_attention/bsa_interface.py`.
    """
    check_inputs(q_BNSD, k_BNSD, grid_q=grid_q, grid_k=grid_k, block=block)
    if sparsity is None and cdf is None:
        sparsity = DEFAULT_SPARSITY
    if sparsity is not None and not 0 <= sparsity < 1:
        raise ValueError(f"sparsity is the share of key blocks skipped, in [0, 1); got {sparsity}")
    if cdf is not None and not 0 < cdf <= 1:
        raise ValueError(f"cdf is the softmax mass that the kept key blocks reach, in (0, 1]; got {cdf}")
    if keep_first and published:
        raise ValueError("keep_first is no rule of the published choice; give one of keep_first and published")
    if keep_first and tuple(grid_q[1:]) != tuple(grid_k[1:]):
        raise ValueError(
            f"keep_first needs grids of the same h and w, got grid_q {tuple(grid_q)} and grid_k {tuple(grid_k)}"
        )
    grids = list(grid_q), list(grid_k), list(block)
    return BlockSelection(*select_op(q_BNSD.detach(), k_BNSD.detach(), *grids, sparsity, cdf, keep_first, published))


def kernel_refusal(
    device: torch.device | str, dtype: torch.dtype, head_width: int, block: Triple = (4, 4, 4)
) -> str | None:
    """Why no fast kernel runs for such inputs, in one sentence without a full stop; None where one does."""
    device = torch.device(device)
    if device.type != "cuda":
        return f"the block-sparse kernels need a CUDA device, not {device.type}"
    try:
        kernels = load_kernels()
    except ImportError as error:
        return f"the block-sparse kernels need Triton ({error})"
    return kernels.refusal_for(device, dtype, head_width, block)


def check_inputs(
    q_BNSD: torch.Tensor, k_BNSD: torch.Tensor, *, grid_q: Triple, grid_k: Triple, block: Triple
) -> tuple[BlockGrid, BlockGrid]:
    """Block grids of queries and keys, once shapes and types are known to fit."""
    for name, sizes in (("grid_q", grid_q), ("grid_k", grid_k), ("block", block)):
        check_sizes(name, sizes)
    blocks_q, blocks_k = BlockGrid(grid_q, block), BlockGrid(grid_k, block)
    for name, x, blocks in (("q", q_BNSD, blocks_q), ("k", k_BNSD, blocks_k)):
        if x.ndim != 4:
            raise ValueError(f"{name} must be [B, N, S, D], got {tuple(x.shape)}")
        if x.shape[2] != blocks.num_tokens:
            raise ValueError(
                f"grid_{name} {tuple(blocks.grid)} has {blocks.num_tokens} tokens, but {name} is {tuple(x.shape)}"
            )
    if q_BNSD.shape[:2] != k_BNSD.shape[:2] or q_BNSD.shape[3] != k_BNSD.shape[3]:
        raise ValueError(
            f"q {tuple(q_BNSD.shape)} and k {tuple(k_BNSD.shape)} must agree in batch, heads and head width"
        )
    if q_BNSD.shape[3] == 0:
        raise ValueError(f"heads must be at least one number wide, q is {tuple(q_BNSD.shape)}")
    if q_BNSD.dtype not in DTYPES:
        raise ValueError(f"q, k and v must be bf16, fp16, fp32 or fp64, got {q_BNSD.dtype}")
    if q_BNSD.device.type not in DEVICES:
        raise ValueError(f"q, k and v must lie on a CPU or a CUDA device, not on {q_BNSD.device}: move them to the CPU")
    _check_alike("k", k_BNSD, q_BNSD)
    return blocks_q, blocks_k


def _check_alike(name: str, x: torch.Tensor, q: torch.Tensor) -> None:
    if x.dtype != q.dtype or x.device != q.device:
        raise ValueError(
            f"{name} ({x.dtype} on {x.device}) must have the type and device of q ({q.dtype} on {q.device})"
        )
