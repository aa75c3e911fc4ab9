"""Dense or sparse is settled by what was asked for, what runs here, and how many tokens the video has."""

from dataclasses import replace

import pytest
import torch

from studio.core.errors import DeviceError
from studio.core.geometry import Grid
from studio.core.model import attention
from studio.core.model.attention import SPARSE_PAYS_FROM, AttentionChoice, choose_attention
from studio.core.model.load import SampleDefaults

LONG, SHORT = Grid(24, 30, 52), Grid(5, 8, 8)
NO_KERNEL = "the kernels need another machine"


def used(setting, grid_k, *, refusal=None, frames_held=1):
    grid_q = Grid(grid_k.t - frames_held, grid_k.h, grid_k.w)
    return AttentionChoice(setting=setting, refusal=refusal).resolve(grid_q, grid_k)


def test_auto_is_sparse_where_the_kernels_run_and_the_video_is_long():
    found = used("auto", LONG)
    assert (found.kind, found.sparsity, found.block) == ("sparse", 0.9375, (4, 4, 4))
    assert "93.75 %" in found.reason
    assert "4x4x4" in found.reason
    assert "kernels of video_bsa" in found.reason


def test_auto_is_dense_on_a_short_video_and_names_both_numbers():
    found = used("auto", SHORT)
    assert (found.kind, found.sparsity, found.block) == ("dense", None, None)
    assert "320" in found.reason
    assert f"{SPARSE_PAYS_FROM:,}" in found.reason


def test_auto_is_dense_without_kernels_and_says_what_is_missing():
    found = used("auto", LONG, refusal=NO_KERNEL)
    assert found.kind == "dense"
    assert NO_KERNEL in found.reason


def test_sparse_is_sparse_at_any_length_and_says_what_computes_it():
    for grid in (SHORT, LONG):
        found = used("sparse", grid, refusal=NO_KERNEL)
        assert found.kind == "sparse"
        assert "plain PyTorch" in found.reason
        assert NO_KERNEL in found.reason
    assert "kernels of video_bsa" in used("sparse", SHORT).reason


def test_one_latent_frame_of_queries_is_dense_as_published():
    found = used("sparse", Grid(2, 64, 64))
    assert found.kind == "dense"
    assert "latent frame" in found.reason


def test_one_latent_frame_has_no_queries_beyond_the_start_frame():
    assert used("sparse", Grid(1, 64, 64)).kind == "dense"
    assert used("auto", Grid(1, 200, 200)).kind == "dense"


@pytest.mark.parametrize(("dtype", "kind"), [(torch.float32, "dense"), (torch.bfloat16, "sparse")])
def test_auto_is_dense_in_a_type_that_the_kernels_are_slow_in(monkeypatch, dtype, kind):
    monkeypatch.setattr(attention, "kernel_refusal", lambda *_: None)
    arguments = {"block": (4, 4, 4), "sparsity": 0.9375, "device": torch.device("cuda"), "head_width": 128}
    found = choose_attention("auto", dtype=dtype, **arguments).resolve(Grid(23, 30, 52), LONG)
    assert found.kind == kind
    assert ("fp32" in found.reason) == (kind == "dense")
    assert choose_attention("sparse", dtype=dtype, **arguments).resolve(Grid(23, 30, 52), LONG).kind == "sparse"


def test_dense_is_dense():
    assert used("dense", LONG).kind == "dense"


def test_sparse_on_a_gpu_that_the_kernels_refuse_is_an_error_at_once(monkeypatch):
    monkeypatch.setattr(attention, "kernel_refusal", lambda *_: NO_KERNEL)
    arguments = {"block": (4, 4, 4), "sparsity": 0.9375, "dtype": torch.float32, "head_width": 64}
    for device in ("cuda", "mps"):
        with pytest.raises(DeviceError, match=NO_KERNEL):
            choose_attention("sparse", device=torch.device(device), **arguments)
    assert choose_attention("auto", device=torch.device("cuda"), **arguments).refusal == NO_KERNEL
    assert choose_attention("sparse", device=torch.device("cpu"), **arguments).is_ever_sparse


def test_a_bundle_answers_for_a_size_in_pixels(tiny_bundle):
    size = SampleDefaults()
    bundle = replace(tiny_bundle, attention=AttentionChoice(setting="auto"))
    assert bundle.attention_of(size.num_frames, size.height, size.width).kind == "sparse"
    assert bundle.attention_of(17, 128, 128).kind == "dense"
    assert tiny_bundle.attention_of(size.num_frames, size.height, size.width).kind == "dense"
