"""What list_overlap and retained_mass say, against loops over sets and dense attention."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from video_bsa import BlockSelection, list_overlap, retained_mass, select_blocks

GRIDS = {"grid_q": (5, 7, 6), "grid_k": (6, 7, 6)}
BLOCK = (2, 4, 4)
PLACES_Q = list(itertools.product(range(3), range(2), range(2)))


def make_qk():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, math.prod(grid), 8, generator=generator) for grid in GRIDS.values()]


def lists_of_all_lengths():
    """Twelve query blocks by twelve key blocks; the first list is empty, and what is behind a count means nothing."""
    lists = select_blocks(*make_qk(), **GRIDS, block=BLOCK, cdf=0.6)
    counts = lists.counts.clone()
    counts[..., 0] = 0
    counts[..., 1] = 1
    behind = torch.arange(12) >= counts[..., None]
    anything = torch.tensor([2**31 - 1, 7], dtype=torch.int32).repeat(6)
    return BlockSelection(lists.indices.where(~behind, anything), counts)


def as_sets(lists, b, n):
    return [set(row[:count].tolist()) for row, count in zip(lists.indices[b, n], lists.counts[b, n], strict=True)]


def test_overlap_is_the_mean_over_neighbours_along_each_axis():
    lists = lists_of_all_lengths()
    overlap = list_overlap(lists, grid_q=GRIDS["grid_q"], block=BLOCK)
    assert overlap.shape == (2, 3)
    for b, n in itertools.product(range(2), range(3)):
        sets = as_sets(lists, b, n)
        pairs = [
            (sets[i], sets[j])
            for (i, p), (j, r) in itertools.combinations(enumerate(PLACES_Q), 2)
            if sum(abs(x - y) for x, y in zip(p, r, strict=True)) == 1
        ]
        assert len(pairs) == 20
        shares = [len(x & y) / min(len(x), len(y)) if x and y else 0.0 for x, y in pairs]
        assert overlap[b, n].item() == pytest.approx(sum(shares) / len(shares), rel=1e-6)


def test_overlap_of_equal_lists_is_one_and_of_a_single_query_block_is_undefined():
    lists = select_blocks(*make_qk(), **GRIDS, block=BLOCK, sparsity=0.0)
    assert (list_overlap(lists, grid_q=GRIDS["grid_q"], block=BLOCK) == 1).all()
    q, k = make_qk()
    alone = select_blocks(q[:, :, :1], k, grid_q=(1, 1, 1), grid_k=GRIDS["grid_k"], sparsity=0.5)
    assert list_overlap(alone, grid_q=(1, 1, 1)).isnan().all()


def test_retained_mass_is_the_dense_weight_on_listed_blocks(monkeypatch):
    q, k = make_qk()
    q = q * 3  # weights far from equal
    lists = lists_of_all_lengths()
    weights = (q.double() @ k.double().transpose(-1, -2) / 8**0.5).softmax(-1)
    of_query, of_key = (
        [PLACES_Q.index((t // 2, h // 4, w // 4)) for t, h, w in itertools.product(*map(range, grid))]
        for grid in GRIDS.values()
    )
    expected = torch.zeros(2, 3, dtype=torch.float64)
    for b, n in itertools.product(range(2), range(3)):
        sets = as_sets(lists, b, n)
        kept = torch.tensor([[j in sets[i] for j in of_key] for i in of_query])
        expected[b, n] = weights[b, n][kept].sum() / len(of_query)
    for chunk in (1 << 24, 1000):
        monkeypatch.setattr("video_bsa.measure.CHUNK_SCORES", chunk)
        mass = retained_mass(q, k, lists, **GRIDS, block=BLOCK)
        torch.testing.assert_close(mass.double(), expected, rtol=1e-5, atol=0)
    assert (mass < 0.9).all()


def test_autocast_leaves_the_mass_as_it_is():
    q, k = make_qk()
    lists = lists_of_all_lengths()
    mass = retained_mass(q, k, lists, **GRIDS, block=BLOCK)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(retained_mass(q, k, lists, **GRIDS, block=BLOCK), mass)


def test_nothing_is_lost_when_every_block_is_listed():
    q, k = (x.bfloat16() for x in make_qk())
    lists = select_blocks(q, k, **GRIDS, block=BLOCK, sparsity=0.0)
    torch.testing.assert_close(retained_mass(q, k, lists, **GRIDS, block=BLOCK), torch.ones(2, 3), rtol=1e-6, atol=0)


def test_an_empty_batch_has_no_figures():
    q, k = (x[:0] for x in make_qk())
    lists = select_blocks(q, k, **GRIDS, block=BLOCK)
    assert list_overlap(lists, grid_q=GRIDS["grid_q"], block=BLOCK).shape == (0, 3)
    assert retained_mass(q, k, lists, **GRIDS, block=BLOCK).shape == (0, 3)


def test_lists_of_another_grid_are_refused():
    q, k = make_qk()
    lists = select_blocks(q, k, **GRIDS, block=BLOCK)
    with pytest.raises(ValueError, match=r"lists must have the rows \(2, 3, 8\) .*counts \(2, 3, 12\): choose them"):
        list_overlap(lists, grid_q=GRIDS["grid_q"])
    with pytest.raises(ValueError, match=r"lists must have the rows \(2, 3, 8\)"):
        retained_mass(q, k, lists, **GRIDS)
    with pytest.raises(ValueError, match=r"lists must have the rows \(1, 3, 12\)"):
        retained_mass(q[:1], k[:1], lists, **GRIDS, block=BLOCK)
    with pytest.raises(ValueError, match=r"grid_q \(5, 7, 6\) has 210 tokens, but q is \(2, 3, 252, 8\)"):
        retained_mass(k, k, lists, **GRIDS, block=BLOCK)
    with pytest.raises(ValueError, match=r"counts must be int32"):
        list_overlap(lists._replace(counts=lists.counts.long()), grid_q=GRIDS["grid_q"], block=BLOCK)
