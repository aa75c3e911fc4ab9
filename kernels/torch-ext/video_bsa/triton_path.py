"""The kernels behind the operators: which of them takes a call, and the passes around it.

On sm_90 blocks of 33 to 64 tokens in 16-bit types go to the Gluon kernels (`hopper`), everything else to the Triton
kernels that run on every GPU (`portable`). Under `TRITON_INTERPRET=1` the latter run on CPU tensors.

Letters: B batch, N heads, S tokens, D head width, Mq and Mk query and key blocks, R listed blocks.
"""

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager, nullcontext

import torch
import triton

from . import portable
from .gather import block_means, gather_blocks, gather_keys, query_stats
from .grid import BlockGrid, Triple, tokens_first_empty
from .invert import invert_lists
from .rank import best_blocks
from .rows import tile_rows
from .select import num_kept

if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 6):
    raise ImportError(f"3.6 or later, found {triton.__version__}")

HEAD_WIDTHS = (64, 128)
MAX_HEADS = 65_535
"""Programs that CUDA starts along the second axis of a grid."""

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def is_interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def refusal_for(device: torch.device, dtype: torch.dtype, head_width: int, block: Triple) -> str | None:
    """Why the kernels do not take such inputs, in one sentence, or None."""
    if dtype not in DTYPES:
        return f"the block-sparse kernels take bf16, fp16 and fp32, not {str(dtype).removeprefix('torch.')}"
    if head_width not in HEAD_WIDTHS:
        return f"the block-sparse kernels take heads of 64 or 128 numbers, not {head_width}"
    most = 64 if dtype == torch.float32 else 128
    if math.prod(block) > most:
        return f"the block-sparse kernels take blocks of up to {most} tokens in this type, not {math.prod(block)}"
    if is_interpreted() and dtype == torch.bfloat16:
        return "Triton's interpreter multiplies bf16 wrongly: give it fp32 or fp16"
    return gpu_refusal(device, "the block-sparse kernels") if device.type == "cuda" else None


def gpu_refusal(device: torch.device, kernels: str) -> str | None:
    """Why a CUDA device does not run `kernels`, the subject of the sentence; None where it does."""
    if not torch.cuda.is_available():
        return f"{kernels} need a CUDA device, and PyTorch finds none"
    if torch.version.hip is not None:
        return f"{kernels} are untried on AMD GPUs"
    if torch.cuda.get_device_capability(device) < (8, 0):
        major, minor = torch.cuda.get_device_capability(device)
        return f"{kernels} need a GPU of compute capability 8.0 or higher, this one has {major}.{minor}"
    return None


def refusal(q: torch.Tensor, block: Triple) -> str | None:
    """Why the kernels do not take tensors like `q` in such blocks, or None."""
    heads = q.shape[0] * q.shape[1]
    if heads > MAX_HEADS:
        return f"the block-sparse kernels take up to {MAX_HEADS:,} heads over the batch, not {heads:,}"
    return refusal_for(q.device, q.dtype, q.shape[-1], block)


def takes_hopper_path(q: torch.Tensor, blocks: BlockGrid) -> bool:
    """Whether the Gluon kernels run."""
    if not q.is_cuda or is_interpreted():
        return False
    is_sm_90 = torch.cuda.get_device_capability(q.device) == (9, 0)
    return is_sm_90 and q.element_size() == 2 and tile_rows(blocks) == 64


def select(
    q: torch.Tensor, k: torch.Tensor, blocks_q: BlockGrid, blocks_k: BlockGrid, *, sparsity: float, keep_first: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(indices int32 [B, N, Mq, R], counts int32 [B, N, Mq]) of the key blocks that score highest."""
    with on_device(q):
        q, k = _rows_contiguous(q), _rows_contiguous(k)
        kept = num_kept(sparsity, blocks_k.num_blocks)
        per_frame = blocks_k.counts[1] * blocks_k.counts[2] if keep_first else None
        indices = best_blocks(block_means(q, blocks_q), block_means(k, blocks_k), kept, per_frame=per_frame)
        indices = indices.view(*q.shape[:2], blocks_q.num_blocks, kept)
        return indices, torch.full(indices.shape[:-1], kept, dtype=torch.int32, device=q.device)


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, indices: torch.Tensor, counts: torch.Tensor,
    blocks_q: BlockGrid, blocks_k: BlockGrid,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """(out [B, N, Sq, D], lse fp32 [B, N, Sq])."""
    with on_device(q):
        q, k, v = (_rows_contiguous(x) for x in (q, k, v))
        indices, counts = indices.contiguous(), counts.contiguous()
        out = tokens_first_empty(q)
        lse = q.new_empty(q.shape[:3], dtype=torch.float32)
        if takes_hopper_path(q, blocks_q):
            from . import hopper

            k, sizes = gather_keys(k, blocks_k)
            v = gather_blocks(v, blocks_k)
            hopper.forward(q, k, v, sizes, indices, counts, blocks_q, blocks_k, out, lse)
        else:
            portable.forward(q, k, v, indices, counts, blocks_q, blocks_k, out, lse)
        return out, lse


def backward(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor,
    indices: torch.Tensor, counts: torch.Tensor, blocks_q: BlockGrid, blocks_k: BlockGrid,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """(dq, dk, dv), each in the shape of what it belongs to."""
    with on_device(q):
        grad, q, k, v, out = (_rows_contiguous(x) for x in (grad, q, k, v, out))
        indices, counts, lse = indices.contiguous(), counts.contiguous(), lse.contiguous()
        dq, dk, dv = (tokens_first_empty(x) for x in (q, k, v))
        queries, starts = invert_lists(indices, counts, blocks_k.num_blocks)
        is_hopper = takes_hopper_path(q, blocks_q)
        stats, grad_blocks = query_stats(out, grad, lse, blocks_q, gather=is_hopper)
        if is_hopper:
            from . import hopper

            grad, q = grad_blocks, gather_blocks(q, blocks_q)
            k, v = gather_blocks(k, blocks_k), gather_blocks(v, blocks_k)
            hopper.key_gradients(q, k, v, grad, stats, queries, starts, blocks_q, blocks_k, dk, dv)
            hopper.query_gradients(q, k, v, grad, stats, indices, counts, blocks_q, blocks_k, dq)
        else:
            portable.key_gradients(q, k, v, grad, stats, queries, starts, blocks_q, blocks_k, dk, dv)
            portable.query_gradients(q, k, v, grad, stats, indices, counts, blocks_q, blocks_k, dq)
        return dq, dk, dv


def _rows_contiguous(x: torch.Tensor) -> torch.Tensor:
    """`x` itself if the numbers of a token lie side by side, as in any view of a projection's output; else a copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


def on_device(x: torch.Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
