import base64
import hashlib
import io
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from studio.cli import main
from studio.core.errors import ConfigError, MediaError
from studio.core.model.lora import LoraFile
from studio.core.sample.compare import compare_attention, heat_map, psnr_by_frame, render_variants, strength_variants
from studio.core.sample.figures import SAME, color_drift, drift, flicker, motion, psnr, video_figures
from studio.core.sample.gallery import GalleryReader, find_videos, read_gallery_video
from studio.core.sample.judge import MOST, compare_videos, frames_at, moments, setting_rows
from studio.core.sample.request import SampleRequest
from studio.core.sample.request_file import save_request
from studio.core.sample.video import read_video, write_video
from studio.view.comparison_page import comparison_html, comparison_sheet
from studio.view.judged import difference_facts, difference_sentence, figure_facts, warnings
from studio.view.words import words

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


def in_gallery(folder, number, frames, request=None, **settings):
    """A video of the gallery, with its request beside it if there is one."""
    name = f"sample-{number:04d}"
    write_video(folder / f"{name}.mp4", frames, 15, settings)
    if request:
        save_request(request, folder, name)
    return read_gallery_video(folder / f"{name}.mp4")


@pytest.fixture
def moving():
    """uint8 [9, 32, 48, 3]: a bright bar that goes from left to right."""
    frames = np.full((9, 32, 48, 3), 40, np.uint8)
    for number, frame in enumerate(frames):
        frame[:, 5 * number : 5 * number + 8] = 200
    return frames


def test_files_are_as_far_apart_as_what_a_player_shows(tmp_path, moving):
    other = moving.copy()
    other[4:, :16] = 90
    first, second = in_gallery(tmp_path, 1, moving), in_gallery(tmp_path, 2, other[:8])
    compared = compare_videos([first, second])
    (a, fps), (b, _) = read_video(first.path), read_video(second.path)
    assert (compared.shapes[0].num_frames, compared.shapes[1].num_frames, fps) == (9, 8, 15)
    nothing, found = compared.pictures
    assert nothing is None
    assert found.psnr == pytest.approx(psnr_by_frame(b, a))
    assert found.worst >= 4
    a, b = a[:8].astype(float), b.astype(float)
    assert found.error == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a))
    assert found.drift == pytest.approx(np.abs(b - a).mean())
    seconds = moments(compared.shapes, 3)
    assert seconds == (0, 4 / 15, 8 / 15)
    for video, places in ((first, [0, 4, 8]), (second, [0, 4, 7])):
        np.testing.assert_array_equal(frames_at(video.path, seconds), read_video(video.path)[0][places])


def test_what_differs_is_said_in_words(tmp_path, moving):
    one, other = (
        SampleRequest(prompt="a", loras=(LoraFile(path=tmp_path / run / "lora.safetensors", strength=0.5),))
        for run in ("monday", "tuesday")
    )
    alike = {"prompt": "a", "seed": 3, "num_frames": 9, "attention": "dense", "loras": [{"file": "lora.safetensors"}]}
    videos = [
        in_gallery(tmp_path, 1, moving, one, **alike, seconds=4.0, device="cpu"),
        in_gallery(tmp_path, 2, moving, other, **alike, seconds=2.0, device="cuda"),
    ]
    compared = compare_videos(videos)
    (row,) = compared.differences
    assert (row.key, row.values) == (
        "loras",
        ((("monday/lora.safetensors", 0.5),), (("tuesday/lora.safetensors", 0.5),)),
    )
    w = words("en")
    assert difference_sentence(compared, w) == "One setting differs: LoRA."
    assert not warnings(compared, w)
    facts = dict(difference_facts(compared, 1, w))
    assert facts["Likeness"] == "the same, to the last level"
    assert "Speed" not in facts, "another LoRA is no faster"
    assert {row.key for row in setting_rows(videos)} == {"prompt", "seed", "num_frames", "attention", "loras"}

    sparse = {"attention": "sparse", "attention_sparsity": 0.9375, "attention_block": [4, 4, 4]}
    third = in_gallery(tmp_path, 3, moving[:, ::2], one, **alike | sparse | {"seed": 4, "seconds": 2.0})
    compared = compare_videos([videos[0], third])
    assert difference_sentence(compared, w) == "2 settings differ: Seed, Attention."
    assert compared.pictures == (None, None)
    assert difference_facts(compared, 1, w) == [("Speed", "2.00 times as fast")]
    assert len(warnings(compared, w)) == 2, "another seed, and another size"
    assert dict(figure_facts(third, w))["Attention"] == "sparse, 93.75 % of the 4x4x4 blocks skipped"
    for count in (1, MOST + 1):
        with pytest.raises(ConfigError, match=f"{count} videos cannot"):
            compare_videos(videos[:1] * count)


def test_a_gallery_forgets_what_was_deleted_and_reads_nothing_twice(tmp_path, moving):
    reader = GalleryReader()
    for number in (1, 2, 10):
        in_gallery(tmp_path, number, moving, seed=number, group="g", label=str(number))
    first = reader.videos(tmp_path)
    assert [(video.name, video.label) for video in first][::2] == [("sample-0010", "10"), ("sample-0001", "1")]
    (tmp_path / "sample-0002.mp4").unlink()
    (tmp_path / "sample-0003.mp4").write_bytes(b"no video")
    second = reader.videos(tmp_path)
    assert [video.name for video in second] == ["sample-0010", "sample-0003", "sample-0001"]
    assert (second[0], second[2]) == (first[0], first[2])
    assert second[0] is first[0]
    for name in ("../sample-0001", "sample-0002", "queue"):
        with pytest.raises(MediaError, match="no video"):
            find_videos(tmp_path, [name])


@pytest.mark.parametrize("language", ["en", "es"])
def test_one_page_holds_a_comparison_and_runs_only_its_own_script(tmp_path, moving, language):
    hostile = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    videos = [
        in_gallery(
            tmp_path, number, moving, prompt=hostile, label=hostile * number, seed=3, figures={"motion": hostile}
        )
        for number in (1, 2)
    ]
    page = comparison_html(compare_videos(videos), words(language))
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    (allowed,) = re.findall(r"script-src ([^\"]*)\"", page)
    assert allowed == f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
    assert "default-src 'none'" in page
    assert "<img src=x" not in page
    assert not re.search(r"https?://", page)
    embedded = re.findall(r"data:video/mp4;base64,([^']*)'", page)
    assert [base64.b64decode(one) for one in embedded] == [video.path.read_bytes() for video in videos]


def test_a_contact_sheet_has_a_row_a_video_and_a_column_a_moment(tmp_path):
    levels = np.linspace(30, 220, 11).astype(np.uint8)
    frames = np.broadcast_to(levels[:, None, None, None], (11, 32, 32, 3))
    videos = [in_gallery(tmp_path, 1, frames, prompt="a $x$"), in_gallery(tmp_path, 2, 255 - frames)]
    sheet = Image.open(io.BytesIO(comparison_sheet(compare_videos(videos), words("en"), columns=3))).convert("L")
    cells = np.array(sheet)[100:, 190:]
    tall, wide = cells.shape
    centers = [[int(cells[(2 * r + 1) * tall // 4, (2 * c + 1) * wide // 6]) for c in range(3)] for r in range(2)]
    np.testing.assert_allclose(centers, [[30, 125, 220], [225, 130, 35]], atol=6)


def test_the_command_puts_a_comparison_onto_a_page(tmp_path, capsys):
    small = ["--size", "32x32", "--frames", "5", "--steps", "1", "--out", str(tmp_path / "out.mp4")]
    asked = ["sample", "--prompt", "it moves", *small, "--page", str(tmp_path / "pages/page.html")]
    assert main(asked) != 0
    assert "--page shows 2 to" in capsys.readouterr().err
    assert main([*asked, "--compare-attention"]) == 0
    page = (tmp_path / "pages/page.html").read_text()
    assert "Against “Dense”" in page
    assert "One setting differs: Attention." in page
    assert page.count("data:video/mp4;base64,") == 2
    (tmp_path / "out-dense.mp4").unlink()
    assert main([*asked, "--compare-attention"]) != 0
    assert (tmp_path / "pages/page.html").read_text() == page, "nothing is overwritten"
