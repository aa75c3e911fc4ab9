"""The fused kernels against the plain PyTorch that each stands for, values and gradients.

On a GPU in bf16, fp16 and fp32; under TRITON_INTERPRET=1 in fp32 and fp16 on the CPU (`test_triton_interpreter.py`).
Bounds: fp32 differs by the order of sums; in 16 bits both round at the same places, so that few numbers differ at all.
"""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", minversion="3.6")

from video_bsa import fused  # noqa: E402

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [
    pytest.mark.skipif(
        not (torch.cuda.is_available() or IS_INTERPRETED), reason="needs a CUDA device or Triton's interpreter"
    ),
    *([] if IS_INTERPRETED else [pytest.mark.gpu]),
]
DEVICE = "cpu" if IS_INTERPRETED else "cuda"
TYPES = [torch.float32, torch.float16] if IS_INTERPRETED else [torch.bfloat16, torch.float16, torch.float32]
BOUND = {torch.float32: 2e-6, torch.float16: 2e-4, torch.bfloat16: 5e-4}
EPS = 1e-6
# The interpreter runs one program after another.
TOKENS = 6 if IS_INTERPRETED else 13
ROWS = 9 if IS_INTERPRETED else 17


def plain_modulate(x, shift, scale):
    normed = F.layer_norm(x.float(), (x.shape[-1],), eps=EPS).unflatten(1, (shift.shape[1], -1))
    return (normed * (1 + scale) + shift).flatten(1, 2).to(x.dtype)


def plain_layer_norm(x, weight, bias):
    return F.layer_norm(x.float(), (x.shape[-1],), weight.float(), bias.float(), EPS).to(x.dtype)


def plain_add_gated(x, update, gate):
    gated = update.float().unflatten(1, (gate.shape[1], -1)) * gate
    return (x.float() + gated.flatten(1, 2)).to(x.dtype)


def plain_add_after(x, update, start):
    return torch.cat((x[:, :start], x[:, start:] + update), dim=1)


def plain_norm(x, weight):
    inverse = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + EPS)
    return (x.float() * inverse).to(x.dtype) * weight.to(x.dtype)


def plain_rotate(x, cos, sin):
    exact = x.float()
    pairs = exact.unflatten(-1, (-1, 2))
    turned = torch.stack((-pairs[..., 1], pairs[..., 0]), dim=-1).flatten(-2)
    return (exact * cos + turned * sin).to(x.dtype)


def plain_self_heads(qkv, q_weight, k_weight, rotary, num_held, before=None):
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    q, k = plain_norm(q, q_weight), plain_norm(k, k_weight)
    num_before = 0 if before is None else before[0].shape[2]
    cos, sin = rotary[0][num_before:], rotary[1][num_before:]
    q, k = plain_rotate(q, cos, sin), plain_rotate(k, cos, sin)
    if before is not None:
        k = torch.cat((before[0].expand(len(k), -1, -1, -1), k), dim=2)
        v = torch.cat((before[1].expand(len(v), -1, -1, -1), v), dim=2)
    held = (x[:, :, :num_held] for x in (q, k, v))
    return q[:, :, num_held:], k, v, *held


def plain_cross_heads(q, weight):
    return plain_norm(q, weight).transpose(1, 2)


def plain_swiglu(a, b):
    return F.silu(a) * b


def normal(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


def modulation(batch, frames, width):
    """Shift, scale and gate as the chunks of one projection."""
    return normal(batch, frames, 1, 3 * width).chunk(3, dim=-1)


def agree(fast, plain, bound):
    """Same shape and type, every number written, and within the bound of the plain one."""
    assert fast.shape == plain.shape
    assert fast.dtype == plain.dtype
    assert torch.isfinite(fast).all()
    error = (fast.double() - plain.double()).norm() / plain.double().norm().clamp_min(1e-30)
    assert error <= bound, f"{error:.2e} > {bound:.0e}"


def compare(function, plain, tensors, *rest, dtype):
    """Values and gradients of `function(*tensors, *rest)` against those of `plain`."""
    results = []
    for call in (function, plain):
        inputs = [x.clone().requires_grad_() for x in tensors]
        # Not the leaves themselves: SwiGLU writes over what it was given.
        outputs = call(*(x.clone() for x in inputs), *rest)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        weights = [normal(*out.shape, dtype=out.dtype, seed=7 + i) for i, out in enumerate(outputs)]
        loss = sum((out.float() * weight.float()).sum() for out, weight in zip(outputs, weights, strict=True))
        results.append((outputs, torch.autograd.grad(loss, inputs)))
    for fast, slow in zip(*(outputs + grads for outputs, grads in results), strict=True):
        agree(fast, slow, BOUND[dtype])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("batch", "frames", "per_frame", "width"), [(1, 3, 10, 256), (2, 2, ROWS, 192), (1, 1, 1, 64)])
def test_modulate_and_gates(batch, frames, per_frame, width, dtype):
    shift, scale, gate = modulation(batch, frames, width)
    x = normal(batch, frames * per_frame, width, dtype=dtype)
    compare(fused.modulate, plain_modulate, [x], shift, scale, dtype=dtype)
    update = normal(*x.shape, dtype=dtype, seed=1)
    compare(fused.add_gated, plain_add_gated, [x, update], gate, dtype=dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("start", [0, 5])
def test_cross_attention_adds_after_the_held_tokens(start, dtype):
    x = normal(2, 21, 96, dtype=dtype)
    update = normal(2, 21 - start, 96, dtype=dtype, seed=1)
    compare(fused.add_after, plain_add_after, [x, update], start, dtype=dtype)
    weight, bias = normal(96, dtype=dtype, seed=2), normal(96, dtype=dtype, seed=3)
    compare(fused.layer_norm, plain_layer_norm, [x], weight, bias, dtype=dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("heads", "width"), [(4, 64), (3, 24), (2, 128)])
@pytest.mark.parametrize("num_held", [0, 4])
def test_heads_of_self_attention(heads, width, num_held, dtype):
    qkv = normal(2, TOKENS, 3, heads, width, dtype=dtype)
    q_weight, k_weight = normal(width, dtype=dtype, seed=1), normal(width, dtype=dtype, seed=2)
    angle = normal(TOKENS, width // 2).repeat_interleave(2, dim=-1)
    rotary = (angle.cos(), angle.sin())
    compare(fused.self_heads, plain_self_heads, [qkv], q_weight, k_weight, rotary, num_held, dtype=dtype)


@pytest.mark.parametrize("dtype", TYPES)
def test_heads_behind_cached_keys(dtype):
    qkv = normal(2, 9, 3, 64, 4, dtype=dtype).transpose(3, 4)
    weights = normal(64, dtype=dtype, seed=1), normal(64, dtype=dtype, seed=2)
    before = normal(1, 4, 5, 64, dtype=dtype), normal(1, 4, 5, 64, dtype=dtype, seed=3)
    angle = normal(14, 32).repeat_interleave(2, dim=-1)
    rotary = (angle.cos(), angle.sin())
    fast = fused.self_heads(qkv, *weights, rotary, 0, before)
    for one, other in zip(fast[:3], plain_self_heads(qkv, *weights, rotary, 0, before)[:3], strict=True):
        agree(one, other, BOUND[dtype])


@pytest.mark.parametrize("dtype", TYPES)
def test_heads_of_cross_attention_and_swiglu(dtype):
    q, weight = normal(2, 11, 4, 64, dtype=dtype), normal(64, dtype=dtype, seed=1)
    compare(fused.cross_heads, plain_cross_heads, [q], weight, dtype=dtype)
    a, b = normal(3, 700, dtype=dtype), normal(3, 700, dtype=dtype, seed=1)
    compare(fused.swiglu, plain_swiglu, [a, b], dtype=dtype)


def test_swiglu_is_differentiated_once():
    a, b = normal(5, 8).requires_grad_() * 1, normal(5, 8, seed=1).requires_grad_() * 1
    out = fused.swiglu(a, b)
    out.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_gradients_of_attention_arrive_in_any_memory_order():
    qkv = normal(1, 6, 3, 2, 16).requires_grad_()
    weights, rotary = (normal(16), normal(16, seed=1)), (normal(6, 16), normal(6, 16, seed=1))
    outputs = fused.self_heads(qkv, *weights, rotary, 2)
    grads = [normal(*out.shape, seed=4) for out in outputs]
    odd = [grad.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0) for grad in grads]
    first = torch.autograd.grad(outputs, qkv, grads, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(outputs, qkv, odd)[0])


@pytest.mark.skipif(IS_INTERPRETED, reason="the interpreter has no fp8")
@pytest.mark.parametrize("width", [64, 4096, 11008])
@pytest.mark.parametrize("by_column", [False, True])
def test_rows_in_fp8_keep_four_bits(width, by_column):
    x = normal(37, width, dtype=torch.bfloat16) * normal(37, 1).exp().bfloat16()
    x[3] = 0
    columns = normal(width).exp() if by_column else None
    out, scale = fused.quantise_rows(x, columns)
    wanted = x.float() if columns is None else x.float() * columns
    assert out.dtype == torch.float8_e4m3fn
    assert (out.float() * scale - wanted).norm() / wanted.norm() < 0.04
    assert (out.float().abs().amax(1)[wanted.abs().amax(1) > 0] == 448).all()


def test_a_parameter_is_not_overwritten():
    with pytest.raises(ValueError, match="not a leaf"):
        fused.swiglu(normal(4).requires_grad_(), normal(4))


def test_a_gate_that_wants_a_gradient_is_refused():
    shift, scale, gate = modulation(1, 1, 16)
    x = normal(1, 4, 16)
    with pytest.raises(ValueError, match="freeze"):
        fused.add_gated(x, x, gate.clone().requires_grad_())
    with pytest.raises(ValueError, match="rows of one tensor"):
        fused.modulate(x, shift, scale.clone().bfloat16())


def test_it_says_where_it_does_not_run():
    assert "fp64" in fused.refusal("cuda", torch.float64) or "float64" in fused.refusal("cuda", torch.float64)
