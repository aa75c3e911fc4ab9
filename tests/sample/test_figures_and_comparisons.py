import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from studio.core.errors import ConfigError
from studio.core.model.lora import LoraFile
from studio.core.sample.compare import compare_attention, heat_map, psnr_by_frame, render_variants, strength_variants
from studio.core.sample.figures import SAME, color_drift, drift, flicker, motion, psnr, video_figures
from studio.core.sample.request import SampleRequest

SMALL = {"height": 64, "width": 64, "num_frames": 5, "num_inference_steps": 1}


def grey(*levels):
    return np.stack([np.full((8, 8, 3), level, np.uint8) for level in levels])


def finished(steps):
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def test_psnr_is_that_of_the_mean_squared_difference():
    assert psnr(grey(0)[0], grey(10)[0]) == pytest.approx(20 * math.log10(25.5))
    assert psnr(grey(7)[0], grey(7)[0]) == SAME


def test_motion_is_the_farthest_from_the_first_frame():
    assert motion(grey(10, 30, 12)) == 20
    assert motion(grey(10)) == 0
    assert video_figures(grey(10, 10, 10)).is_frozen
    assert not video_figures(grey(10, 30, 10)).is_frozen


def test_flicker_is_jumps_of_brightness_not_a_steady_change():
    assert flicker(grey(0, 10, 20, 30)) == 0
    assert flicker(grey(0, 10, 0, 10)) == 10
    assert flicker(grey(0, 10)) == 0


def test_colors_drift_when_the_end_is_another_color():
    frames = grey(50, 50, 50, 50)
    frames[3, ..., 0] += 30
    assert color_drift(frames) == pytest.approx(10)
    assert color_drift(grey(50, 90, 50)) == 0
    assert drift(grey(5, 9), grey(5, 1, 200)) == 4


def test_a_start_frame_that_is_kept_shows():
    figures = video_figures(grey(40, 60), grey(40)[0])
    assert figures.start_psnr == SAME
    assert video_figures(grey(40)).start_psnr is None


def test_a_heat_map_is_black_where_nothing_differs_and_white_where_much_does():
    a, b = grey(0, 0), grey(0, 0, 0)
    b[1, :4] = 255
    heat = heat_map(a, b)
    assert heat.shape == (2, 8, 8, 3)
    assert not heat[0].any()
    assert (heat[1, :4] == 255).all()
    assert not heat[1, 4:].any()
    assert psnr_by_frame(a, b) == (SAME, psnr(a[1], b[1]))
    with pytest.raises(ConfigError, match="8x8 and 16x8"):
        heat_map(a, np.zeros((2, 16, 8, 3), np.uint8))


def test_a_strength_sweep_is_one_seed_at_several_strengths(tiny_bundle, tmp_path):
    state = {
        "blocks.0.attn.qkv.lora_A.weight": torch.randn(4, 256),
        "blocks.0.attn.qkv.lora_B.weight": torch.ones(768, 4),
    }
    save_file(state, tmp_path / "lora.safetensors")
    request = SampleRequest(prompt="it moves", loras=(LoraFile(path=tmp_path / "lora.safetensors"),), **SMALL)
    variants = finished(render_variants(strength_variants(request, (0, 0.5, 1)), tiny_bundle))
    assert [variant.label for variant in variants] == ["0", "0.5", "1"]
    bare, half, full = (variant.rendered.frames for variant in variants)
    (plain,) = finished(render_variants([("", replace(request, loras=()))], tiny_bundle))
    np.testing.assert_array_equal(bare, plain.rendered.frames)
    assert drift(full, bare) > 0
    assert (half != full).any()
    with pytest.raises(ConfigError, match="no LoRA"):
        strength_variants(replace(request, loras=()), (1,))


def test_dense_and_sparse_are_compared_at_one_seed(tiny_bundle):
    request = SampleRequest(prompt="it moves", **{**SMALL, "num_frames": 17})
    compared = finished(compare_attention(request, tiny_bundle))
    assert (compared.dense.rendered.attention.kind, compared.sparse.rendered.attention.kind) == ("dense", "sparse")
    assert 1e-4 < compared.error < 1
    assert len(compared.psnr) == 17
    assert max(compared.psnr) < SAME
    assert compared.dense.seconds > 0
    exact = replace(tiny_bundle, attention=replace(tiny_bundle.attention, sparsity=0.0))
    same = finished(compare_attention(request, exact))
    assert same.error < 1e-4, "sparse attention that skips nothing is dense attention"
    assert finished(compare_attention(request, tiny_bundle, should_stop=lambda: True)) is None
