"""Which key blocks a caller of video_bsa gets, against rules written out with loops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from video_bsa import BlockSelection, select_blocks

RAGGED = {"grid_q": (5, 7, 6), "grid_k": (9, 7, 6)}
SPREAD = 64.0
"""What makes the mean queries of whole blocks so long that the masses of key blocks are far from equal."""
EVEN = {"grid_q": (4, 8, 8), "grid_k": (8, 8, 8)}
LINE = {"grid_q": (1, 1, 1), "block": (1, 1, 1)}


def make_qk(grid_q, grid_k, *, batch=2, heads=3, width=8, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    sizes = math.prod(grid_q), math.prod(grid_k)
    return [torch.randn(batch, heads, size, width, generator=generator).to(dtype) for size in sizes]


def coordinates(grid, block):
    """Block numbers by (t, h, w) of the block, in order."""
    return list(itertools.product(*(range(-(-size // edge)) for size, edge in zip(grid, block, strict=True))))


def block_of_token(grid, block):
    """Block number of each token, by counting: shares no code with what is tested."""
    numbers = {place: number for number, place in enumerate(coordinates(grid, block))}
    tokens = itertools.product(*map(range, grid))
    return torch.tensor([numbers[tuple(x // edge for x, edge in zip(token, block, strict=True))] for token in tokens])


def means(x, grid, block):
    """Mean of each block's tokens [B, N, M, D], in x's type."""
    of_token = block_of_token(grid, block)
    return torch.stack([x[:, :, of_token == m].mean(dim=2) for m in range(int(of_token.max()) + 1)], dim=2)


def expected_lists(q, k, *, grid_q, grid_k, block=(4, 4, 4), sparsity=None, cdf=None, keep_first=False):
    """Sets of key blocks by (b, n, m), by loops over fp64 scores."""
    scores = means(q.double(), grid_q, block) @ means(k.double(), grid_k, block).transpose(-1, -2)
    mass = (scores / q.shape[-1] ** 0.5).softmax(-1)
    places_q, places_k = coordinates(grid_q, block), coordinates(grid_k, block)
    chosen = {}
    for b, n, m in itertools.product(*map(range, scores.shape[:3])):
        first = places_k.index((0, *places_q[m][1:]))
        best = sorted(range(len(places_k)), key=lambda j: (keep_first and j != first, -scores[b, n, m, j].item(), j))
        count = 1 if sparsity is None else max(1, int((1 - sparsity) * len(places_k)))
        if cdf is not None:
            running = list(itertools.accumulate(mass[b, n, m, j].item() for j in best))
            # A sum may round to 1 before its last terms, or never reach it: 1 means all.
            reached = next((i + 1 for i, x in enumerate(running) if x >= cdf and cdf < 1), len(best))
            count = max(count, reached)
        chosen[b, n, m] = set(best[:count])
    return chosen


def as_sets(lists):
    """What is listed, by (b, n, m); entries within the count must ascend, and all must be in range."""
    assert lists.indices.dtype == lists.counts.dtype == torch.int32
    found = {}
    for b, n, m in itertools.product(*map(range, lists.counts.shape)):
        row = lists.indices[b, n, m, : lists.counts[b, n, m]].tolist()
        assert row == sorted(set(row))
        found[b, n, m] = set(row)
    return found


RULES = [
    {"sparsity": 0.0},
    {"sparsity": 0.5},
    {"sparsity": 0.99},
    {"cdf": 0.3},
    {"cdf": 0.9},
    {"cdf": 0.3, "sparsity": 0.75},
    {"cdf": 1.0},
]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("keep_first", [False, True])
@pytest.mark.parametrize("grids", [RAGGED, EVEN, RAGGED | {"block": (2, 3, 4)}], ids=["ragged", "even", "odd block"])
def test_the_rules_choose_what_loops_over_fp64_scores_choose(grids, rule, keep_first):
    q, k = make_qk(grids["grid_q"], grids["grid_k"])
    q = q * SPREAD
    lists = select_blocks(q, k, **grids, **rule, keep_first=keep_first)
    assert as_sets(lists) == expected_lists(q, k, **grids, **rule, keep_first=keep_first)
    num_k = len(coordinates(grids["grid_k"], grids.get("block", (4, 4, 4))))
    assert ((lists.indices >= 0) & (lists.indices < num_k)).all()
    width = num_k if "cdf" in rule else max(1, int((1 - rule["sparsity"]) * num_k))
    assert lists.indices.shape[-1] == width


def test_both_rules_take_the_larger_count_of_each_query_block():
    q, k = make_qk(**EVEN)
    q = q * SPREAD
    by_cdf, by_both = (select_blocks(q, k, **EVEN, cdf=0.4, sparsity=sparsity) for sparsity in (None, 0.75))
    assert torch.equal(by_both.counts, by_cdf.counts.clamp(min=2))
    assert by_cdf.counts.unique().tolist() == [1, 2, 3]  # below, at and above what top-k keeps


@pytest.mark.parametrize("rule", [{}, {"sparsity": 0.5}, {"cdf": 0.1}], ids=str)
def test_the_block_of_the_conditioning_frame_can_be_forced_in(rule):
    q, k = make_qk(**RAGGED)
    free, forced = (select_blocks(q, k, **RAGGED, **rule, keep_first=keep_first) for keep_first in (False, True))
    # Two by two blocks in h and w: query blocks 1 and 5 lie where key block 1 does.
    assert all(m % 4 in row for (_, _, m), row in as_sets(forced).items())
    assert not all(m % 4 in row for (_, _, m), row in as_sets(free).items())


def test_one_in_sixteen_is_kept_where_no_rule_is_given():
    q, k = make_qk((4, 4, 4), (16, 16, 16), batch=1)
    assert select_blocks(q, k, grid_q=(4, 4, 4), grid_k=(16, 16, 16)).counts.unique().tolist() == [4]


def select_by_mass(masses, **rule):
    """List of the one query block over key blocks, a column of frames, that have these softmax masses."""
    q, k = torch.ones(1, 1, 1, 1), torch.tensor(masses).log().view(1, 1, -1, 1)
    lists = select_blocks(q, k, grid_k=(len(masses), 1, 1), **LINE, **rule)
    return lists.indices[0, 0, 0, : lists.counts[0, 0, 0]].tolist()


@pytest.mark.parametrize(
    ("cdf", "kept", "kept_as_published", "kept_with_first"),
    [
        (0.1, [1], [1], [0]),
        (0.4, [1], [1], [0, 1]),
        (0.6, [1, 2], [1], [0, 1]),
        (0.85, [0, 1, 2], [1, 2], [0, 1, 2]),
        (1.0, [0, 1, 2], None, [0, 1, 2]),
    ],
)
def test_cdf_includes_the_block_that_crosses_it_and_the_published_one_does_not(
    cdf, kept, kept_as_published, kept_with_first
):
    masses = [0.2, 0.5, 0.3]
    assert select_by_mass(masses, cdf=cdf) == kept
    assert select_by_mass(masses, cdf=cdf, keep_first=True) == kept_with_first
    if kept_as_published is not None:  # at 1 it depends on the last bit of a sum
        assert select_by_mass(masses, cdf=cdf, published=True) == kept_as_published


@pytest.mark.parametrize("masses", [[1 / 300] * 300, [1.0] + [1e-30] * 299], ids=["sum below 1", "sum at 1 at once"])
def test_cdf_of_one_keeps_every_block(masses):
    assert select_by_mass(masses, cdf=1.0) == list(range(300))


def test_a_block_whose_mass_ends_at_cdf_is_the_last_one_kept():
    masses = [0.25] * 4  # exact sums
    for published in (False, True):
        assert len(select_by_mass(masses, cdf=0.5, published=published)) == 2


def test_equal_scores_go_to_the_lower_block_number_however_queries_are_ordered():
    q, k = torch.ones(1, 1, 8, 4), torch.ones(1, 1, 64, 4)
    grids = {"grid_q": (2, 2, 2), "grid_k": (4, 4, 4), "block": (2, 2, 2)}
    k[:, :, block_of_token((4, 4, 4), (2, 2, 2)) == 5] = 2.0
    for order in (torch.arange(8), torch.arange(8).flip(0)):
        lists = select_blocks(q[:, :, order], k, **grids, sparsity=0.5)
        assert lists.indices.tolist() == [[[[0, 1, 2, 5]]]]
        by_mass = select_blocks(q[:, :, order], k, **grids, cdf=0.8)  # block 5 has 0.51, each other one 0.07
        assert as_sets(by_mass) == {(0, 0, 0): {5, 0, 1, 2, 3, 4}}


def test_means_of_edge_blocks_divide_by_the_tokens_they_have():
    q, k = torch.ones(1, 1, 1, 4), torch.ones(1, 1, 5, 4)
    k[:, :, 4] = 1.5  # the edge block holds this token alone; divided by 4 it would lose
    grids = {"grid_q": (1, 1, 1), "grid_k": (1, 1, 5), "block": (1, 1, 4)}
    for published in (False, True):
        assert select_blocks(q, k, **grids, sparsity=0.5, published=published).indices.tolist() == [[[[1]]]]


def test_scores_close_in_bf16_are_told_apart():
    q, k = torch.ones(1, 1, 1, 2).bfloat16(), torch.ones(1, 1, 2, 2).bfloat16()
    k[:, :, 1, 0] = 1 + 2**-7  # scores 2 and 2 + 2^-7, which bf16 rounds to 2
    assert select_blocks(q, k, grid_k=(2, 1, 1), **LINE, sparsity=0.5).indices.tolist() == [[[[1]]]]


def test_large_parts_that_cancel_do_not_hide_what_tells_scores_apart():
    q, k = torch.tensor([[[[1e8, 1.0, -1e8]]]]), torch.ones(1, 1, 2, 3)
    k[0, 0, 0, 1] = 0.0  # scores 0 and 1; a sum in fp32 may say 0 of both
    assert select_blocks(q, k, grid_k=(2, 1, 1), **LINE, sparsity=0.5).indices.tolist() == [[[[1]]]]


def test_fp64_inputs_are_told_apart_in_fp64():
    q, k = torch.ones(1, 1, 1, 1).double(), torch.ones(1, 1, 2, 1).double()
    k[:, :, 1] += 1e-12
    assert select_blocks(q, k, grid_k=(2, 1, 1), **LINE, sparsity=0.5).indices.tolist() == [[[[1]]]]
    assert select_blocks(q.float(), k.float(), grid_k=(2, 1, 1), **LINE, sparsity=0.5).indices.tolist() == [[[[0]]]]


@pytest.mark.parametrize("rule", [{"sparsity": 0.75}, {"cdf": 0.9}, {"cdf": 0.3, "sparsity": 0.75}], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_published_choice_is_that_of_the_published_formulas(rule, dtype):
    """Which of equal scores is kept the published code leaves open, so what is compared is the scores kept."""
    grid = (8, 8, 16)
    # Whole eighths: the sums of 64 of them are exact in any order.
    q, k = (x.mul(8).round() / 8 for x in make_qk(grid, grid, width=64, dtype=dtype))
    scores = means(q, grid, (4, 4, 4)) @ means(k, grid, (4, 4, 4)).transpose(-1, -2)
    least = int((1 - rule.get("sparsity", 1)) * 16)
    count = torch.full(scores.shape[:3], least)
    if "cdf" in rule:
        mass = (scores * 64**-0.5).float().softmax(-1).sort(dim=-1, descending=True).values
        count = (mass.cumsum(-1) <= rule["cdf"]).sum(-1).clamp(min=max(1, least))
    lists = select_blocks(q, k, grid_q=grid, grid_k=grid, **rule, published=True)
    assert torch.equal(lists.counts, count.int())
    for (b, n, m), kept in as_sets(lists).items():
        found = scores[b, n, m, sorted(kept)].sort(descending=True).values
        assert torch.equal(found, scores[b, n, m].sort(descending=True).values[: len(kept)])
    if dtype is torch.bfloat16:  # what the rounding of scores costs, or the test would show nothing
        assert as_sets(lists) != as_sets(select_blocks(q, k, grid_q=grid, grid_k=grid, **rule))


def test_published_choice_keeps_one_block_where_the_published_code_keeps_none():
    q, k = make_qk(**EVEN)
    assert select_blocks(q, k, **EVEN, sparsity=0.99, published=True).counts.unique().tolist() == [1]


@pytest.mark.parametrize("rule", [*RULES, {"cdf": 0.5, "published": True}], ids=str)
def test_heads_and_batch_do_not_know_of_one_another_and_groups_of_heads_change_nothing(rule, monkeypatch):
    q, k = make_qk(**RAGGED)
    whole = select_blocks(q, k, **RAGGED, **rule)
    moved = select_blocks(q[[1, 0]][:, [2, 0, 1]], k[[1, 0]][:, [2, 0, 1]], **RAGGED, **rule)
    assert all(torch.equal(x[[1, 0]][:, [2, 0, 1]], y) for x, y in zip(whole, moved, strict=True))
    monkeypatch.setattr("video_bsa.select.GROUP_SCORES", 1)
    assert all(torch.equal(x, y) for x, y in zip(whole, select_blocks(q, k, **RAGGED, **rule), strict=True))


@pytest.mark.parametrize("rule", [*RULES, {"cdf": 0.5, "published": True}], ids=str)
def test_two_choices_are_the_same_also_under_autocast(rule):
    q, k = make_qk(**RAGGED)
    once, again = select_blocks(q, k, **RAGGED, **rule), select_blocks(q, k, **RAGGED, **rule)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = select_blocks(q, k, **RAGGED, **rule)
    for other in (again, under_autocast):
        assert all(torch.equal(x, y) for x, y in zip(once, other, strict=True))


def test_the_choice_carries_no_gradient():
    q, k = (x.requires_grad_() for x in make_qk(**RAGGED))
    for lists in (
        select_blocks(q, k, **RAGGED, cdf=0.5),
        BlockSelection(
            *torch.ops.video_bsa.select_blocks(q, k, [5, 7, 6], [9, 7, 6], [4, 4, 4], 0.5, None, False, False)
        ),
    ):
        assert not any(x.requires_grad for x in lists)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"sparsity": 1.0}, r"sparsity is the share of key blocks skipped, in \[0, 1\); got 1.0"),
        ({"sparsity": -0.1}, r"got -0.1"),
        ({"cdf": 0.0}, r"cdf is the softmax mass .* in \(0, 1\]; got 0.0"),
        ({"cdf": 1.1, "sparsity": 0.5}, r"cdf .*got 1.1"),
        ({"grid_k": (9, 7)}, r"grid_k must be three counts .*\(9, 7\)"),
        ({"grid_k": (9, 7, 5)}, r"grid_k \(9, 7, 5\) has 315 tokens, but k is \(2, 3, 378, 8\)"),
        ({"keep_first": True, "grid_k": (9, 6, 7)}, r"same h and w, got grid_q \(5, 7, 6\) and grid_k \(9, 6, 7\)"),
        ({"keep_first": True, "published": True}, r"give one of keep_first and published"),
    ],
)
def test_rules_that_cannot_be_are_refused(change, names):
    q, k = make_qk(**RAGGED)
    with pytest.raises(ValueError, match=names):
        select_blocks(q, k, **RAGGED | change)
