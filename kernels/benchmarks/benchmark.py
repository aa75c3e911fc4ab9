"""Times of the block-sparse attention on an H100 or H200, each beside a yardstick timed in the same run.

    python kernels/benchmarks/benchmark.py [--quick]

Medians, bf16, batch 1, 32 heads, width 128, sparsity 0.9375, blocks of 4x4x4. Lists come from `select_blocks` on normal
random q and k, whose lists share nothing but chance, and in the rows named "local" from smooth ones, whose neighbours
choose alike. TFLOP/s count the selected blocks alone, 7 products for forward and backward together as is usual (9 run).
flex_attention is given tensors in block order, so it stands beside our attention alone in the forward, once more with
the way there and back beside ours with layout, and beside all but the choice in forward + backward.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
import triton
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from triton.testing import do_bench

sys.path.insert(0, str(Path(__file__).parents[1] / "torch-ext"))
from video_bsa import BlockGrid, BlockSelection, block_sparse_attention, select_blocks, triton_path  # noqa: E402
from video_bsa.gather import gather_blocks, gather_keys  # noqa: E402
from video_bsa.invert import invert_lists  # noqa: E402

HEADS, WIDTH, SPARSITY, BLOCK = 32, 128, 0.9375, (4, 4, 4)
MIDDLE = (24, 44, 80)
"""704x1280, 93 frames: 84,480 tokens."""
LARGE = (48, 44, 80)
"""704x1280, 186 frames: 168,960 tokens."""
RAGGED = (24, 30, 52)
"""480x832, 93 frames: 37,440 tokens, which 4x4x4 does not divide."""
EVEN = (24, 32, 52)
"""The even grid next to it."""


def milliseconds(call: Callable[[], object], *, repeat: int = 300) -> float:
    """Median over `repeat` ms of runs, after a warm-up."""
    return do_bench(call, warmup=100, rep=repeat, return_mode="median")


def normal(grid: tuple[int, int, int]) -> torch.Tensor:
    """bf16 [1, HEADS, S, WIDTH]."""
    return torch.randn(1, HEADS, math.prod(grid), WIDTH, device="cuda", dtype=torch.bfloat16)


def smooth(grid: tuple[int, int, int]) -> torch.Tensor:
    """bf16 [1, HEADS, S, WIDTH] whose neighbours in (t, h, w) are alike: coarse noise, interpolated, and some noise."""
    coarse = torch.randn(HEADS, WIDTH, *(max(2, size // 6) for size in grid), device="cuda")
    fine = F.interpolate(coarse, size=grid, mode="trilinear").flatten(2).transpose(1, 2)
    return (fine + 0.5 * torch.randn_like(fine)).to(torch.bfloat16).unsqueeze(0).contiguous()


def matmul_rate() -> float:
    """TFLOP/s of a bf16 product of 8192 by 8192 matrices."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / milliseconds(lambda: a @ b) / 1e9


class Case:
    """Tensors, lists and figures of one grid."""

    def __init__(self, grid_q: tuple[int, int, int], grid_k: tuple[int, int, int], make: Callable = normal) -> None:
        self.grids = {"grid_q": grid_q, "grid_k": grid_k, "block": BLOCK}
        self.blocks_q, self.blocks_k = BlockGrid(grid_q, BLOCK), BlockGrid(grid_k, BLOCK)
        self.q, self.k, self.v, self.grad = make(grid_q), make(grid_k), normal(grid_k), normal(grid_q)
        self.lists = select_blocks(self.q, self.k, **self.grids, sparsity=SPARSITY)
        self.pairs = int(self.lists.counts.sum())
        self.tflop = 4 * self.pairs * 64 * 64 * WIDTH / 1e12

    def attention_alone(self) -> float:
        """ms of the attention kernel over keys and values that are in block order already."""
        from video_bsa import hopper

        k, sizes = gather_keys(self.k, self.blocks_k)
        v = gather_blocks(self.v, self.blocks_k)
        out, lse = triton_path.tokens_first_empty(self.q), self.q.new_empty(self.q.shape[:3], dtype=torch.float32)
        return milliseconds(
            lambda: hopper.forward(self.q, k, v, sizes, *self.lists, self.blocks_q, self.blocks_k, out, lse)
        )

    def with_layout(self) -> float:
        """ms of the attention with lists given."""
        return milliseconds(lambda: triton_path.forward(self.q, self.k, self.v, *self.lists, *self._blocks))

    def whole_call(self) -> float:
        """ms from q, k and v to the result: selection, layout and attention."""
        return milliseconds(lambda: block_sparse_attention(self.q, self.k, self.v, **self.grids, sparsity=SPARSITY))

    def both_ways(self) -> float:
        """ms of forward and backward with lists given."""
        leaves = [x.detach().requires_grad_() for x in (self.q, self.k, self.v)]

        def step() -> None:
            out = block_sparse_attention(*leaves, **self.grids, lists=self.lists)
            torch.autograd.grad(out, leaves, self.grad)

        return milliseconds(step)

    def inversion(self) -> float:
        """ms of the list inversion that the backward does."""
        return milliseconds(lambda: invert_lists(*self.lists, self.blocks_k.num_blocks))

    def flex(self) -> tuple[float, float, float]:
        """ms of flex_attention on the same lists: (forward, forward with layout, forward and backward), each the best
        of a few settings. Its layout is what our call does inside: q, k and v to block order, the result back."""
        q, k, v = self._in_blocks()
        grad = in_blocks(self.grad, self.blocks_q)
        mask = flex_mask(self.lists, self.blocks_k.num_blocks)
        best = [math.inf] * 3
        for stages in (2, 3):
            compiled = compile_flex(stages)

            def from_rows(attend: Callable = compiled) -> torch.Tensor:
                out = attend(*self._in_blocks(), block_mask=mask)
                return self.blocks_q.from_blocks(out.unflatten(2, (-1, math.prod(BLOCK))))

            with torch.no_grad():
                forward = milliseconds(lambda attend=compiled: attend(q, k, v, block_mask=mask))
                with_layout = milliseconds(from_rows)
            leaves = [x.detach().requires_grad_() for x in (q, k, v)]

            def step(attend: Callable = compiled, leaves: list = leaves) -> None:
                torch.autograd.grad(attend(*leaves, block_mask=mask), leaves, grad)

            best = [min(pair) for pair in zip(best, (forward, with_layout, milliseconds(step)), strict=True)]
        return best[0], best[1], best[2]

    def _in_blocks(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return in_blocks(self.q, self.blocks_q), in_blocks(self.k, self.blocks_k), in_blocks(self.v, self.blocks_k)

    @property
    def _blocks(self) -> tuple[BlockGrid, BlockGrid]:
        return self.blocks_q, self.blocks_k


def in_blocks(x: torch.Tensor, blocks: BlockGrid) -> torch.Tensor:
    """[1, HEADS, S, WIDTH] in block order, as flex_attention takes it."""
    return gather_blocks(x, blocks).view(1, HEADS, -1, WIDTH)


def flex_mask(lists: BlockSelection, num_keys: int) -> BlockMask:
    """The same lists for flex_attention, all as whole blocks, which it does not mask."""
    wide = F.pad(lists.indices, (0, num_keys - lists.indices.shape[-1]))
    none = torch.zeros_like(lists.counts)
    return BlockMask.from_kv_blocks(none, wide, lists.counts, wide, BLOCK_SIZE=(64, 64))


def compile_flex(stages: int) -> Callable:
    """flex_attention with 64x64 tiles and 4 warps.

    The options cannot be given by argument: the backward tests its default tile against the block size before it looks
    at them and finds no valid choice (pytorch issue 176025).
    """
    from torch._inductor.template_heuristics import triton as heuristics

    forward = heuristics.FlexConfig(64, 64, stages, 4)
    backward = heuristics.FlexBwDConfig(64, 64, 64, 64, stages, 4)
    heuristics.CUDAConfigHeuristic.get_flex_attn_fwd_configs = lambda *_: [forward]
    heuristics.CUDAConfigHeuristic.get_flex_attn_bwd_configs = lambda *_: [backward]
    torch._dynamo.reset()
    return torch.compile(flex_attention)


def dense(grid: tuple[int, int, int]) -> float:
    """ms of cuDNN's dense attention, forward."""
    q, k, v = (normal(grid) for _ in range(3))
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return milliseconds(lambda: F.scaled_dot_product_attention(q, k, v))


def row(name: str, ms: float, tflop: float | None = None, note: str = "") -> None:
    """One line of the table."""
    rate = f"{tflop / ms * 1e3:.0f}" if tflop else ""
    print(f"| {name} | {ms:.2f} | {rate} | {note} |", flush=True)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="leave out flex_attention and the dense yardstick")
    options = parser.parse_args()
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        sys.exit("This benchmark times the kernels for sm_90 (H100, H200), and there is no such GPU here.")
    torch.manual_seed(0)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}, bf16\n")
    print("| what | ms | TFLOP/s | beside |\n|---|---|---|---|")
    rate = matmul_rate()
    print(f"| matmul 8192 | | {rate:.0f} | |")

    middle = Case(MIDDLE, MIDDLE)
    alone = middle.attention_alone()
    both = middle.both_ways()
    row("84,480: attention alone", alone, middle.tflop, f"{middle.tflop / alone * 1e3 / rate:.0%} of matmul")
    laid_out = middle.with_layout()
    row("84,480: with layout", laid_out, middle.tflop)
    whole = middle.whole_call()
    row("84,480: whole call", whole, middle.tflop, f"{whole / alone:.2f}x the attention alone")
    row("84,480: forward + backward", both, 3.5 * middle.tflop)
    if not options.quick:
        flex_forward, flex_laid_out, flex_both = middle.flex()
        row("84,480: flex_attention forward", flex_forward, middle.tflop, f"ours {flex_forward / alone:.2f}x as fast")
        note = f"ours {flex_laid_out / laid_out:.2f}x as fast"
        row("84,480: flex_attention forward with layout", flex_laid_out, middle.tflop, note)
        row("84,480: flex_attention forward + backward", flex_both, 3.5 * middle.tflop, f"ours {flex_both / both:.2f}x")
        row("84,480: cuDNN dense", dense(MIDDLE), 4 * math.prod(MIDDLE) ** 2 * WIDTH * HEADS / 1e12)
    del middle
    local = Case(MIDDLE, MIDDLE, smooth)
    row("84,480 local: attention alone", local.attention_alone(), local.tflop)
    row("84,480 local: forward + backward", local.both_ways(), 3.5 * local.tflop)
    del local

    large = Case(LARGE, LARGE)
    alone = large.attention_alone()
    row("168,960: attention alone", alone, large.tflop, f"{large.tflop / alone * 1e3 / rate:.0%} of matmul")
    row("168,960: whole call", large.whole_call(), large.tflop)
    row("168,960: forward + backward", large.both_ways(), 3.5 * large.tflop)
    row("168,960: list inversion", large.inversion())
    del large

    even, ragged = Case(EVEN, EVEN), Case((RAGGED[0] - 1, *RAGGED[1:]), RAGGED)
    per_pair = [1e6 * case.attention_alone() / case.pairs for case in (even, ragged)]
    row("24x32x52: attention alone", per_pair[0] * even.pairs / 1e6, even.tflop, f"{per_pair[0]:.2f} ns a pair")
    note = f"{per_pair[1]:.2f} ns a pair, {per_pair[1] / per_pair[0]:.2f}x the even grid"
    row("23 of 24x30x52: attention alone", per_pair[1] * ragged.pairs / 1e6, ragged.tflop, note)
    row("23 of 24x30x52: whole call", ragged.whole_call(), ragged.tflop)
    row("23 of 24x30x52: forward + backward", ragged.both_ways(), 3.5 * ragged.tflop)
    print(f"| matmul 8192, again | | {matmul_rate():.0f} | |")


if __name__ == "__main__":
    main()
