"""What holds for every size, every frame count and every frame rate: drawn by hypothesis, always the same draws."""

import math
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from studio.core.data.decode import cover_box
from studio.core.data.frame_rate import converted_frames
from studio.core.data.treatment import treat
from studio.core.geometry import GridSpec, bucket_size
from studio.core.published_buckets import PUBLISHED_BUCKETS
from studio.core.types import Bucket, Clip

SPEC = GridSpec()
quick = settings(derandomize=True, deadline=None, max_examples=200, database=None)

edges = st.integers(16, 4096)
alignments = st.sampled_from([16, 32, 48, 64, 128, 256])
formulas = st.one_of(
    st.tuples(st.just("pixel"), st.integers(64, 1536)),
    st.tuples(st.just("pixel_area"), st.integers(64, 1536)),
    st.tuples(st.just("area"), st.floats(0.005, 2.5)),
)
rates = st.sampled_from(
    [8.0, 10.0, 12.5, 14.985, 15.0, 23.976, 24.0, 25.0, 30000 / 1001, 30.0, 50.0, 59.94, 60.0, 120.0]
)


@st.composite
def sizes(draw):
    """(height, width) that is not narrower than buckets allow."""
    height, width = draw(edges), draw(edges)
    assume(max(height, width) <= 16 * min(height, width))
    return height, width


def clip(num_frames=93, fps=15.0, height=480, width=832):
    return Clip(
        path=Path("a.mp4"),
        num_frames=num_frames,
        fps=fps,
        height=height,
        width=width,
        reader="pyav",
        reader_reason="drawn for a test",
        codec="h264",
        rotation=0,
        slowest_fps=fps,
        fastest_fps=fps,
        cuts=(),
        motion=20.0,
        signature="",
    )


def nearest(value, alignment):
    """The nearest multiple with the half rounded to even, in decimal arithmetic; at least one."""
    steps = (Decimal(value) / alignment).quantize(Decimal(1), rounding=ROUND_HALF_EVEN)
    return max(1, int(steps)) * alignment


def restated(height, width, kind, resolution, alignment):
    """SimpleTuner's formulas in (width, height), as its documentation tells them."""
    aspect = round(width / height, 2)
    if kind == "pixel":
        short, long = resolution, int(resolution / aspect if width < height else resolution * aspect)
        w, h = (short, long) if width < height else (long, short)
        return nearest(h, alignment), nearest(w, alignment)
    area = resolution * 1e6 if kind == "area" else float(resolution) ** 2
    # (edge ** 2 / 1e6) * 1e6 is not edge ** 2 in floating point; the way there is SimpleTuner's.
    square = nearest(math.floor(math.sqrt(area if kind == "area" else area / 1e6 * 1e6)), alignment)
    if aspect == 1:
        return square, square
    return nearest(square / aspect**0.5, alignment), nearest(square * aspect**0.5, alignment)


@quick
@given(sizes(), formulas, alignments)
def test_buckets_are_those_of_simpletuners_formula_on_the_grid_and_never_nothing(size, formula, alignment):
    kind, resolution = formula
    height, width = bucket_size(*size, resolution=resolution, resolution_type=kind, alignment=alignment)
    assert (height, width) == restated(*size, kind, resolution, alignment)
    assert height % alignment == width % alignment == 0
    assert min(height, width) >= alignment


@quick
@given(sizes(), formulas, alignments)
def test_the_aspect_is_kept_within_a_step_of_the_grid(size, formula, alignment):
    kind, resolution = formula
    aspect = round(size[1] / size[0], 2)
    height, width = bucket_size(*size, resolution=resolution, resolution_type=kind, alignment=alignment)
    assume(min(height, width) > alignment)
    # Each side is at most half a step, and the pixel that `int` cuts off, from a rectangle of the aspect.
    slack = alignment / 2 + 1
    assert (width - slack) / (height + slack) <= aspect <= (width + slack) / (height - slack)


@quick
@given(
    st.sampled_from([(1, 1), (2, 1), (4, 1), (5, 1), (5, 2), (5, 4), (10, 1)]),
    st.integers(16, 400),
    formulas,
    alignments,
)
def test_a_clip_turned_on_its_side_gets_the_bucket_turned_where_two_digits_hold_both_aspects(
    sides, scale, formula, alignment
):
    width, height = sides[0] * scale, sides[1] * scale
    kind, resolution = formula
    one = bucket_size(height, width, resolution=resolution, resolution_type=kind, alignment=alignment)
    other = bucket_size(width, height, resolution=resolution, resolution_type=kind, alignment=alignment)
    assert one == other[::-1]


@quick
@given(sizes(), st.integers(64, 1400), st.integers(1, 200), st.sampled_from(["pixel", "pixel_area"]), alignments)
def test_a_larger_resolution_never_gives_a_smaller_bucket(size, resolution, more, kind, alignment):
    small = bucket_size(*size, resolution=resolution, resolution_type=kind, alignment=alignment)
    large = bucket_size(*size, resolution=resolution + more, resolution_type=kind, alignment=alignment)
    assert small[0] <= large[0]
    assert small[1] <= large[1]


@quick
@given(sizes(), st.integers(1, 2000), formulas, alignments)
def test_a_wider_clip_never_gets_a_narrower_bucket(size, more, formula, alignment):
    height, width = size
    assume(width + more <= 16 * height)
    kind, resolution = formula
    narrow = bucket_size(height, width, resolution=resolution, resolution_type=kind, alignment=alignment)
    wide = bucket_size(height, width + more, resolution=resolution, resolution_type=kind, alignment=alignment)
    assert narrow[1] / narrow[0] <= wide[1] / wide[0]


@quick
@given(sizes(), st.sampled_from(sorted(PUBLISHED_BUCKETS)))
def test_no_published_size_has_a_nearer_key(size, at):
    resolution, unit = at
    found = bucket_size(*size, resolution=resolution, resolution_type="published", alignment=unit)
    distances = {key: abs(float(key) - size[0] / size[1]) for key in PUBLISHED_BUCKETS[at]}
    assert min(distances[key] for key, value in PUBLISHED_BUCKETS[at].items() if value == found) == min(
        distances.values()
    )


@quick
@given(sizes(), sizes())
def test_the_crop_lies_in_the_picture_in_its_middle_and_has_the_buckets_aspect(size, target):
    left, top, right, bottom = cover_box(*size, *target)
    assert 0 <= left < right <= size[1]
    assert 0 <= top < bottom <= size[0]
    assert (right - left) / (bottom - top) == pytest.approx(target[1] / target[0])
    assert (left + right, top + bottom) == (pytest.approx(size[1]), pytest.approx(size[0]))
    assert math.isclose(right - left, size[1]) or math.isclose(bottom - top, size[0])


@quick
@given(st.integers(-3, 5000))
def test_the_floor_of_a_frame_count_is_the_largest_legal_one(num_frames):
    floor = SPEC.floor_frame_count(num_frames)
    legal = [n for n in range(max(1, num_frames - 4), num_frames + 1) if (n - 1) % 4 == 0]
    assert floor == (legal[-1] if legal else 0)
    assert SPEC.is_legal_frame_count(floor) == (num_frames >= 1)


@quick
@given(st.integers(1, 500), rates, rates)
def test_converted_frames_never_go_back_stay_in_the_clip_and_last_as_long(num_frames, fps, to):
    frames = converted_frames(clip(num_frames, fps), to).tolist()
    assert frames[0] == 0
    assert frames[-1] < num_frames
    steps = [b - a for a, b in zip(frames, frames[1:], strict=False)]
    assert all(math.floor(fps / to) <= step <= math.ceil(fps / to) for step in steps)
    assert abs(len(frames) / to - num_frames / fps) <= 1 / to + 0.25 / fps
    # Each is the frame on the screen at that moment, up to the slack of a quarter frame.
    for index, frame in enumerate(frames):
        assert frame <= index * fps / to + 0.25 + 1e-6
        assert frame > index * fps / to - 0.75 - 1e-6


@quick
@given(st.integers(1, 500), rates)
def test_a_clip_converted_to_its_own_rate_is_itself(num_frames, fps):
    assert converted_frames(clip(num_frames, fps), fps).tolist() == list(range(num_frames))


@quick
@given(sizes(), st.integers(1, 30), st.integers(1, 40), st.integers(1, 40))
def test_the_attention_blocks_cover_the_tokens(size, k, rows, columns):
    bucket = Bucket(num_frames=4 * k + 1, height=16 * rows, width=16 * columns)
    treatment = treat(clip(num_frames=200, height=size[0], width=size[1]), bucket)
    t, h, w = k + 1, rows, columns
    sides = [range(0, n, 4) for n in (t, h, w)]
    full = [sum(start + 4 <= n for start in side) for side, n in zip(sides, (t, h, w), strict=True)]
    assert treatment.num_blocks == math.prod(len(side) for side in sides)
    assert treatment.num_ragged_blocks == treatment.num_blocks - math.prod(full)
    assert treatment.fills_blocks == (t % 4 == h % 4 == w % 4 == 0)
    assert 0 <= treatment.share_cropped < 1
