"""What a caller of video_bsa gets, against dense attention and against a masked oracle in fp64."""

from __future__ import annotations

import itertools
import sys

import pytest
import torch
import torch.nn.functional as F
import video_bsa
from video_bsa import (
    BlockGrid,
    BlockSelection,
    block_sparse_attention,
    check_lists,
    kernel_refusal,
    select_blocks,
)

RAGGED = {"grid_q": (5, 7, 6), "grid_k": (6, 7, 6)}
SMALL = {"grid_q": (2, 3, 3), "grid_k": (3, 3, 3), "block": (2, 2, 2)}


def make_qkv(grid_q, grid_k, *, block=None, batch=2, heads=3, width=8, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    sizes = [BlockGrid(grid, (1, 1, 1)).num_tokens for grid in (grid_q, grid_k, grid_k)]
    return [
        torch.randn(batch, heads, size, width, generator=generator, dtype=torch.float64).to(dtype) for size in sizes
    ]


def block_of_token(grid, block):
    """Block number of each token, by counting: shares no code with what is tested."""
    across = [-(-size // edge) for size, edge in zip(grid, block, strict=True)]
    return torch.tensor(
        [
            ((t // block[0]) * across[1] + h // block[1]) * across[2] + w // block[2]
            for t, h, w in itertools.product(*map(range, grid))
        ]
    )


def masked_oracle(q, k, v, lists, *, grid_q, grid_k, block):
    """(out, lse) of dense fp64 attention under the mask that the lists spell out; out is 0 where nothing is listed."""
    num_k = int(block_of_token(grid_k, block).max()) + 1
    allowed = F.one_hot(lists.indices.long(), num_k)
    allowed = (allowed * (torch.arange(allowed.shape[-2]) < lists.counts[..., None])[..., None]).sum(-2).bool()
    mask = allowed[:, :, block_of_token(grid_q, block)][..., block_of_token(grid_k, block)]
    scores = (q.double() @ k.double().transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~mask, -1e300)
    return scores.softmax(-1).masked_fill(~mask, 0.0) @ v.double(), scores.masked_fill(~mask, -torch.inf).logsumexp(-1)


def random_lists(batch, heads, num_q, num_k):
    """Lists of every length: the first is empty, the second has one block, the third all of them."""
    generator = torch.Generator().manual_seed(1)
    counts = torch.randint(0, num_k + 1, (batch, heads, num_q), generator=generator, dtype=torch.int32)
    counts[..., :3] = torch.tensor([0, 1, num_k])[:num_q]
    order = torch.rand(batch, heads, num_q, num_k, generator=generator).argsort(-1)
    listed = torch.arange(num_k) < counts[..., None]
    return BlockSelection(order.where(listed, num_k - 1).sort(-1).values.int(), counts)


def relative_error(x, expected):
    return ((x.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(
    ("grid_q", "grid_k"),
    [((5, 7, 6), (6, 7, 6)), ((1, 4, 4), (4, 4, 4)), ((8, 4, 4), (8, 4, 4)), ((1, 1, 1), (3, 5, 9))],
)
def test_sparsity_zero_is_dense_attention(grid_q, grid_k):
    leaves = [x.requires_grad_() for x in make_qkv(grid_q, grid_k)]
    out = block_sparse_attention(*leaves, grid_q=grid_q, grid_k=grid_k, sparsity=0.0)
    dense = F.scaled_dot_product_attention(*leaves)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    results = zip(
        (out, *torch.autograd.grad(out, leaves, grad)), (dense, *torch.autograd.grad(dense, leaves, grad)), strict=True
    )
    # Both are fp32 sums, each in its own order.
    assert all(relative_error(x, y.double()) < 2e-6 for x, y in results)


SHAPES = [
    pytest.param((5, 7, 6), (6, 7, 6), (4, 4, 4), id="ragged"),
    pytest.param((5, 7, 6), (6, 7, 6), (1, 3, 2), id="block of odd sides"),
    pytest.param((5, 7, 6), (6, 7, 6), (4, 4, 8), id="block wider than the grid"),
    pytest.param((7, 6, 8), (8, 6, 8), (4, 4, 4), id="23 of 24 x 30 x 52 in small"),
    pytest.param((1, 5, 7), (3, 5, 7), (4, 4, 4), id="one query frame"),
    pytest.param((1, 5, 7), (1, 5, 7), (4, 4, 4), id="one frame"),
    pytest.param((4, 4, 8), (8, 4, 4), (4, 4, 4), id="even, of unlike shapes"),
    pytest.param((2, 3, 3), (2, 3, 3), (4, 4, 4), id="one block, not full"),
]


BOUNDS = {
    # Sums in another order; 2e-6 is the bound of the kernels too.
    torch.float64: (1e-14, 1e-14),
    torch.float32: (2e-6, 2e-6),
    # Sums are fp32 inside. One rounding of the result is half a unit of the type; gradients also take the rounded
    # result in, which large logits multiply.
    torch.float16: (5e-4, 1e-3),
    torch.bfloat16: (4e-3, 8e-3),
}
"""Relative errors of the output, and of dq, dk and dv."""


@pytest.mark.parametrize(("grid_q", "grid_k", "block"), SHAPES)
@pytest.mark.parametrize("scale", [1.0, 8.0])
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_output_and_gradients_are_those_of_masked_dense_attention(grid_q, grid_k, block, scale, dtype):
    grids = {"grid_q": grid_q, "grid_k": grid_k, "block": block}
    num_q, num_k = (BlockGrid(grid, block).num_blocks for grid in (grid_q, grid_k))
    lists = random_lists(2, 3, num_q, num_k)
    if num_q == 1:  # else its one list would be empty
        lists = BlockSelection(lists.indices, torch.full_like(lists.counts, num_k))
    q, k, v = make_qkv(grid_q, grid_k, dtype=dtype)
    q = q * scale
    grad = torch.randn(q.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = block_sparse_attention(*leaves, **grids, lists=lists)
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected, _ = masked_oracle(*exact, lists, **grids)
    results = out, *torch.autograd.grad(out, leaves, grad)
    expectations = expected, *torch.autograd.grad(expected, exact, grad.double())
    of_out, of_grads = BOUNDS[dtype]
    bounds = of_out, of_grads, of_grads, of_grads
    for name, x, y, bound in zip(("out", "dq", "dk", "dv"), results, expectations, bounds, strict=True):
        assert x.dtype == dtype
        assert relative_error(x, y) < bound, name


@pytest.mark.parametrize(("grid_q", "grid_k", "block"), SHAPES)
def test_lists_come_from_the_rules_unless_they_are_given(grid_q, grid_k, block):
    q, k, v = make_qkv(grid_q, grid_k)
    grids = {"grid_q": grid_q, "grid_k": grid_k, "block": block}
    for rule in ({}, {"sparsity": 0.6}, {"cdf": 0.5}, {"cdf": 0.3, "sparsity": 0.5}):
        lists = select_blocks(q, k, **grids, **rule)
        given = block_sparse_attention(q, k, v, **grids, lists=lists)
        assert torch.equal(block_sparse_attention(q, k, v, **grids, **rule), given)
        assert relative_error(given, masked_oracle(q, k, v, lists, **grids)[0]) < 2e-6


def test_the_parts_of_a_split_list_merge_by_their_logs():
    q, k, v = make_qkv(**RAGGED, dtype=torch.float64)
    lists = random_lists(2, 3, 8, 8)
    halves = lists.counts // 2
    rolled = torch.arange(8) + halves[..., None]
    parts = [
        BlockSelection(lists.indices, halves),
        BlockSelection(lists.indices.gather(-1, rolled.clamp(max=7)), lists.counts - halves),
    ]
    grids = [[5, 7, 6], [6, 7, 6], [4, 4, 4]]
    out, lse = torch.ops.video_bsa.attend(q, k, v, *lists, *grids)
    outs, lses = zip(*(torch.ops.video_bsa.attend(q, k, v, *part, *grids) for part in parts), strict=True)
    _, expected = masked_oracle(q, k, v, lists, **RAGGED, block=(4, 4, 4))
    torch.testing.assert_close(lse, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(lse, torch.logaddexp(*lses), rtol=1e-13, atol=1e-13)
    seen = lse.isfinite()
    merged = sum(o * (part - lse).exp()[..., None] for o, part in zip(outs, lses, strict=True))
    torch.testing.assert_close(out[seen], merged[seen], rtol=1e-12, atol=1e-12)
    assert (out[~seen] == 0).all()
    assert (~seen).any()


def test_the_logs_carry_no_gradient_and_lie_in_a_row():
    q, k, v = (x.requires_grad_() for x in make_qkv((5, 4, 4), (4, 4, 4)))
    lists = select_blocks(q, k, grid_q=(5, 4, 4), grid_k=(4, 4, 4))
    out, lse = torch.ops.video_bsa.attend(q, k, v, *lists, [5, 4, 4], [4, 4, 4], [4, 4, 4])
    assert out.requires_grad
    assert not lse.requires_grad
    assert lse.is_contiguous()


def test_gradients_are_those_of_finite_differences():
    qkv = [x.requires_grad_() for x in make_qkv(**SMALL, batch=1, heads=2, width=4, dtype=torch.float64)]
    lists = select_blocks(qkv[0], qkv[1], **SMALL, sparsity=0.5)
    assert torch.autograd.gradcheck(lambda q, k, v: block_sparse_attention(q, k, v, **SMALL, lists=lists), qkv)


def run(q, k, v, *, grad=None, **rule):
    """(out, dq, dk, dv) on the ragged grids; the gradient that comes in is `grad`, or else made from the output."""
    q, k, v = (x.clone().requires_grad_() for x in (q, k, v))
    out = block_sparse_attention(q, k, v, **RAGGED, **rule)
    return out.detach(), *torch.autograd.grad(out, (q, k, v), out.detach().cos() if grad is None else grad)


def test_chunks_change_nothing(monkeypatch):
    qkv = make_qkv(**RAGGED)
    whole = run(*qkv, sparsity=0.5)
    monkeypatch.setattr("video_bsa.reference.CHUNK_ELEMENTS", 1)
    torch.testing.assert_close(run(*qkv, sparsity=0.5), whole, rtol=1e-6, atol=1e-6)


def test_two_runs_agree_bit_by_bit(monkeypatch):
    qkv = make_qkv(**RAGGED)
    monkeypatch.setattr("video_bsa.reference.CHUNK_ELEMENTS", 1 << 14)
    first, second = run(*qkv, cdf=0.7), run(*qkv, cdf=0.7)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_heads_and_batch_do_not_know_of_one_another():
    qkv = make_qkv(**RAGGED)
    whole = run(*qkv, cdf=0.7, keep_first=True)
    moved = run(*(x[[1, 0]][:, [2, 0, 1]] for x in qkv), cdf=0.7, keep_first=True)
    assert all(torch.equal(x[[1, 0]][:, [2, 0, 1]], y) for x, y in zip(whole, moved, strict=True))


def test_nan_in_blocks_that_are_not_listed_does_not_leak():
    q, k, v = make_qkv(**RAGGED)
    lists = random_lists(2, 3, 8, 8)
    rows = lists.indices.where(lists.indices != 5, 4)  # 5 becomes 4, once
    rows = rows.where(rows.diff(dim=-1, prepend=rows.new_full((2, 3, 8, 1), -1)) > 0, 8).sort(-1).values
    lists = BlockSelection(rows.clamp(max=7), (rows < 8).sum(-1).int().minimum(lists.counts))
    clean = run(q, k, v, lists=lists)
    unseen = block_of_token(RAGGED["grid_k"], (4, 4, 4)) == 5
    k[:, :, unseen] = torch.nan
    v[:, :, unseen] = torch.nan
    q[:, :, block_of_token(RAGGED["grid_q"], (4, 4, 4)) == 0] = torch.nan  # its list is empty
    poisoned = run(q, k, v, lists=lists)
    assert all(torch.equal(x, y) for x, y in zip(clean, poisoned, strict=True))
    assert all((grad[:, :, unseen] == 0).all() for grad in poisoned[2:])


def test_nan_in_a_listed_block_reaches_those_that_list_it_and_no_other():
    q, k, v = make_qkv(**RAGGED)
    lists = select_blocks(q, k, **RAGGED, sparsity=0.5)
    grad = torch.randn(q.shape, generator=torch.Generator().manual_seed(2))
    clean = run(q, k, v, lists=lists, grad=grad)
    v[:, :, block_of_token(RAGGED["grid_k"], (4, 4, 4)) == 5] = torch.nan
    out, dq, dk, dv = run(q, k, v, lists=lists, grad=grad)
    lists_it = (lists.indices == 5).any(-1)[:, :, block_of_token(RAGGED["grid_q"], (4, 4, 4))]
    for x, y in zip((out, dq), clean[:2], strict=True):
        assert x[lists_it].isnan().all()
        assert torch.equal(x[~lists_it], y[~lists_it])
    # A key block shares the fate of the queries that list it; values weigh gradients and never meet one another.
    touched = F.one_hot(lists.indices.long(), 8).sum(-2).bool() & (lists.indices == 5).any(-1, keepdim=True)
    shares = touched.any(-2)[:, :, block_of_token(RAGGED["grid_k"], (4, 4, 4))]
    assert dk[shares].isnan().all()
    assert torch.equal(dk[~shares], clean[2][~shares])
    assert torch.equal(dv, clean[3])
    for mask in (lists_it, shares):
        assert mask.any()
        assert not mask.all()


def test_entries_behind_the_count_are_ignored_and_an_empty_list_gives_zeros_without_nan():
    q, k, v = (x.requires_grad_() for x in make_qkv(**SMALL, batch=1, heads=1))
    indices = torch.tensor([[[[0, 2, 7], [99, 0, 0], [1, 2, 3], [0, 1, 3]]]], dtype=torch.int32)
    lists = BlockSelection(indices, torch.tensor([[[1, 0, 3, 2]]], dtype=torch.int32))
    out = block_sparse_attention(q, k, v, **SMALL, lists=lists)
    empty = block_of_token(SMALL["grid_q"], SMALL["block"]) == 1
    assert (out[:, :, empty] == 0).all()
    assert empty.any()
    expected, _ = masked_oracle(q, k, v, lists._replace(indices=indices.clamp(max=7)), **SMALL)
    torch.testing.assert_close(out[:, :, ~empty].double(), expected[:, :, ~empty], rtol=1e-5, atol=1e-5)
    dq, dk, dv = torch.autograd.grad(out.square().sum(), (q, k, v))
    assert (dq[:, :, empty] == 0).all()
    assert all(grad.isfinite().all() for grad in (dq, dk, dv))


def test_a_tiny_grid_keeps_one_block():
    q, k, v = make_qkv((2, 2, 2), (2, 2, 2))
    lists = select_blocks(q, k, grid_q=(2, 2, 2), grid_k=(2, 2, 2))
    assert lists.counts.unique().tolist() == [1]
    out = block_sparse_attention(q, k, v, grid_q=(2, 2, 2), grid_k=(2, 2, 2))
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("grid", [(5, 7, 6), (4, 4, 4), (1, 9, 2)])
def test_blocks_and_back_is_the_identity(grid):
    blocks = BlockGrid(grid, (4, 4, 4))
    x = torch.arange(blocks.num_tokens, dtype=torch.float32).view(1, 1, -1, 1)
    assert torch.equal(blocks.from_blocks(blocks.to_blocks(x)), x)
    assert int(blocks.valid_tokens(x.device).sum()) == blocks.num_tokens


@pytest.mark.parametrize("grid", [(5, 7, 6), (4, 4, 4), (1, 9, 2)])
def test_each_token_knows_its_block(grid):
    blocks = BlockGrid(grid, (4, 2, 4))
    assert torch.equal(blocks.block_of_token(torch.device("cpu")), block_of_token(grid, (4, 2, 4)))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"grid_q": (5, 7, 5)}, r"grid_q \(5, 7, 5\) has 175 tokens, but q is \(2, 3, 210, 8\)"),
        ({"grid_k": (6, 7, 0)}, r"grid_k must be three counts .*\(6, 7, 0\)"),
        ({"block": (4, 0, 4)}, r"block must be three counts .*\(4, 0, 4\)"),
        ({"grid_q": (5, 7)}, r"grid_q must be three counts \(t, h, w\) of at least 1, got \(5, 7\)"),
        ({"sparsity": 1.0}, r"sparsity is .*got 1.0"),
        ({"k_BNSD": torch.zeros(2, 1, 252, 8)}, r"q \(2, 3, 210, 8\) and k \(2, 1, 252, 8\)"),
        ({"v_BNSD": torch.zeros(2, 3, 252, 4)}, r"v \(2, 3, 252, 4\) must have the shape of k"),
        ({"q_BNSD": torch.zeros(210, 8)}, r"q must be \[B, N, S, D\], got \(210, 8\)"),
        ({"q_BNSD": torch.zeros(2, 3, 210, 8, dtype=torch.int32)}, r"bf16, fp16, fp32 or fp64, got torch.int32"),
        (
            {"q_BNSD": torch.zeros(2, 3, 210, 0), "k_BNSD": torch.zeros(2, 3, 252, 0)},
            r"one number wide, q is \(2, 3, 210, 0\)",
        ),
        (
            {"k_BNSD": torch.zeros(2, 3, 252, 8).half()},
            r"k \(torch.float16 on cpu\) must have the type and device of q",
        ),
        ({"v_BNSD": torch.zeros(2, 3, 252, 8).double()}, r"v \(torch.float64 on cpu\) must have .*\(torch.float32 on"),
    ],
)
def test_misfits_are_named_with_their_shapes(change, names):
    q, k, v = make_qkv(**RAGGED)
    call = {"q_BNSD": q, "k_BNSD": k, "v_BNSD": v, **RAGGED} | change
    with pytest.raises(ValueError, match=names):
        block_sparse_attention(**call)


def test_a_device_that_may_lack_fp64_is_refused(monkeypatch):
    monkeypatch.setattr("video_bsa.attention.DEVICES", ("cuda",))  # the CPU stands in for such a device
    with pytest.raises(ValueError, match="not on cpu: move them to the CPU"):
        select_blocks(*make_qkv(**RAGGED)[:2], **RAGGED)


@pytest.mark.parametrize(
    ("indices", "count", "names"),
    [
        ([0, 0], 2, "strictly ascending"),
        ([0, 8], 2, r"\[0, 8\)"),
        ([0, 1], 3, r"\[0, 2\]"),
        ([-1, 1], 2, r"\[0, 8\)"),
    ],
)
def test_lists_that_cannot_be_right_are_refused(indices, count, names):
    q, k, v = make_qkv(**SMALL, batch=1, heads=1)
    rows = torch.tensor([indices], dtype=torch.int32).expand(1, 1, 4, 2)
    lists = BlockSelection(rows, torch.full((1, 1, 4), count, dtype=torch.int32))
    with pytest.raises(ValueError, match=names):
        block_sparse_attention(q, k, v, **SMALL, lists=lists)
    with pytest.raises(ValueError, match=names):
        check_lists(lists, grid_k=SMALL["grid_k"], block=SMALL["block"])


@pytest.mark.parametrize("rule", [{"sparsity": 0.5}, {"cdf": 0.5}, {"keep_first": True}])
def test_lists_and_a_rule_are_refused_together(rule):
    q, k, v = make_qkv(**SMALL, batch=1, heads=1)
    lists = select_blocks(q, k, **SMALL)
    with pytest.raises(ValueError, match="lists fix the key blocks"):
        block_sparse_attention(q, k, v, **SMALL, lists=lists, **rule)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda i, c: (i[:, :, :3], c[:, :, :3]), r"rows \(1, 1, 4\).*indices are \(1, 1, 3, 4\), counts \(1, 1, 3\)"),
        (lambda i, c: (i, c[:, :, :3]), r"indices are \(1, 1, 4, 4\), counts \(1, 1, 3\)"),
        (lambda i, c: (i[..., :0], c * 0), r"at least one column; indices are \(1, 1, 4, 0\)"),
        (lambda i, c: (i.long(), c), r"indices must be int32 on cpu, got torch.int64"),
        (lambda i, c: (i, c.long()), r"counts must be int32 on cpu, got torch.int64"),
    ],
)
def test_lists_for_other_inputs_are_refused(change, names):
    q, k, v = make_qkv(**SMALL, batch=1, heads=1)
    lists = BlockSelection(*change(*select_blocks(q, k, **SMALL, sparsity=0.5)))
    with pytest.raises(ValueError, match=names):
        block_sparse_attention(q, k, v, **SMALL, lists=lists)


def test_lists_whose_parts_do_not_fit_are_refused_without_inputs():
    lists = select_blocks(*make_qkv(**SMALL)[:2], **SMALL, sparsity=0.5)
    with pytest.raises(ValueError, match=r"rows \(2, 3, 4\).*counts \(2, 3, 3\)"):
        check_lists(lists._replace(counts=lists.counts[..., :3]), grid_k=SMALL["grid_k"], block=SMALL["block"])


def test_an_empty_batch_goes_through_both_ways():
    q, k, v = (x.requires_grad_() for x in make_qkv(**RAGGED, batch=0))
    out = block_sparse_attention(q, k, v, **RAGGED)
    assert [x.shape for x in (out, *torch.autograd.grad(out.sum(), (q, k, v)))] == [x.shape for x in (q, q, k, v)]


def test_no_kernel_runs_on_a_cpu_and_the_reason_says_so():
    assert kernel_refusal("cpu", torch.bfloat16, 128) == "the block-sparse kernels need a CUDA device, not cpu"


@pytest.mark.parametrize(
    ("dtype", "width", "block", "reason"),
    [
        (torch.float64, 128, (4, 4, 4), "bf16, fp16 and fp32, not float64"),
        (torch.bfloat16, 80, (4, 4, 4), "64 or 128 numbers, not 80"),
        (torch.float16, 64, (4, 8, 8), "up to 128 tokens in this type, not 256"),
        (torch.float32, 64, (4, 4, 8), "up to 64 tokens in this type, not 128"),
    ],
)
def test_the_kernels_say_which_inputs_they_do_not_take(dtype, width, block, reason):
    pytest.importorskip("triton", minversion="3.6")
    assert reason in kernel_refusal("cuda", dtype, width, block)


def test_gpus_that_no_kernel_was_written_for_are_named(monkeypatch):
    pytest.importorskip("triton", minversion="3.6")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert kernel_refusal("cuda", torch.float16, 64) == (
        "the block-sparse kernels need a GPU of compute capability 8.0 or higher, this one has 7.5"
    )
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert kernel_refusal("cuda", torch.float16, 64) == "the block-sparse kernels are untried on AMD GPUs"


def test_without_triton_the_refusal_names_it(monkeypatch):
    monkeypatch.delattr(video_bsa, "triton_path", raising=False)
    monkeypatch.setitem(sys.modules, "video_bsa.triton_path", None)
    assert "need Triton (" in kernel_refusal("cuda", torch.bfloat16, 128)
