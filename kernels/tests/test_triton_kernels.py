"""The Triton kernels against dense masked attention in fp64.

They run on a GPU where there is one, in every type, and otherwise in fp32 in Triton's interpreter, TRITON_INTERPRET=1,
as `test_triton_interpreter.py` starts this file. Bounds are relative errors, norm over norm.
"""

from __future__ import annotations

import itertools
import math
import os

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor

pytest.importorskip("triton", minversion="3.6")
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not IS_INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)

from video_bsa import BlockGrid, BlockSelection, block_sparse_attention, select_blocks, triton_path  # noqa: E402
from video_bsa.gather import gather_blocks, gather_keys  # noqa: E402
from video_bsa.invert import invert_lists  # noqa: E402

DEVICE = "cpu" if IS_INTERPRETED else "cuda"
DTYPES = [torch.float32] if IS_INTERPRETED else [torch.bfloat16, torch.float16, torch.float32]
pytestmark = [] if IS_INTERPRETED else [pytest.mark.gpu]
# The interpreter multiplies bf16 wrongly; fp16 shows there what 16 bits round.
WITH_16_BITS = [torch.float32, torch.float16] if IS_INTERPRETED else DTYPES
FORWARD_BOUND = {torch.bfloat16: 4e-3, torch.float16: 1e-3, torch.float32: 2e-6}
BACKWARD_BOUND = {torch.bfloat16: 8e-3, torch.float16: 2e-3, torch.float32: 2e-6}
SMALL_GRIDS = [
    ((4, 6, 5), (5, 6, 5)),  # 4k + 1..2, and other query frames than key frames
    ((1, 4, 7), (3, 4, 7)),  # one query frame, 4k + 3
    ((2, 3, 4), (2, 3, 4)),  # one block, not full
]
BIG_GRIDS = [
    ((23, 30, 52), (24, 30, 52)),  # image-to-video at 480x832, 93 frames
    ((1, 30, 52), (24, 30, 52)),
    ((8, 16, 16), (8, 16, 16)),  # even
    ((5, 6, 7), (9, 6, 7)),
]
GRIDS = SMALL_GRIDS if IS_INTERPRETED else SMALL_GRIDS + BIG_GRIDS
# The interpreter takes a fifth of a second for a block of queries with a block of keys, so there they are few.
HEADS = 1 if IS_INTERPRETED else 2


def make(grid_q, grid_k, *, batch=1, heads=HEADS, width=64, dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    sizes = [math.prod(grid) for grid in (grid_q, grid_k, grid_k, grid_q)]
    q, k, v, grad = (torch.randn(batch, heads, size, width, generator=generator) for size in sizes)
    return [x.to(DEVICE, dtype) for x in (q * scale, k, v, grad)]


def block_numbers(grid, block):
    """Block of each token, by counting."""
    across = [-(-size // edge) for size, edge in zip(grid, block, strict=True)]
    return torch.tensor(
        [
            ((t // block[0]) * across[1] + h // block[1]) * across[2] + w // block[2]
            for t, h, w in itertools.product(*map(range, grid))
        ],
        device=DEVICE,
    )


def expected(q, k, v, grad, lists, grid_q, grid_k, block):
    """(out, lse, dq, dk, dv) in fp64, head by head, by dense attention under the mask that the lists spell out."""
    of_query, of_key = block_numbers(grid_q, block), block_numbers(grid_k, block)
    results = []
    for b, n in itertools.product(range(q.shape[0]), range(q.shape[1])):
        allowed = torch.zeros(int(of_query.max()) + 1, int(of_key.max()) + 1, dtype=torch.bool, device=DEVICE)
        listed = torch.arange(lists.indices.shape[-1], device=DEVICE) < lists.counts[b, n][:, None]
        rows = torch.arange(len(allowed), device=DEVICE)[:, None].expand_as(listed)
        allowed[rows[listed], lists.indices[b, n][listed].long()] = True
        query, key, value = (x[b, n].double().requires_grad_() for x in (q, k, v))
        outs, lses = [], []
        for tokens in torch.arange(len(query), device=DEVICE).split(4096):
            mask = allowed[of_query[tokens]][:, of_key]
            scores = (query[tokens] @ key.T * q.shape[-1] ** -0.5).masked_fill(~mask, -torch.inf)
            seen = mask.any(-1, keepdim=True)
            out = scores.masked_fill(~seen, 0.0).softmax(-1).masked_fill(~mask, 0.0) @ value
            out.backward(grad[b, n, tokens].double())
            outs.append(out.detach())
            lses.append(scores.detach().logsumexp(-1))
        results.append((torch.cat(outs), torch.cat(lses), query.grad, key.grad, value.grad))
    return [torch.stack(parts).unflatten(0, q.shape[:2]) for parts in zip(*results, strict=True)]


def run(q, k, v, grad, lists, grid_q, grid_k, block):
    """(out, lse, dq, dk, dv) of the kernels."""
    blocks = BlockGrid(grid_q, block), BlockGrid(grid_k, block)
    out, lse = triton_path.forward(q, k, v, *lists, *blocks)
    return out, lse, *triton_path.backward(grad, q, k, v, out, lse, *lists, *blocks)


def relative_error(x, reference):
    return ((x.double() - reference).norm() / reference.norm()).item()


def assert_close(found, reference, dtype, *, slack=1.0, slack_of_log=1.0):
    bounds = [FORWARD_BOUND[dtype], None, *[BACKWARD_BOUND[dtype]] * 3]
    for name, x, y, bound in zip(("out", "lse", "dq", "dk", "dv"), found, reference, bounds, strict=True):
        if name == "lse":
            torch.testing.assert_close(x.double(), y, rtol=1e-6 * slack_of_log, atol=2e-6 * slack_of_log)
        else:
            assert relative_error(x, y) <= bound * slack, name


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    """Whatever a kernel does not write shows up as NaN, or a number out of range, and so does what it writes around."""
    whole, rim, plain = [], 4096, torch.Tensor.new_empty

    def empty_within_a_rim(x, *shape, dtype=None, device=None):
        if device is not None or isinstance(x, FakeTensor):  # the interpreter's own, or the compiler's
            return plain(x, *shape, dtype=dtype, device=device)
        shape = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        dtype = dtype or x.dtype
        poison = torch.nan if dtype.is_floating_point else 2**30
        whole.append(torch.full((math.prod(shape) + 2 * rim,), poison, dtype=dtype, device=x.device))
        return whole[-1][rim:-rim].view(shape)

    monkeypatch.setattr(torch.Tensor, "new_empty", empty_within_a_rim)
    yield
    for buffer in whole:
        for edge in (buffer[:rim], buffer[-rim:]):
            assert (edge.isnan() if buffer.is_floating_point() else edge == 2**30).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize(("grid_q", "grid_k"), GRIDS)
def test_any_grid_both_ways(grid_q, grid_k, width, dtype):
    is_big = math.prod(grid_k) > 10_000
    tensors = make(grid_q, grid_k, width=width, dtype=dtype, heads=1 if is_big else 2)
    lists = select_blocks(*tensors[:2], grid_q=grid_q, grid_k=grid_k, sparsity=0.6)
    case = (*tensors, lists, grid_q, grid_k, (4, 4, 4))
    # Sums over 15,000 keys in fp32 round a little more than those over a few hundred: 2.3e-6 was measured.
    assert_close(run(*case), expected(*case), dtype, slack=2.0 if is_big and dtype == torch.float32 else 1.0)


@pytest.mark.parametrize("dtype", WITH_16_BITS)
@pytest.mark.parametrize("grid", [(4, 6, 5), (4, 8, 8)])
def test_large_logits(grid, dtype):
    tensors = make(grid, grid, width=128, dtype=dtype, scale=8.0)
    lists = select_blocks(*tensors[:2], grid_q=grid, grid_k=grid, sparsity=0.5)
    case = (*tensors, lists, grid, grid, (4, 4, 4))
    # The logits reach 64: half a unit in the last place of their fp32 log-sum-exp is 4e-6 already.
    assert_close(run(*case), expected(*case), dtype, slack_of_log=3.0)


@pytest.mark.parametrize(
    ("block", "dtype"),
    [
        (block, dtype)
        for block in [(4, 4, 4), (2, 2, 4), (4, 4, 8), (3, 4, 5)]
        for dtype in DTYPES
        if dtype != torch.float32 or math.prod(block) <= 64
    ],
)
def test_blocks_of_other_sizes_and_a_batch(block, dtype):
    grid_q, grid_k = ((2, 5, 6), (3, 5, 6)) if IS_INTERPRETED else ((3, 6, 9), (4, 6, 9))
    tensors = make(grid_q, grid_k, batch=2, heads=1, dtype=dtype)
    lists = select_blocks(*tensors[:2], grid_q=grid_q, grid_k=grid_k, block=block, sparsity=0.5)
    case = (*tensors, lists, grid_q, grid_k, block)
    assert_close(run(*case), expected(*case), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_lists_of_unequal_lengths_one_of_them_empty(dtype):
    grid_q, grid_k = ((3, 5, 6), (4, 5, 6)) if IS_INTERPRETED else ((4, 6, 9), (4, 6, 9))
    tensors = make(grid_q, grid_k, heads=2, dtype=dtype)
    lists = select_blocks(*tensors[:2], grid_q=grid_q, grid_k=grid_k, cdf=0.6)
    counts = lists.counts.clone()
    counts[0, 0, 0], counts[0, 1, 2] = 0, 1
    case = (*tensors, BlockSelection(lists.indices, counts), grid_q, grid_k, (4, 4, 4))
    assert_close(run(*case), expected(*case), dtype)


def test_scores_far_below_zero_keep_the_columns_without_a_token_out():
    grid = (4, 4, 5)
    q, k, v, grad = make(grid, grid, dtype=DTYPES[0])
    q, k = q.abs() * 8, -k.abs() * 8
    lists = select_blocks(q, k, grid_q=grid, grid_k=grid, sparsity=0.0)
    case = (q, k, v, grad, lists, grid, grid, (4, 4, 4))
    found, reference = run(*case), expected(*case)
    assert reference[1].max() < -150
    for x, y in zip(found, reference, strict=True):
        assert x.isfinite().all()
        # Logits of -300 and beyond: fp32 holds them to 3e-5. In bf16 dq is a small difference of large numbers.
        assert relative_error(x, y) < (2e-2 if DTYPES[0] == torch.bfloat16 else 2e-4)


def test_sparsity_zero_is_dense_attention():
    for dtype in DTYPES:
        grid_q, grid_k = (4, 6, 5), (5, 6, 5)
        q, k, v, _ = make(grid_q, grid_k, dtype=dtype)
        out = block_sparse_attention(q, k, v, grid_q=grid_q, grid_k=grid_k, sparsity=0.0)
        dense = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
        assert relative_error(out, dense) <= FORWARD_BOUND[dtype]


def test_nan_in_blocks_that_nobody_lists_does_not_leak():
    grid = (4, 6, 9)
    for dtype in DTYPES:
        q, k, v, grad = make(grid, grid, dtype=dtype)
        lists = select_blocks(q, k, grid_q=grid, grid_k=grid, sparsity=0.5)
        kept = BlockSelection(torch.zeros_like(lists.indices[..., :1]) + 2, torch.ones_like(lists.counts))
        clean = run(q, k, v, grad, kept, grid, grid, (4, 4, 4))
        outside = block_numbers(grid, (4, 4, 4)) != 2
        k[:, :, outside], v[:, :, outside] = torch.nan, torch.nan
        dirty = run(q, k, v, grad, kept, grid, grid, (4, 4, 4))
        for x, y in zip(clean, dirty, strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_runs_end_in_the_same_bits(dtype):
    grid_q, grid_k = ((3, 6, 9), (4, 6, 9)) if IS_INTERPRETED else ((23, 30, 52), (24, 30, 52))
    tensors = make(grid_q, grid_k, dtype=dtype, heads=1 if IS_INTERPRETED else 8)
    lists = select_blocks(*tensors[:2], grid_q=grid_q, grid_k=grid_k, sparsity=0.75)
    again = select_blocks(*tensors[:2], grid_q=grid_q, grid_k=grid_k, sparsity=0.75)
    assert torch.equal(lists.indices, again.indices)
    first = run(*tensors, lists, grid_q, grid_k, (4, 4, 4))
    second = run(*tensors, again, grid_q, grid_k, (4, 4, 4))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9375])
@pytest.mark.parametrize("keep_first", [False, True])
def test_the_choice_is_that_of_the_reference(sparsity, keep_first, monkeypatch):
    grid_q, grid_k = ((3, 6, 9), (5, 6, 9)) if IS_INTERPRETED else ((23, 30, 52), (24, 30, 52))
    q, k, _, _ = make(grid_q, grid_k, batch=2, heads=1)
    # Whole numbers over a power of two: sums are exact in any order, and there are many ties.
    q, k = q.mul(2).round() / 2, k.mul(2).round() / 2
    k[:, :, : k.shape[2] // 2] = k[:, :, :1]
    found = select_blocks(q, k, grid_q=grid_q, grid_k=grid_k, sparsity=sparsity, keep_first=keep_first)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    reference = select_blocks(
        q.cpu().double(), k.cpu().double(), grid_q=grid_q, grid_k=grid_k, sparsity=sparsity, keep_first=keep_first
    )
    differs = (found.indices.cpu() != reference.indices).any(-1).float().mean()
    # Means of edge blocks divide by counts like 18, which rounds: a tie of the reference may then be none.
    assert differs < 0.02
    assert torch.equal(found.counts.cpu(), reference.counts)


def test_inverted_lists_are_the_transposed_mask():
    generator = torch.Generator().manual_seed(1)
    scores = torch.rand(2, 3, 37, 150, generator=generator)
    indices = scores.topk(21, dim=-1).indices.sort(-1).values.int().to(DEVICE)
    counts = torch.randint(0, 22, (2, 3, 37), generator=generator, dtype=torch.int32).to(DEVICE)
    queries, starts = invert_lists(indices, counts, 150)
    listed = torch.arange(21, device=DEVICE) < counts[..., None]
    mask = torch.zeros(2, 3, 37, 151, dtype=torch.bool, device=DEVICE)
    mask = mask.scatter_(3, indices.long().where(listed, 150), True)[..., :150].flatten(0, 1).transpose(1, 2)
    assert torch.equal(starts.diff(), mask.sum(-1).flatten().int())
    assert torch.equal(queries[: starts[-1]], mask.nonzero()[:, 2].int())


def test_keys_in_block_order_repeat_the_first_token_where_a_block_has_none():
    blocks = BlockGrid((5, 6, 7), (4, 4, 4))
    _, k, v, _ = make(blocks.grid, blocks.grid, batch=2, heads=1, dtype=DTYPES[0])
    keys, sizes = gather_keys(k, blocks)
    valid = blocks.valid_tokens(k.device)
    assert torch.equal(sizes, valid.sum(-1).int())
    keys = keys.view(2, 1, blocks.num_blocks, 64, 64)
    # The tokens that a block has come first, in order; the rest of its rows are its first token again.
    for block, (has_token, size) in enumerate(zip(valid, sizes.tolist(), strict=True)):
        tokens = blocks.to_blocks(k)[:, :, block, has_token]
        assert torch.equal(keys[:, :, block, :size], tokens)
        assert torch.equal(keys[:, :, block, size:], tokens[:, :, :1].expand(-1, -1, 64 - size, -1))
        values = gather_blocks(v, blocks).view_as(keys)[:, :, block]
        assert torch.equal(values[:, :, :size], blocks.to_blocks(v)[:, :, block, has_token])
        assert (values[:, :, size:] == 0).all()


def test_results_lie_as_the_projection_reads_them_and_views_of_it_are_taken():
    grid = (4, 4, 8)
    packed = torch.randn(2, 128, 3, 2, 64, generator=torch.Generator().manual_seed(0)).to(DEVICE, DTYPES[0])
    q, k, v = packed.permute(2, 0, 3, 1, 4)
    out = block_sparse_attention(q, k, v, grid_q=grid, grid_k=grid, sparsity=0.5)
    assert out.transpose(1, 2).is_contiguous()
    copied = (x.contiguous() for x in (q, k, v))
    assert torch.equal(out, block_sparse_attention(*copied, grid_q=grid, grid_k=grid, sparsity=0.5))


def test_rows_may_begin_at_any_number():
    grid = (4, 4, 8) if IS_INTERPRETED else (4, 4, 16)
    q, k, v = (
        torch.randn(1, 2, math.prod(grid), 66, generator=torch.Generator().manual_seed(i)).to(DEVICE, DTYPES[0])[
            ..., 1:65
        ]
        for i in range(3)
    )
    out = block_sparse_attention(q, k, v, grid_q=grid, grid_k=grid, sparsity=0.5)
    copied = (x.contiguous() for x in (q, k, v))
    assert torch.equal(out, block_sparse_attention(*copied, grid_q=grid, grid_k=grid, sparsity=0.5))


@pytest.mark.skipif(not IS_INTERPRETED, reason="of the interpreter alone")
def test_bf16_is_refused_where_the_interpreter_gets_it_wrong():
    q = torch.zeros(1, 1, 64, 64, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="interpreter multiplies bf16 wrongly"):
        block_sparse_attention(q, q, q, grid_q=(4, 4, 4), grid_k=(4, 4, 4))


def test_lists_that_name_no_block_leave_the_inversion_within_its_bounds():
    indices = torch.tensor([[[[-1, 2, 9], [0, 1, 2]]]], dtype=torch.int32, device=DEVICE)
    counts = torch.tensor([[[3, 7]]], dtype=torch.int32, device=DEVICE)
    queries, starts = invert_lists(indices, counts, 3)
    assert starts.tolist() == [0, 1, 2, 4]
    assert queries[:4].tolist() == [1, 1, 0, 1]


def test_inputs_that_no_kernel_takes_are_refused_with_the_reason():
    q = torch.zeros(1, 1, 64, 32, device=DEVICE)
    with pytest.raises(ValueError, match="64 or 128 numbers, not 32"):
        block_sparse_attention(q, q, q, grid_q=(4, 4, 4), grid_k=(4, 4, 4))
    q = torch.zeros(2**15, 2, 1, 64, device=DEVICE)
    with pytest.raises(ValueError, match="up to 65,535 heads over the batch, not 65,536"):
        block_sparse_attention(q, q, q, grid_q=(1, 1, 1), grid_k=(1, 1, 1))


def test_more_listed_blocks_than_the_inversion_counts_are_refused(monkeypatch):
    monkeypatch.setattr("video_bsa.invert.MAX_LISTED", 8)
    indices = torch.zeros(1, 1, 4, 2, dtype=torch.int32, device=DEVICE)
    with pytest.raises(ValueError, match=r"8 listed blocks are more than the backward counts"):
        invert_lists(indices, indices[..., 0] + 1, 3)


if not IS_INTERPRETED:

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("width", [64, 128])
    def test_the_portable_kernels_agree_on_a_gpu_that_has_faster_ones(dtype, width, monkeypatch):
        monkeypatch.setattr(triton_path, "takes_hopper_path", lambda *_: False)
        grid_q, grid_k = (23, 6, 9), (24, 6, 9)
        tensors = make(grid_q, grid_k, width=width, dtype=dtype)
        lists = select_blocks(*tensors[:2], grid_q=grid_q, grid_k=grid_k, sparsity=0.75)
        case = (*tensors, lists, grid_q, grid_k, (4, 4, 4))
        assert_close(run(*case), expected(*case), dtype)

    @pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
    def test_tensors_may_lie_on_another_gpu_than_the_current_one():
        grid = (4, 6, 9)
        tensors = [x.to("cuda:1") for x in make(grid, grid, dtype=torch.bfloat16)]
        lists = select_blocks(*tensors[:2], grid_q=grid, grid_k=grid, sparsity=0.5)
        found = run(*tensors, lists, grid, grid, (4, 4, 4))
        here = [x.to("cuda:0") for x in tensors]
        lists = BlockSelection(*(x.to("cuda:0") for x in lists))
        for x, y in zip(found, run(*here, lists, grid, grid, (4, 4, 4)), strict=True):
            assert torch.equal(x.to("cuda:0"), y)

    def test_a_compiled_call_has_no_graph_break_and_the_same_bits():
        grid_q, grid_k = (7, 6, 9), (8, 6, 9)
        q, k, v, grad = make(grid_q, grid_k, dtype=torch.bfloat16, width=128)
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]

        def attend(q, k, v):
            return block_sparse_attention(q, k, v, grid_q=grid_q, grid_k=grid_k, sparsity=0.75)

        plain = attend(*leaves)
        gradients = torch.autograd.grad(plain, leaves, grad)
        compiled = torch.compile(attend, fullgraph=True)(*leaves)
        assert torch.equal(plain, compiled)
        assert all(map(torch.equal, gradients, torch.autograd.grad(compiled, leaves, grad)))
