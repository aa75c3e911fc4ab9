import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from studio.core.data.check import check_project
from studio.core.data.decode import frames_as_trained
from studio.core.errors import ConfigError
from studio.core.events import CheckpointSaved, HeldOutLoss, RunStarted, SampleSaved, StepDone, encode_event
from studio.core.runlog import RunFolder
from studio.core.types import Bucket
from studio.view.figure_files import save_figures
from studio.view.plots import PAGE, draw_buckets, figure_png, figure_svg
from studio.view.run_figures import Axis, ChartView, draw_details, draw_overlay, draw_run
from studio.view.series import MAX_POINTS, smooth, thin
from studio.view.sheets import contact_sheet, dataset_sheet, first_frames, picture_uri
from studio.view.words import LANGUAGES, words

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


START = 1_700_000_000.0


def look(step, loss, bands=4):
    return HeldOutLoss(
        step=step, loss=loss, bands=(loss,) * bands, base_loss=0.5, base_bands=(0.5,) * bands, num_clips=2, seconds=1.0
    )


@pytest.fixture
def run_of(tmp_path):
    """run_of(losses, looks, *, marks, pause, peak_bytes): a run folder with the events of these losses, a step each
    second; `marks` are steps with a checkpoint and a sample, `pause` is (step, seconds) before that step.
    """

    def build(losses, looks=(), *, marks=(), pause=(0, 0.0), peak_bytes=None, num_steps=None):
        run = RunFolder(tmp_path / f"run-{len(list(tmp_path.iterdir()))}")
        run.path.mkdir()
        timed, now = [], START
        for step, loss in enumerate(losses, start=1):
            now += 1 + (pause[1] if step == pause[0] else 0)
            done = StepDone(
                step=step, num_steps=len(losses), loss=loss, learning_rate=1e-4, grad_norm=0.1 * 100 ** (step % 2),
                seconds=1.0, peak_bytes=peak_bytes,
            )  # fmt: skip
            timed.append((now, done))
            if step in marks:
                timed.append((now, CheckpointSaved(step=step, path=f"checkpoints/step-{step:06d}")))
                timed.append((now, SampleSaved(step=step, path=f"samples/{step}.mp4", prompt="")))
        started = RunStarted(
            num_steps=num_steps or len(losses), num_pairs=2, device="cpu", dtype="fp32", attention="dense",
            attention_reason="",
        )  # fmt: skip
        events = [(START, started), *timed, *((now, look) for look in looks)]
        lines = [encode_event(event, time=when) for when, event in events]
        (run.path / "events.jsonl").write_text("".join(f"{line}\n" for line in lines))
        return run

    return build


NAN = float("nan")


@pytest.mark.parametrize("losses", [[], [0.5], [NAN, 0.4], [0.0, 0.3], [1 / s for s in range(1, 4000)]])
@pytest.mark.parametrize("view", [ChartView(), ChartView(log=True), ChartView(axis=Axis.CLOCK, span=(0.2, 1.5))])
def test_a_loss_curve_is_drawn_from_any_run(run_of, losses, view):
    snapshot = run_of(losses).snapshot()
    figure = draw_run(snapshot, EN, view=view)
    assert all(len(line.get_xdata()) <= MAX_POINTS for line in figure.axes[0].lines)
    assert figure_png(figure).startswith(b"\x89PNG")
    assert figure_png(draw_details(snapshot, EN, view=view)).startswith(b"\x89PNG")
    assert figure_png(draw_overlay([("one", snapshot)], EN, view=view)).startswith(b"\x89PNG")


def test_thinning_keeps_the_extremes_the_ends_and_the_order():
    values = np.random.default_rng(0).random(20_000)
    values[7_777], values[12_345] = 50.0, -50.0
    kept = thin(values)
    assert len(kept) <= MAX_POINTS
    assert {0, 7_777, 12_345, 19_999} <= set(kept.tolist())
    assert list(kept) == sorted(kept)
    assert list(thin(values[:MAX_POINTS])) == list(range(MAX_POINTS))


def test_the_smoothed_curve_of_a_long_run_is_that_of_all_its_steps(run_of):
    losses = list(0.2 + np.exp(-np.arange(5000) / 700) + 0.1 * np.random.default_rng(0).standard_normal(5000))
    line = draw_run(run_of(losses).snapshot(), EN).axes[0].lines[1]
    at = np.asarray(line.get_xdata()).astype(int) - 1
    assert np.asarray(line.get_ydata()) == pytest.approx(smooth(losses)[at], abs=0.01)


def test_a_zoom_fits_what_is_seen(run_of):
    snapshot = run_of([9.0, *[0.5] * 50, *[0.30, 0.32] * 25]).snapshot()
    assert draw_run(snapshot, EN).axes[0].get_ylim()[1] > 9
    axes = draw_run(snapshot, EN, view=ChartView(span=(60, 90))).axes[0]
    assert axes.get_xlim() == (60, 90)
    assert 0.29 < axes.get_ylim()[0] < 0.30
    assert 0.32 < axes.get_ylim()[1] < 0.33


def test_overfitting_is_marked_where_the_held_out_loss_was_lowest(run_of):
    falling = [1 - step / 200 for step in range(100)]
    looks = [look(0, 0.5), look(25, 0.45), look(50, 0.4), look(75, 0.42), look(100, 0.44)]
    axes = draw_run(run_of(falling, looks).snapshot(), EN).axes[0]
    assert [text.get_text() for text in axes.texts] == ["overfitting from step 50"]
    ring = next(line for line in axes.lines if line.get_markerfacecolor() == "none")
    assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([50.0], [0.4])
    assert not draw_run(run_of(falling, looks[:3]).snapshot(), EN).axes[0].texts


def test_checkpoints_and_samples_are_marks_that_a_page_can_find(run_of):
    snapshot = run_of([0.5] * 2000, marks=range(10, 2001, 10)).snapshot()
    svg = figure_svg(draw_run(snapshot, EN, palette=PAGE), "Loss")
    shown = [int(step) for step in re.findall(r'id="marker-checkpoint-(\d+)"', svg)]
    assert sorted(shown) == sorted(int(step) for step in re.findall(r'id="marker-sample-(\d+)"', svg))
    assert 2000 in shown, "of marks that lie on one another the last one stays"
    assert 20 < len(shown) < 60
    assert 'id="plot-area"' in svg
    near = figure_svg(draw_run(snapshot, EN, palette=PAGE, view=ChartView(span=(95, 205))), "Loss")
    assert [int(step) for step in re.findall(r'id="marker-sample-(\d+)"', near)] == list(range(200, 99, -10))


def test_the_clock_counts_pauses_and_draws_no_line_through_them(run_of):
    snapshot = run_of([0.5] * 100, pause=(51, 7200.0)).snapshot()
    axes = draw_run(snapshot, EN, view=ChartView(axis=Axis.CLOCK)).axes[0]
    assert axes.get_xlim() == (0, 7299)
    assert axes.get_xlabel() == "time since the first step (h:min)"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0:00", "0:30", "1:00", "1:30", "2:00"]
    for line in axes.lines[:2]:
        assert np.isnan(np.asarray(line.get_ydata())).sum() == 1
    by_step = draw_run(snapshot, EN).axes[0]
    assert not np.isnan(np.asarray(by_step.lines[0].get_ydata())).any()


@pytest.mark.parametrize(
    ("num_steps", "unit", "first"),
    [(90, "s", ["0", "15"]), (600, "min", ["0", "2"]), (8 * 3600, "h", ["0", "1"])],
)
def test_times_are_told_in_the_unit_of_the_length(run_of, num_steps, unit, first):
    run = run_of([0.5, 0.5], pause=(2, num_steps - 1.0))
    axes = draw_run(run.snapshot(), EN, view=ChartView(axis=Axis.CLOCK)).axes[0]
    assert axes.get_xlabel() == f"time since the first step ({unit})"
    assert [text.get_text() for text in axes.get_xticklabels()][:2] == first


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("size", [(7.2, 3.4), (3.6, 3.4)])
def test_the_legend_never_covers_the_data_and_fits_the_width(run_of, language, size):
    looks = [look(0, 0.5), look(25, 0.45), look(50, 0.4), look(75, 0.42), look(100, 0.44)]
    snapshot = run_of([1 - s / 200 for s in range(100)], looks, marks=[50]).snapshot()
    runs = [(f"20261128-10150{n}-3fa9c2d1", snapshot) for n in range(4)]
    for figure in (draw_run(snapshot, words(language), size=size), draw_overlay(runs, words(language), size=size)):
        figure.draw_without_rendering()
        legend, axes = figure.legends[0].get_window_extent(), figure.axes[0].bbox
        over = [text.get_window_extent().y1 for text in figure.axes[0].texts]
        assert legend.y0 > max([axes.y1, *over])
        assert legend.x0 >= 0
        assert legend.x1 <= figure.bbox.x1
        assert axes.height > 0.35 * figure.bbox.height


def test_details_show_what_is_known(run_of):
    looks = [look(0, 0.5), look(50, 0.4), look(100, 0.45)]
    figure = draw_details(run_of([0.5] * 100, looks, peak_bytes=3 * 2**30).snapshot(), EN)
    titles = [axes.texts[0].get_text() for axes in figure.axes]
    assert titles == [
        "Held-out loss by noise level (%), base = 1", "Learning rate", "Gradient norm", "Seconds per step",
        "Memory (GiB)",
    ]  # fmt: skip
    bands = figure.axes[0].lines[:4]
    assert [list(line.get_ydata()) for line in bands] == [[1.0, 0.8, 0.9]] * 4
    assert len({(line.get_marker(), line.get_linestyle()) for line in bands}) == 4, "not told apart by colour alone"
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "linear", "log", "linear", "linear"]
    assert list(figure.axes[4].lines[0].get_ydata()) == [3.0] * 100
    bare = draw_details(run_of([0.5] * 100).snapshot(), EN)
    assert [axes.texts[0].get_text() for axes in bare.axes] == titles[1:4]


def test_runs_over_one_another_are_told_apart_by_more_than_colour(run_of):
    runs = [(f"run {n}", run_of([0.5 + n] * 20, [look(0, 0.5), look(20, 0.4)]).snapshot()) for n in range(4)]
    figure = draw_overlay(runs, EN)
    assert len({line.get_marker() for line in figure.axes[0].lines[1::2]}) == 4
    drawn = figure_svg(figure, "Losses")
    assert len(set(re.findall(r"stroke-dasharray: [\d.,]+", drawn))) == 3, "one is solid"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [name for name, _ in runs]


def test_figures_of_a_run_are_files_and_nothing_is_overwritten(run_of, tmp_path):
    run = run_of([0.5, 0.4], [look(0, 0.5)])
    files = save_figures(run, tmp_path / "deep/figures", EN)
    names = ["loss.png", "loss.svg", "details.svg", "steps.csv"]
    assert [file.name for file in files] == [f"{run.name}-{name}" for name in names]
    assert files[0].read_bytes().startswith(b"\x89PNG")
    assert all("</svg>" in file.read_text() for file in files[1:3])
    assert len(files[3].read_text().splitlines()) == 3
    with pytest.raises(ConfigError, match="figures holds something already"):
        save_figures(run, tmp_path / "deep/figures", EN)


def test_small_buckets_are_called_out_in_words():
    buckets = {Bucket(num_frames=93, height=480, width=832): 5, Bucket(num_frames=93, height=832, width=480): 1}
    texts = [text.get_text() for text in draw_buckets(buckets, EN, small={"93f 832x480"}).axes[0].texts]
    assert texts == ["5", "1  fewer than a batch"]


def test_a_figure_on_a_page_takes_the_colours_of_the_page(run_of):
    looks = [look(0, 0.5), look(25, 0.45), look(50, 0.4), look(75, 0.42), look(100, 0.44)]
    snapshot = run_of([1 - s / 200 for s in range(100)], looks, marks=[50]).snapshot()
    svg = figure_svg(draw_run(snapshot, EN, palette=PAGE), 'a "title" <here>')
    assert svg.startswith('<svg class="figure" role="img" aria-label="a &quot;title&quot; &lt;here>"')
    assert all(f"var(--studio-{name})" in svg for name in ("accent", "second", "warn", "muted", "line"))
    assert "step" in svg, "words stay words"
    assert not re.findall(r"#[0-9a-fA-F]{6}\b", svg)
    assert "<script" not in svg


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


def test_what_two_threads_draw_at_once_has_its_letters(monkeypatch):
    save = Figure.savefig

    def save_slowly(figure, *args, **options):
        time.sleep(0.01 * figure.get_figwidth())
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", save_slowly)
    figures = [draw_buckets({Bucket(num_frames=9, height=64, width=96): 2}, EN, width=width) for width in (4, 12)]
    with ThreadPoolExecutor(2) as pool:
        drawn = list(pool.map(lambda figure: figure_svg(figure, "t"), figures))
    assert all("</text>" in svg for svg in drawn)
    assert mpl.rcParams["svg.fonttype"] == "path", "as it was"
