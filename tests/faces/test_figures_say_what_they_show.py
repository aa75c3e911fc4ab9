import re
from dataclasses import replace

import numpy as np
import pytest

from studio.core.data.check import check_project
from studio.core.data.decode import frames_as_trained
from studio.core.types import Bucket
from studio.view.plots import (
    DARK,
    MAX_POINTS,
    PAGE,
    draw_buckets,
    draw_loss,
    figure_png,
    figure_svg,
    save_figure,
    smooth,
)
from studio.view.sheets import contact_sheet, dataset_sheet, first_frames, picture_uri
from studio.view.words import words

EN = words("en")


def test_the_smoothed_curve_does_not_lag_behind_a_falling_loss():
    falling = np.linspace(1.0, 0.0, 200)
    assert smooth(falling) == pytest.approx(falling, abs=1e-9)
    assert smooth(falling[:2]) == pytest.approx(falling[:2])
    bent = 0.2 + np.exp(-np.arange(200) / 30)
    assert smooth(bent)[-1] == pytest.approx(bent[-1], abs=0.005)


def test_smoothing_leaves_a_constant_alone_and_quietens_noise():
    assert smooth([0.5] * 20) == pytest.approx(0.5)
    noise = np.random.default_rng(0).standard_normal(400)
    assert smooth(noise).std() < noise.std() / 3


@pytest.mark.parametrize(
    "losses", [[], [(1, 0.5)], [(1, float("nan")), (2, 0.4)], [(s, 1 / s) for s in range(1, 4000)]]
)
@pytest.mark.parametrize("log", [False, True])
def test_a_loss_curve_is_drawn_from_any_run(losses, log):
    figure = draw_loss(losses, EN, num_steps=len(losses), log=log)
    axes = figure.axes[0]
    assert axes.get_xlabel() == "step"
    assert all(len(line.get_xdata()) <= MAX_POINTS for line in axes.lines)


def test_a_long_curve_keeps_its_extremes():
    losses = [(step, 0.5) for step in range(1, 5001)]
    losses[2345] = (2346, 9.0)
    raw = draw_loss(losses, EN).axes[0].lines[0]
    assert max(raw.get_ydata()) == 9.0


def test_small_buckets_are_called_out_in_words():
    buckets = {Bucket(num_frames=93, height=480, width=832): 5, Bucket(num_frames=93, height=832, width=480): 1}
    texts = [text.get_text() for text in draw_buckets(buckets, EN, small={"93f 832x480"}).axes[0].texts]
    assert texts == ["5", "1  fewer than a batch"]


def test_a_figure_on_a_page_takes_the_colours_of_the_page():
    svg = figure_svg(draw_loss([(1, 0.5), (2, 0.4)], EN, palette=PAGE), 'a "title" <here>')
    assert svg.startswith('<svg class="figure" role="img" aria-label="a &quot;title&quot; &lt;here>"')
    assert "var(--studio-accent)" in svg
    assert "step" in svg, "words stay words"
    assert not re.findall(r"#[0-9a-fA-F]{6}\b", svg)
    assert "<script" not in svg


def test_figures_are_saved(tmp_path):
    path = save_figure(draw_loss([(1, 0.5)], EN, palette=DARK), tmp_path / "deep" / "loss.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_contact_sheet_takes_videos_of_different_length_and_size():
    rows = [("before", np.zeros((9, 64, 96, 3), np.uint8)), ("after", np.zeros((1, 96, 64, 3), np.uint8))]
    figure = contact_sheet(rows, columns=5)
    assert len(figure.axes) == 10
    assert figure_png(figure).startswith(b"\x89PNG")


def test_a_dataset_sheet_shows_every_clip_with_its_verdict(shapes_dataset):
    _, report = check_project(shapes_dataset)
    figure = dataset_sheet(report, EN, max_pairs=2)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert sum("Ready" in text for text in texts) == 2
    assert figure_png(figure).startswith(b"\x89PNG")


def test_a_picture_for_a_page_is_small_and_carries_itself():
    uri = picture_uri(np.zeros((1080, 1920, 3), np.uint8))
    assert uri.startswith("data:image/jpeg;base64,")
    assert len(uri) < 20_000


def test_a_dataset_sheet_shows_the_gravest_first_as_it_is_trained(shapes_dataset):
    _, report = check_project(shapes_dataset)
    sound, other = report.pairs[0], replace(report.pairs[1], name="broken", clip=None, bucket=None)
    sheet = dataset_sheet(replace(report, pairs=(sound, other)), EN, max_pairs=1)
    assert any(text.get_text() == "broken" for axes in sheet.axes for text in axes.texts)
    assert np.array_equal(first_frames(sound, 4), frames_as_trained(sound))
