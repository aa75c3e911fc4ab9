"""A mended dataset is a new folder that needs the same mend no more; the user's own folder is as it was."""

from contextlib import contextmanager

import pytest

from studio.core.data.check import check_project
from studio.core.data.mend import MendChoice, MendKind, offered_mends, plan_mends, write_mends
from studio.core.errors import ConfigError, DiskFull, MediaError, MendError, MendStopped

resource = pytest.importorskip("resource", reason="needs limits of POSIX")


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


def test_nothing_is_written_into_the_dataset_or_over_a_folder(plain, tmp_path, fingerprint):
    plan, before = plan_of(plain, MendKind.CAPTIONS), fingerprint(plain)
    for into in (plain / "mended", tmp_path):
        with pytest.raises(MendError):
            write_mends(plan, into)
    assert fingerprint(plain) == before


def test_an_unknown_placeholder_is_refused_by_name(plain):
    with pytest.raises(ConfigError, match="asks for {subject}"):
        plan_of(plain, MendKind.CAPTIONS, caption_template="{subject} moves")


@contextmanager
def room_for(num_bytes):
    """The system lets no file of this process grow beyond, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_wherever_the_disk_is_full_nothing_is_left(plain, tmp_path, fingerprint):
    kinds = MendKind.TRIM, MendKind.START_FRAMES, MendKind.CAPTIONS
    sound = write_mends(plan_of(plain, *kinds), tmp_path / "sound")
    sizes = sorted({path.stat().st_size for path in sound.rglob("*") if path.is_file()})
    plan, before = plan_of(plain, *kinds), fingerprint(tmp_path)
    for size in sizes:
        with room_for(size - 1), pytest.raises(DiskFull):
            write_mends(plan, tmp_path / "new" / "mended")
        assert fingerprint(tmp_path) == before
    with room_for(sizes[-1]):
        write_mends(plan, tmp_path / "new" / "mended")
    assert fingerprint(plain).items() <= before.items()


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (MendKind.TRIM, "gone"),
        (MendKind.TRIM, "cut off"),
        (MendKind.START_FRAMES, "cut off"),
        (MendKind.CAPTIONS, "gone"),
    ],
)
def test_a_clip_that_goes_or_breaks_while_others_are_written_stops_the_mend(plain, tmp_path, fingerprint, kind, what):
    plan, clip = plan_of(plain, kind), plain / "sub" / "b_c.mp4"

    def break_it(done, total):
        clip.write_bytes(clip.read_bytes()[:500]) if what == "cut off" else clip.unlink()

    with pytest.raises(MediaError, match="b_c.mp4"):
        write_mends(plan, tmp_path / "mended", progress=break_it)
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]


@pytest.mark.parametrize("kind", [MendKind.TRIM, MendKind.CAPTIONS])
def test_a_clip_that_is_gone_before_mends_are_planned_is_left_out_by_name(plain, kind):
    project, report = check_project(plain)
    (plain / "sub" / "b_c.mp4").unlink()
    plan = plan_mends(project, report, MendChoice(kinds=frozenset({kind})))
    assert [clip.name for clip in plan.clips] == ["a"]
    ((pair, reason),) = plan.left_out
    assert pair.name == "sub/b_c"
    assert reason == "b_c.mp4 cannot be read: No such file or directory."


def test_a_start_frame_that_has_gone_is_named(plain, tmp_path, draw_image):
    draw_image(plain / "a.png")
    plan = plan_of(plain, MendKind.CAPTIONS)
    (plain / "a.png").unlink()
    with pytest.raises(MediaError, match="a.png"):
        write_mends(plan, tmp_path / "mended")
    assert not (tmp_path / "mended").exists()


@pytest.mark.parametrize("questions", [0, 1, 5, 20, 30])
def test_a_mend_stops_in_the_middle_of_a_clip_and_leaves_nothing(plain, tmp_path, fingerprint, questions):
    plan, before, asked = plan_of(plain, MendKind.TRIM), fingerprint(tmp_path), []
    with pytest.raises(MendStopped):
        write_mends(plan, tmp_path / "new" / "mended", should_stop=lambda: asked.append(1) or len(asked) > questions)
    assert len(asked) == questions + 1
    assert fingerprint(tmp_path) == before


def test_places_that_would_lose_something_are_refused(plain, tmp_path, fingerprint):
    plan = plan_of(plain, MendKind.CAPTIONS)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "way_in").symlink_to(plain)
    before = fingerprint(tmp_path)
    for into in ("file", "file/below", "link", "way_in/new", "plain", "plain/sub/new", "plain/../plain/new",
                 "a\0b", "x" * 300, "."):  # fmt: skip
        with pytest.raises(MendError):
            write_mends(plan, tmp_path / into)
        assert fingerprint(tmp_path) == before
    assert check_project(write_mends(plan, tmp_path / "empty"))[1].pairs
    assert check_project(write_mends(plan, tmp_path / "deep" / "er" / "mended"))[1].pairs
