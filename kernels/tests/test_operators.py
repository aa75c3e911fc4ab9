"""The three operators as PyTorch sees them: fakes, autograd, compilation, and the inputs that callers really bring."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from video_bsa import block_sparse_attention, select_blocks

GRIDS = {"grid_q": (4, 5, 6), "grid_k": (5, 5, 6)}
SIZES = [4, 5, 6], [5, 5, 6], [4, 4, 4]


def make(*, requires_grad=False):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 2, size, 16, generator=generator).requires_grad_(requires_grad) for size in (120, 150, 150)]


@pytest.mark.parametrize(
    "rule", [(0.5, None, False, False), (None, 0.5, True, False), (0.5, 0.5, False, True)], ids=str
)
def test_select_blocks_is_what_it_tells_pytorch(rule):
    q, k, _ = make()
    opcheck(torch.ops.video_bsa.select_blocks.default, (q, k, *SIZES, *rule))


def test_attend_is_what_it_tells_pytorch():
    q, k, v = make(requires_grad=True)
    lists = select_blocks(q, k, **GRIDS, sparsity=0.5)
    opcheck(torch.ops.video_bsa.attend.default, (q, k, v, *lists, *SIZES))


def test_attend_backward_is_what_it_tells_pytorch():
    q, k, v = make()
    lists = select_blocks(q, k, **GRIDS, sparsity=0.5)
    out, lse = torch.ops.video_bsa.attend(q, k, v, *lists, *SIZES)
    opcheck(torch.ops.video_bsa.attend_backward.default, (torch.ones_like(out), q, k, v, out, lse, *lists, *SIZES))


@pytest.mark.parametrize("rule", [{"sparsity": 0.75}, {"cdf": 0.5, "keep_first": True}], ids=str)
def test_a_compiled_call_has_no_graph_break_and_the_same_bits(rule):
    leaves = make(requires_grad=True)

    def attend(q, k, v):
        return block_sparse_attention(q, k, v, **GRIDS, **rule).tanh()

    plain = attend(*leaves)
    grad = torch.randn(plain.shape, generator=torch.Generator().manual_seed(1))
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")(*leaves)
    assert torch.equal(plain, compiled)
    gradients = [torch.autograd.grad(out, leaves, grad) for out in (plain, compiled)]
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_runs_without_gradients(mode):
    leaves = make(requires_grad=True)
    expected = block_sparse_attention(*leaves, **GRIDS, sparsity=0.5)
    with mode():
        out = block_sparse_attention(*leaves, **GRIDS, sparsity=0.5)
    assert torch.equal(out, expected)
    assert not out.requires_grad


def test_tensors_without_storage_go_through_with_lists_given():
    with FakeTensorMode():
        q, k, v = (torch.empty(2, 2, size, 16) for size in (120, 150, 150))
        lists = select_blocks(q, k, **GRIDS, sparsity=0.5)
        assert block_sparse_attention(q, k, v, **GRIDS, lists=lists).shape == q.shape


def test_autocast_does_not_reach_inside():
    q, k, v = make()
    expected = block_sparse_attention(q, k, v, **GRIDS, sparsity=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(block_sparse_attention(q, k, v, **GRIDS, sparsity=0.5), expected)


def test_keys_shared_by_a_batch_and_a_gradient_of_ones_may_be_expanded():
    q, k, v = make()
    shared = [x[:1].expand(2, -1, -1, -1) for x in (k, v)]
    copied = [x.contiguous() for x in shared]
    results = []
    for keys, values in (shared, copied):
        leaves = [x.detach().requires_grad_() for x in (q, keys, values)]
        out = block_sparse_attention(*leaves, **GRIDS, sparsity=0.5)
        out.sum().backward()
        results.append((out, *(leaf.grad for leaf in leaves)))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_one_gradient_alone_is_that_of_all(wanted):
    leaves = make(requires_grad=True)
    every = torch.autograd.grad(block_sparse_attention(*leaves, **GRIDS, sparsity=0.5).square().sum(), leaves)
    alone = [leaf.detach().requires_grad_(i == wanted) for i, leaf in enumerate(leaves)]
    block_sparse_attention(*alone, **GRIDS, sparsity=0.5).square().sum().backward()
    assert torch.equal(alone[wanted].grad, every[wanted])
    assert all(leaf.grad is None for i, leaf in enumerate(alone) if i != wanted)
