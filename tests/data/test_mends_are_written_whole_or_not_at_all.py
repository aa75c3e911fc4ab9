"""A mended dataset is a new folder that needs the same mend no more; the user's own folder is as it was."""

import pytest

from studio.core.data.check import check_project
from studio.core.data.mend import MendChoice, MendKind, offered_mends, plan_mends, write_mends
from studio.core.errors import ConfigError, MendError, MendStopped


def plan_of(folder, *kinds, **choice):
    return plan_mends(*check_project(folder), MendChoice(kinds=frozenset(kinds), **choice))


@pytest.fixture
def plain(tmp_path, draw_clip):
    """A folder of two clips at 30 frames a second, without start frames and captions."""
    folder = tmp_path / "plain"
    draw_clip(folder / "a.mp4", num_frames=24, fps=30)
    draw_clip(folder / "sub/b_c.mp4", num_frames=22, fps=30)
    return folder


@pytest.mark.parametrize("kind", sorted({*MendKind} - {MendKind.REPLACE_START_FRAMES, MendKind.SPLIT_SCENES}))
def test_a_mended_dataset_needs_the_same_mend_no_more(plain, tmp_path, fingerprint, kind):
    before = fingerprint(plain)
    assert kind in offered_mends(*check_project(plain))
    mended = write_mends(plan_of(plain, kind), tmp_path / "mended")
    assert kind not in offered_mends(*check_project(mended))
    assert fingerprint(plain) == before


def test_a_stopped_mend_leaves_nothing(plain, tmp_path):
    with pytest.raises(MendStopped):
        write_mends(plan_of(plain, MendKind.TRIM), tmp_path / "mended", should_stop=lambda: True)
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]


def test_nothing_is_written_into_the_dataset_or_over_a_folder(plain, tmp_path, fingerprint):
    plan, before = plan_of(plain, MendKind.CAPTIONS), fingerprint(plain)
    for into in (plain / "mended", tmp_path):
        with pytest.raises(MendError):
            write_mends(plan, into)
    assert fingerprint(plain) == before


def test_an_unknown_placeholder_is_refused_by_name(plain):
    with pytest.raises(ConfigError, match="asks for {subject}"):
        plan_of(plain, MendKind.CAPTIONS, caption_template="{subject} moves")
