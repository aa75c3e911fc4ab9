"""Whichever mends are chosen, the new dataset needs none of them, and the user's folder is as it was."""

import shutil

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from studio.core.data.check import check_project
from studio.core.data.mend import MendChoice, MendKind, offered_mends, plan_mends, write_mends
from studio.core.types import IssueCode
from tests.data.test_mended_clips_are_what_was_planned import draw_scenes, scene

MENDED = {
    MendKind.START_FRAMES: {IssueCode.START_FRAME_MISSING},
    MendKind.REPLACE_START_FRAMES: {
        IssueCode.START_FRAME_DIFFERS, IssueCode.START_FRAME_BLANK, IssueCode.ASPECT_MISMATCH,
    },
    MendKind.SPLIT_SCENES: {IssueCode.SCENE_CUT},
    MendKind.FRAME_RATE: {IssueCode.FRAME_RATE_VARIES},
    MendKind.TRIM: set(),
    MendKind.CROP: {IssueCode.SIZE_NOT_LEGAL, IssueCode.SIZE_OFF_GRID},
    MendKind.PAD: {IssueCode.SIZE_NOT_LEGAL, IssueCode.SIZE_OFF_GRID},
    MendKind.CAPTIONS: {IssueCode.CAPTION_MISSING},
    MendKind.CONFIG: set(),
}  # fmt: skip


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Clips of two rates and three sizes, one with a cut; a start frame missing, one blank, one of another shape."""
    folder = tmp_path_factory.mktemp("mixed") / "d"
    draw_scenes(folder / "clips" / "cut.mp4", 11, 14, fps=30).with_suffix(".txt").write_text("first\nsecond")
    draw_scenes(folder / "clips" / "odd.mp4", 10, height=63, width=95, seed=1)
    draw_scenes(folder / "clips" / "sub" / "slow.mp4", 9, height=62, width=94, fps=10, seed=2)
    (folder / "start_frames" / "sub").mkdir(parents=True)
    Image.fromarray(np.zeros((63, 95, 3), np.uint8)).save(folder / "start_frames" / "odd.png")
    Image.fromarray(scene(20, 0, 94, 62)).save(folder / "start_frames" / "sub" / "slow.png")
    return folder


def test_every_mend_is_offered_for_the_mixed_dataset(mixed):
    assert set(offered_mends(*check_project(mixed))) == set(MendKind)


choices = st.builds(
    MendChoice,
    kinds=st.frozensets(st.sampled_from(MendKind), min_size=1, max_size=6).filter(
        lambda kinds: not {MendKind.CROP, MendKind.PAD} <= kinds
    ),
    caption_template=st.sampled_from(["{name}", "{folder}: {name} moves"]),
    frame_rate=st.sampled_from([15.0, 12.0, 24.0]),
)


@settings(derandomize=True, deadline=None, max_examples=4, database=None, phases=[Phase.generate])
@given(choice=choices)
def test_any_choice(mixed, tmp_path_factory, choice):
    before = {path: path.read_bytes() for path in mixed.rglob("*") if path.is_file()}
    plan = plan_mends(*check_project(mixed), choice)
    into = write_mends(plan, tmp_path_factory.mktemp("mended") / "m")
    project, report = check_project(into)
    assert not choice.kinds & set(offered_mends(project, report))
    said = {issue.code for pair in report.pairs for issue in pair.issues}
    assert not said & {code for kind in choice.kinds for code in MENDED[kind]}
    assert MendKind.TRIM not in choice.kinds or all(p.bucket.num_frames == p.clip.num_frames for p in report.pairs)
    assert len(report.pairs) == (len(plan.clips) or 3)
    assert {path: path.read_bytes() for path in mixed.rglob("*") if path.is_file()} == before
    shutil.rmtree(into)
