"""What a caller of video_bsa gets, against dense attention and against a masked oracle in fp64."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from video_bsa import BlockGrid, BlockSelection, block_sparse_attention, select_blocks

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
    """Dense fp64 attention under the mask that the lists spell out."""
    num_k = int(block_of_token(grid_k, block).max()) + 1
    allowed = F.one_hot(lists.indices.long(), num_k)
    allowed = (allowed * (torch.arange(allowed.shape[-2]) < lists.counts[..., None])[..., None]).sum(-2).bool()
    mask = allowed[:, :, block_of_token(grid_q, block)][..., block_of_token(grid_k, block)]
    scores = q.double() @ k.double().transpose(-1, -2) / q.shape[-1] ** 0.5
    return scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v.double()


@pytest.mark.parametrize(
    ("grid_q", "grid_k"),
    [((5, 7, 6), (6, 7, 6)), ((1, 4, 4), (4, 4, 4)), ((8, 4, 4), (8, 4, 4)), ((1, 1, 1), (3, 5, 9))],
)
def test_sparsity_zero_is_dense_attention(grid_q, grid_k):
    q, k, v = make_qkv(grid_q, grid_k)
    out = block_sparse_attention(q, k, v, grid_q=grid_q, grid_k=grid_k, sparsity=0.0)
    # fp32 sums in another order; 2e-6 is the bound that the published kernels meet in fp32
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("block", [(4, 4, 4), (2, 4, 4), (4, 4, 8), (1, 3, 2)])
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_output_is_that_of_a_masked_dense_attention(block, scale):
    q, k, v = make_qkv(**RAGGED)
    q = q * scale
    lists = select_blocks(q, k, **RAGGED, block=block, sparsity=0.6)
    out = block_sparse_attention(q, k, v, **RAGGED, block=block, lists=lists)
    expected = masked_oracle(q, k, v, lists, **RAGGED, block=block)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out, block_sparse_attention(q, k, v, **RAGGED, block=block, sparsity=0.6))


def test_bf16_comes_back_as_bf16_within_its_rounding():
    q, k, v = make_qkv(**RAGGED, dtype=torch.bfloat16)
    lists = select_blocks(q, k, **RAGGED, sparsity=0.5)
    out = block_sparse_attention(q, k, v, **RAGGED, lists=lists)
    expected = masked_oracle(q, k, v, lists, **RAGGED, block=(4, 4, 4))
    assert out.dtype is torch.bfloat16
    # fp32 inside, one rounding at the end: half a unit of bf16's 8 bits
    assert (out.double() - expected).norm() / expected.norm() < 4e-3


def test_gradients_are_those_of_finite_differences():
    qkv = [x.requires_grad_() for x in make_qkv(**SMALL, batch=1, heads=2, width=4, dtype=torch.float64)]
    lists = select_blocks(qkv[0], qkv[1], **SMALL, sparsity=0.5)
    assert torch.autograd.gradcheck(lambda q, k, v: block_sparse_attention(q, k, v, **SMALL, lists=lists), qkv)


def test_chunks_change_nothing(monkeypatch):
    q, k, v = make_qkv(**RAGGED)
    whole = block_sparse_attention(q, k, v, **RAGGED, sparsity=0.5)
    monkeypatch.setattr("video_bsa.reference.CHUNK_ELEMENTS", 1)
    torch.testing.assert_close(block_sparse_attention(q, k, v, **RAGGED, sparsity=0.5), whole)


def test_nan_in_blocks_that_are_not_listed_does_not_leak():
    q, k, v = make_qkv(**RAGGED)
    lists = select_blocks(q, k, **RAGGED, sparsity=0.5)
    unseen = next(m for m in range(8) if (lists.indices[0, 0, 0] != m).all())
    clean = block_sparse_attention(q, k, v, **RAGGED, lists=lists)
    poisoned = block_of_token(RAGGED["grid_k"], (4, 4, 4)) == unseen
    k[:, :, poisoned] = torch.nan
    v[:, :, poisoned] = torch.nan
    out = block_sparse_attention(q, k, v, **RAGGED, lists=lists)
    first = block_of_token(RAGGED["grid_q"], (4, 4, 4)) == 0
    assert torch.equal(out[0, 0, first], clean[0, 0, first])


def test_entries_behind_the_count_are_ignored_and_an_empty_list_gives_zeros_without_nan():
    q, k, v = (x.requires_grad_() for x in make_qkv(**SMALL, batch=1, heads=1))
    indices = torch.tensor([[[[0, 2, 7], [99, 0, 0], [1, 2, 3], [0, 1, 3]]]], dtype=torch.int32)
    lists = BlockSelection(indices, torch.tensor([[[1, 0, 3, 2]]], dtype=torch.int32))
    out = block_sparse_attention(q, k, v, **SMALL, lists=lists)
    empty = block_of_token(SMALL["grid_q"], SMALL["block"]) == 1
    assert (out[:, :, empty] == 0).all()
    assert empty.any()
    expected = masked_oracle(q, k, v, lists._replace(indices=indices.clamp(max=7)), **SMALL)
    torch.testing.assert_close(out[:, :, ~empty].double(), expected[:, :, ~empty], rtol=1e-5, atol=1e-5)
    out.sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (q, k, v))


def test_equal_scores_go_to_the_lower_block_number_however_queries_are_ordered():
    q, k = torch.ones(1, 1, 8, 4), torch.ones(1, 1, 64, 4)
    grids = {"grid_q": (2, 2, 2), "grid_k": (4, 4, 4), "block": (2, 2, 2)}
    k[:, :, block_of_token((4, 4, 4), (2, 2, 2)) == 5] = 2.0
    for order in (torch.arange(8), torch.arange(8).flip(0)):
        lists = select_blocks(q[:, :, order], k, **grids, sparsity=0.5)
        assert lists.indices.tolist() == [[[[0, 1, 2, 5]]]]


def test_a_tiny_grid_keeps_one_block():
    q, k, v = make_qkv((2, 2, 2), (2, 2, 2))
    lists = select_blocks(q, k, grid_q=(2, 2, 2), grid_k=(2, 2, 2))
    assert lists.counts.unique().tolist() == [1]
    out = block_sparse_attention(q, k, v, grid_q=(2, 2, 2), grid_k=(2, 2, 2))
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v), rtol=2e-6, atol=2e-6)


def test_means_of_edge_blocks_divide_by_the_tokens_they_have():
    q, k = torch.ones(1, 1, 1, 4), torch.ones(1, 1, 5, 4)
    k[:, :, 4] = 1.5  # the edge block holds this token alone; divided by 4 it would lose
    lists = select_blocks(q, k, grid_q=(1, 1, 1), grid_k=(1, 1, 5), block=(1, 1, 4), sparsity=0.5)
    assert lists.indices.tolist() == [[[[1]]]]


@pytest.mark.parametrize("grid", [(5, 7, 6), (4, 4, 4), (1, 9, 2)])
def test_blocks_and_back_is_the_identity(grid):
    blocks = BlockGrid(grid, (4, 4, 4))
    x = torch.arange(blocks.num_tokens, dtype=torch.float32).view(1, 1, -1, 1)
    assert torch.equal(blocks.from_blocks(blocks.to_blocks(x)), x)
    assert int(blocks.valid_tokens(x.device).sum()) == blocks.num_tokens


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"grid_q": (5, 7, 5)}, r"grid_q \(5, 7, 5\) has 175 tokens, but q is \(2, 3, 210, 8\)"),
        ({"grid_k": (6, 7, 0)}, r"grid must be three counts .*\(6, 7, 0\)"),
        ({"block": (4, 0, 4)}, r"block must be three counts .*\(4, 0, 4\)"),
        ({"sparsity": 1.0}, r"sparsity is .*got 1.0"),
        ({"k_BNSD": torch.zeros(2, 1, 252, 8)}, r"q \(2, 3, 210, 8\) and k \(2, 1, 252, 8\)"),
        ({"v_BNSD": torch.zeros(2, 3, 252, 4)}, r"v \(2, 3, 252, 4\) must have the shape of k"),
        ({"q_BNSD": torch.zeros(210, 8)}, r"q must be \[B, N, S, D\], got \(210, 8\)"),
    ],
)
def test_misfits_are_named_with_their_shapes(change, names):
    q, k, v = make_qkv(**RAGGED)
    call = {"q_BNSD": q, "k_BNSD": k, "v_BNSD": v, **RAGGED} | change
    with pytest.raises(ValueError, match=names):
        block_sparse_attention(**call)


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
