"""What the dataset desk does behind its buttons, without a browser."""

import json
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from studio.core.data.check import check_project
from studio.core.data.mend import MendKind, offered_mends
from studio.core.errors import ConfigError, StudioError
from studio.core.sample.video import write_video
from studio.ui import clip_pictures, selection
from studio.ui.dropped import copy_dropped
from studio.ui.follow import follow
from studio.ui.mend_panel import mend_label, proposed_folder
from studio.ui.report_files import write_reports
from studio.ui.settings import AppSettings
from studio.ui.workshop import Opened, Workshop, typed_path
from studio.view.words import words

pytestmark = [
    # gradio imports starlette's test client, which warns; it is not used here
    pytest.mark.filterwarnings("ignore::DeprecationWarning:starlette.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio.*"),
]

EN = words("en")
APP = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
from studio.ui.app import build_app
from studio.ui.settings import AppSettings
from studio.ui.workshop import Workshop

def fail(*_):
    raise OSError(28, "No space left on device")

demo = Path(sys.argv[1])
handlers = {event.name: event.fn for event in build_app(AppSettings(demo=demo)).fns.values() if event.fn}
workshop, Workshop.open = Workshop(AppSettings()), fail
*_, last = handlers["open_typed"](str(demo), SimpleNamespace(session_hash="visitor"))
assert workshop.folder.is_dir()
print(json.dumps({"last": last[:2], "folder": str(workshop.folder)}, default=str))
"""


def opened_at(path):
    project, report = check_project(path)
    offer = offered_mends(project, report)
    return Opened(path=path, project=project, report=report, model=project.run.model, offer=offer)


@pytest.fixture(scope="module")
def ended(project):
    """What a process of its own showed last of a check that failed, and its private folder."""
    said = subprocess.run([sys.executable, "-c", APP, str(project)], capture_output=True, text=True, check=True)
    return json.loads(said.stdout.splitlines()[-1])


def test_whatever_ends_a_check_the_bar_goes(ended):
    message, cancel = ended["last"]
    assert "OSError" in message
    assert not cancel["visible"]


def test_the_private_folder_goes_with_the_app(ended):
    assert not Path(ended["folder"]).exists()


def test_a_home_that_is_not_there_is_said_in_a_sentence():
    with pytest.raises(ConfigError, match="~nobody-of-this-name/clips names no home folder"):
        typed_path(" ~nobody-of-this-name/clips ")


def test_two_visitors_may_choose_one_clip_at_once(project, tmp_path, monkeypatch):
    both, written = threading.Barrier(2, timeout=20), []

    def write(target, *rest):
        written.append(target)
        both.wait()
        write_video(target, *rest)

    monkeypatch.setattr(clip_pictures, "write_video", write)
    pair = opened_at(project).report.pairs[0]
    with ThreadPoolExecutor(2) as visitors:
        shown = list(visitors.map(lambda _: clip_pictures.preview(tmp_path, pair), range(2)))
    assert len(set(written)) == 2
    assert [Path(file) for file in set(shown)] == list(tmp_path.iterdir())


def test_a_new_folder_is_proposed_outside_the_dataset(project, tmp_path, monkeypatch):
    clips = Path(shutil.copytree(project, tmp_path / "v1.2"))
    monkeypatch.chdir(clips / "clips")
    workshop = Workshop(AppSettings())
    assert proposed_folder(workshop, opened_at(clips)) == clips / "v1.2-mended"
    assert proposed_folder(workshop, opened_at(clips / "config.json")) == clips / "v1.2-mended"


def test_clips_left_out_on_purpose_are_not_to_mend(project, tmp_path):
    folder = Path(shutil.copytree(project, tmp_path / "hops"))
    datasets = folder / "multidatabackend.json"
    datasets.write_text(datasets.read_text().replace('"num_frames": 9', '"num_frames": 9, "min_frames": 99'))
    report = opened_at(folder).report
    assert all(pair.is_left_out for pair in report.pairs)
    assert [len(selection.clips_shown(report, show)) for show in (selection.ALL, selection.MEND)] == [4, 0]


def test_what_a_sound_folder_is_offered_is_named():
    assert mend_label({MendKind.CONFIG: ()}, EN) == "Write config.json and multidatabackend.json…"
    assert "trimmed" in mend_label({MendKind.TRIM: (), MendKind.CONFIG: ()}, EN)


def test_a_dataset_has_one_report_however_often_it_is_asked_for(project, tmp_path):
    opened = opened_at(project)
    assert write_reports(tmp_path, opened, EN) == write_reports(tmp_path, opened, EN)
    assert len(list(tmp_path.iterdir())) == 1


def test_nothing_is_left_of_files_that_cannot_be_copied(tmp_path, project):
    with pytest.raises(StudioError, match="could not be copied: Is a directory"):
        copy_dropped([project / "clips/shape_0.mp4", project / "clips"], tmp_path, EN)
    assert not any(tmp_path.iterdir())


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
