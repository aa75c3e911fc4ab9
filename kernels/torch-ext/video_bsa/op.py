"""The three operators that PyTorch knows by name: `video_bsa::select_blocks`, `::attend` and `::attend_backward`.

They take what `attention.py` has checked. CUDA tensors go to the Triton kernels, all others to the reference;
TRITON_INTERPRET=1 sends every tensor to the kernels, run by Triton's interpreter.

Letters: B batch, N heads, S tokens, D head width, Mq and Mk query and key blocks, R listed blocks.
"""

from __future__ import annotations

import os
from types import ModuleType

import torch

from .grid import BlockGrid, Triple, tokens_first_empty
from .reference import reference_attention, reference_backward
from .select import BlockSelection, check_lists, choose_blocks, list_width

Tensors3 = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@torch.library.custom_op(
    "video_bsa::select_blocks",
    mutates_args=(),
    schema="(Tensor q, Tensor k, int[] grid_q, int[] grid_k, int[] block, float? sparsity, float? cdf,"
    " bool keep_first, bool published) -> (Tensor indices, Tensor counts)",
)
def select_op(
    q: torch.Tensor,
    k: torch.Tensor,
    grid_q: list[int],
    grid_k: list[int],
    block: list[int],
    sparsity: float | None,
    cdf: float | None,
    keep_first: bool,
    published: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists int32 [B, N, Mq, R] and counts int32 [B, N, Mq]; neither carries a gradient.

    The kernels know top-k alone. `cdf` and `published` are plain PyTorch on every device.
    """
    blocks_q, blocks_k = _blocks(grid_q, grid_k, block)
    kernels = _kernels(q, block) if cdf is None and not published else None
    if kernels is not None:
        return kernels.select(q, k, blocks_q, blocks_k, sparsity=sparsity, keep_first=keep_first)
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        return choose_blocks(
            q, k, blocks_q, blocks_k, sparsity=sparsity, cdf=cdf, keep_first=keep_first, published=published
        )


@select_op.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    grid_q: list[int],
    grid_k: list[int],
    block: list[int],
    sparsity: float | None,
    cdf: float | None,
    keep_first: bool,
    published: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    blocks_q, blocks_k = _blocks(grid_q, grid_k, block)
    rows = (*q.shape[:2], blocks_q.num_blocks)
    indices = q.new_empty((*rows, list_width(sparsity, cdf, blocks_k.num_blocks)), dtype=torch.int32)
    return indices, q.new_empty(rows, dtype=torch.int32)


@torch.library.custom_op(
    "video_bsa::attend",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor indices, Tensor counts, int[] grid_q, int[] grid_k, int[] block)"
    " -> (Tensor out, Tensor lse)",
)
def attend_op(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    indices: torch.Tensor,
    counts: torch.Tensor,
    grid_q: list[int],
    grid_k: list[int],
    block: list[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention [B, N, Sq, D], and the natural log of its softmax sums, fp32 [B, N, Sq] (fp64 for fp64).

    The tokens of `out` lie next to one another with all their heads, as [B, Sq, N, D], so that the projection
    after it reads them without a copy. A query with an empty list gets zeros and -inf. `out` is differentiable
    in q, k and v; the log is not.
    """
    blocks_q, blocks_k = _blocks(grid_q, grid_k, block)
    if q.device.type == "cpu":
        check_lists(BlockSelection(indices, counts), grid_k=blocks_k.grid, block=blocks_k.block)
    kernels = _kernels(q, block)
    if kernels is not None:
        return kernels.forward(q, k, v, indices, counts, blocks_q, blocks_k)
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        out, lse = reference_attention(q, k, v, indices, counts, blocks_q, blocks_k)
    return tokens_first_empty(q).copy_(out), lse.contiguous()


@attend_op.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    indices: torch.Tensor,
    counts: torch.Tensor,
    grid_q: list[int],
    grid_k: list[int],
    block: list[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    return tokens_first_empty(q), q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))


@torch.library.custom_op(
    "video_bsa::attend_backward",
    mutates_args=(),
    schema="(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor indices, Tensor counts,"
    " int[] grid_q, int[] grid_k, int[] block) -> (Tensor dq, Tensor dk, Tensor dv)",
)
def attend_backward_op(
    grad_out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    indices: torch.Tensor,
    counts: torch.Tensor,
    grid_q: list[int],
    grid_k: list[int],
    block: list[int],
) -> Tensors3:
    """Gradients of q, k and v in their shapes and types, each laid out like `out`; `lse` is that of `attend`."""
    blocks_q, blocks_k = _blocks(grid_q, grid_k, block)
    kernels = _kernels(q, block)
    if kernels is not None:
        return kernels.backward(grad_out, q, k, v, out, lse, indices, counts, blocks_q, blocks_k)
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        grads = reference_backward(grad_out, q, k, v, out, lse, indices, counts, blocks_q, blocks_k)
    dq, dk, dv = (tokens_first_empty(x).copy_(grad) for x, grad in zip((q, k, v), grads, strict=True))
    return dq, dk, dv


@attend_backward_op.register_fake
def _(
    grad_out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    indices: torch.Tensor,
    counts: torch.Tensor,
    grid_q: list[int],
    grid_k: list[int],
    block: list[int],
) -> Tensors3:
    return tokens_first_empty(q), tokens_first_empty(k), tokens_first_empty(v)


def _save_for_backward(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple) -> None:
    q, k, v, indices, counts, *ctx.grids = inputs  # pyright: ignore[reportAttributeAccessIssue]
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, k, v, out, lse, indices, counts)


def _backward(ctx: torch.autograd.function.FunctionCtx, grad_out: torch.Tensor, _: torch.Tensor) -> tuple:
    saved, grids = ctx.saved_tensors, ctx.grids  # pyright: ignore[reportAttributeAccessIssue]
    return *attend_backward_op(grad_out, *saved, *grids), None, None, None, None, None


attend_op.register_autograd(_backward, setup_context=_save_for_backward)


def load_kernels() -> ModuleType:
    """The module of the Triton kernels; ImportError where Triton is not installed or too old."""
    from . import triton_path

    return triton_path


def _kernels(q: torch.Tensor, block: list[int]) -> ModuleType | None:
    """The kernels where they are to run, None where the reference is; ValueError if they cannot take q."""
    if q.numel() == 0 or (not q.is_cuda and os.environ.get("TRITON_INTERPRET") != "1"):
        return None
    remedy = "use dense attention, or move q, k and v to the CPU, where the reference takes them"
    try:
        kernels = load_kernels()
    except ImportError as error:
        raise ValueError(f"the block-sparse kernels need Triton ({error}); install it, {remedy}") from error
    refusal = kernels.refusal(q, _triple(block))
    if refusal is not None:
        raise ValueError(f"{refusal}; {remedy}")
    return kernels


def _blocks(grid_q: list[int], grid_k: list[int], block: list[int]) -> tuple[BlockGrid, BlockGrid]:
    return BlockGrid(_triple(grid_q), _triple(block)), BlockGrid(_triple(grid_k), _triple(block))


def _triple(sizes: list[int]) -> Triple:
    t, h, w = sizes
    return t, h, w
