"""What the dataset desk does behind its buttons, without a browser."""

import threading

import pytest

from studio.core.errors import StudioError
from studio.ui.dropped import copy_dropped
from studio.ui.follow import follow
from studio.view.words import words

EN = words("en")


def test_dropped_files_are_copied_into_a_folder_of_their_own(tmp_path, project):
    files = [project / "clips/shape_0.mp4", project / "start_frames/shape_0.png"]
    folders = [copy_dropped(files, tmp_path, EN) for _ in range(2)]
    assert folders[0] != folders[1]
    for folder in folders:
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == {f.name: f.read_bytes() for f in files}


def test_dropped_files_of_one_name_are_refused(tmp_path, project):
    clip = project / "clips/shape_0.mp4"
    with pytest.raises(StudioError, match=r"shape_0\.mp4"):
        copy_dropped([clip, clip], tmp_path, EN)
    with pytest.raises(StudioError, match="No files"):
        copy_dropped([], tmp_path, EN)
    assert not any(tmp_path.iterdir())


def test_work_that_nobody_follows_any_more_is_stopped(monkeypatch):
    monkeypatch.setattr("studio.ui.follow.EVERY", 0.01)
    stop, begun = threading.Event(), threading.Event()

    def work(tell):
        tell(1, 4)
        begun.set()
        return stop.wait(20)

    steps = follow(work, stop, lambda step: (step.done, step.total))
    next(steps)
    assert begun.wait(20)
    assert next(steps) == (1, 4)
    steps.close()
    assert stop.is_set()
