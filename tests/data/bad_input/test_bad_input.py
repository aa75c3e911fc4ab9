"""Bad files, names, captions and configurations: each is named as its manifest says, and nothing is touched."""

import ctypes
import hashlib
import os
import signal
import socket
import struct
from html.parser import HTMLParser
from pathlib import Path

import pytest

from studio.core.config import DataConfig, DatasetConfig
from studio.core.data.check import check_dataset, check_project
from studio.core.data.decode import read_frames
from studio.core.data.mend import MendChoice, MendKind, plan_mends
from studio.core.errors import ConfigError, StudioError
from studio.core.types import IssueCode, Severity
from studio.ui import dataset_markup, markup
from studio.ui.detail_markup import clip_detail, detail_head
from studio.ui.mend_markup import mend_preview
from studio.view.report_page import report_html
from studio.view.sheets import Thumbnails, dataset_sheet
from studio.view.words import words
from tests.data.bad_input import configurations
from tests.data.bad_input.clips import clips, playlists
from tests.data.bad_input.corpus import captions, case, good_image, names, place
from tests.data.bad_input.images import images

SECONDS_PER_CASE = 300
"""After which it counts as hanging."""
MIN_NOTICED = 0.9
"""Of clips with 20 flipped bits: H.264 has no checksums, so that some flips only change what is shown."""


@pytest.fixture(autouse=True)
def no_case_hangs():
    """One that does is a failure, and not a wait without end."""

    def give_up(number, frame):
        pytest.fail(f"nothing came for {SECONDS_PER_CASE} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS_PER_CASE)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def untouched():
    """untouched(folder): from then on to the end of the test nothing below it changes."""
    before = {}

    def watch(folder):
        before[folder] = fingerprint(folder)
        return folder

    yield watch
    assert {folder: fingerprint(folder) for folder in before} == before


def fingerprint(folder):
    """Every path below a folder with its kind, content and time of change; links are not followed."""
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(parent, name)
            stat = path.lstat()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() and not path.is_symlink() else ""
            found[str(path)] = stat.st_mode, stat.st_size, stat.st_mtime_ns, content
    return found


def check(folder):
    """The report on clips, start frames and captions side by side; each case has its own time."""
    data = DataConfig(datasets=(DatasetConfig(id="a", kind="video", directory=folder),))
    return check_dataset(data, progress=lambda done, total: signal.alarm(SECONDS_PER_CASE))


def said(issues):
    """Errors and warnings."""
    return {(i.code, i.severity, i.subject) for i in issues if i.severity is not Severity.NOTICE}


def said_of_one(issues):
    """Errors and warnings, but not that a clip is a copy: the cases of a family are made of the same few clips."""
    return said(issue for issue in issues if issue.code is not IssueCode.NEAR_DUPLICATE)


def assert_helpful(issues, folder):
    """Each names its subject and what to do about it, in one line and without a traceback."""
    for issue in issues:
        message = issue.message.replace(str(folder), "")
        assert "\n" not in message
        assert not any(word in message for word in ("Traceback", "Errno", "site-packages", str(folder.parent)))
        if issue.severity is Severity.ERROR:
            assert issue.remedy, issue
            assert Path(issue.subject).stem.split(".")[-1].strip("[]0") in issue.message, issue


def assert_as_foreseen(each, found, report_issues, folder):
    """The pair's issues are those of the manifest."""
    issues = [*found.issues, *report_issues]
    assert_helpful(issues, folder)
    if each.may_be_whole and not {i.code for i in issues} & {code for code, _, _ in each.says}:
        frames = read_frames(found.clip, found.clip.num_frames)
        assert len(frames) == found.clip.num_frames
        return
    if each.may_be_whole:
        assert said_of_one(issues) <= each.says
        return
    assert said_of_one(issues) == each.says
    assert found.is_ready == all(severity is not Severity.ERROR for _, severity, _ in each.says)
    assert any(each.words in issue.message + issue.remedy for issue in issues) or not each.words


def assert_family(cases, folder, untouched):
    """All cases in one folder and one pass."""
    cases = list(cases)
    report = check(untouched(place(folder, cases)))
    pairs = {pair.name: pair for pair in report.pairs}
    assert pairs.keys() == {each.name for each in cases}
    assert not said(report.issues)
    wrong = []
    for each in cases:
        try:
            assert_as_foreseen(each, pairs[each.name], (), folder)
        except AssertionError as error:
            wrong.append(f"{each.name}: {error}\n{pairs[each.name].issues}")
    assert not wrong, "\n\n".join(wrong)
    return pairs


def test_there_are_at_least_200_cases(tmp_path):
    families = {
        "V": [*clips(), *playlists(tmp_path / "secret.mp4", "http://127.0.0.1:1/")],
        "I": [*images()],
        "T": [*captions()],
        "N": [*names()],
        "J": [*configurations.unreadable(), *configurations.readable()],
    }
    counts = {family: len({each.name for each in cases}) for family, cases in families.items()}
    assert counts == {family: len(cases) for family, cases in families.items()}, "two cases have one name"
    assert sum(counts.values()) >= 200, counts


def test_clips(tmp_path, untouched):
    pairs = assert_family(clips(), tmp_path / "clips", untouched)
    flipped = [pair for name, pair in pairs.items() if name.startswith("mutant_flip_pictures")]
    assert sum(not pair.is_ready for pair in flipped) >= MIN_NOTICED * len(flipped)


def test_images(tmp_path, untouched):
    assert_family(images(), tmp_path / "images", untouched)


def test_captions(tmp_path, untouched):
    assert_family(captions(), tmp_path / "captions", untouched)


class Watch:
    """Counts how often a file is opened, by anybody (Linux: inotify)."""

    def __init__(self, path):
        libc = ctypes.CDLL(None, use_errno=True)
        self.file = libc.inotify_init1(os.O_NONBLOCK)
        assert libc.inotify_add_watch(self.file, os.fsencode(path), 0x20) >= 0  # IN_OPEN

    def opened(self):
        try:
            return len(os.read(self.file, 4096)) // struct.calcsize("iIII")
        except BlockingIOError:
            return 0


def test_a_playlist_opens_no_other_file_and_no_address(tmp_path, untouched):
    secret = tmp_path / "secret.mp4"
    place(tmp_path, [case("secret")])
    watch = Watch(secret)
    secret.read_bytes()
    assert watch.opened() == 1, "the watch works"
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/secret.mp4"
        assert_family(playlists(secret, address), tmp_path / "clips", untouched)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert watch.opened() == 0


@pytest.mark.parametrize("each", [*names()], ids=lambda each: each.name)
def test_names(each, tmp_path, untouched):
    folder = tmp_path / "a"
    report = check(untouched(place(folder, [each])))
    assert_helpful(report.all_issues, folder)
    assert said(report.all_issues) == each.says
    assert any(each.words in issue.message for issue in report.all_issues) or not each.words
    wrong = {subject for _, severity, subject in each.says if severity is Severity.ERROR}
    assert {pair.clip_path.relative_to(folder).as_posix() for pair in report.pairs if not pair.is_ready} == wrong


@pytest.mark.parametrize("each", [*configurations.unreadable()], ids=lambda each: each.name)
def test_configurations_that_are_refused(each, tmp_path, untouched):
    folder = untouched(place(tmp_path / "a", [each]))
    with pytest.raises(ConfigError) as caught:
        check_project(folder)
    assert caught.value.message.startswith("config.json")
    assert each.words in caught.value.message
    assert caught.value.remedy
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("each", [*configurations.readable()], ids=lambda each: each.name)
def test_configurations_whose_mistakes_are_listed(each, tmp_path, untouched):
    folder = untouched(place(tmp_path / "a", [each]))
    _, report = check_project(folder)
    assert said(report.all_issues) == each.says
    assert any(each.words in issue.message + issue.remedy for issue in report.all_issues) or not each.words
    for issue in report.errors:
        assert issue.remedy, issue
        assert "\n" not in issue.message


class Tags(HTMLParser):
    """Every tag and attribute of a page, as a browser sees them."""

    def __init__(self, page):
        super().__init__()
        self.seen = set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.seen |= {tag, *(name for name, _ in attrs)}


HOSTILE = (
    "<script>alert(1)<",
    "<img src=x onerror=alert(1)>",
    "'><svg onload=alert(1)>",
    '"><iframe srcdoc=a>',
    "&lt;script&gt;",
    "</blockquote><style>",
)


def test_names_and_captions_are_text_in_the_page(tmp_path, untouched):
    cases = [case(name, caption=f"{name} {index}".encode()) for index, name in enumerate(HOSTILE)]
    cases += [case(f"{name} bad", caption=b"\xff", clip=b"", image=b"") for name in HOSTILE]
    folder = place(tmp_path / "<b onclick=alert(1)>", cases)
    orphan = "<img src=y onerror=alert(3)>.png"
    (folder / orphan).write_bytes(good_image())
    project, report = check_project(untouched(folder))
    assert len(report.pairs) == len(cases)
    assert {IssueCode.CLIP_UNREADABLE, IssueCode.CAPTION_UNREADABLE} <= {issue.code for issue in report.all_issues}
    w = words("en")
    plan = plan_mends(project, report, MendChoice(kinds=frozenset({MendKind.CROP, MendKind.START_FRAMES})))
    assert plan.clips
    assert plan.left_out
    parts = [
        dataset_markup.summary(report, folder, w),
        dataset_markup.filters(report, "problem:<script>", w),
        dataset_markup.clip_table(list(enumerate(report.pairs)), 0, report.issues, Thumbnails(), w),
        dataset_markup.buckets(report, "bucket:<script>", w),
        dataset_markup.issue_list(report.all_issues, w),
        *(detail_head(pair, w) + clip_detail(pair, None, None, w) for pair in report.pairs),
        mend_preview(plan, w),
        markup.failure(StudioError(HOSTILE[0], HOSTILE[1]), w),
    ]
    harmful = {"script", "iframe", "svg", "onerror", "onload", "onclick", "srcdoc"}
    for part in parts:
        assert not Tags(part).seen & harmful
        assert "<style" not in part
    page = report_html(folder, report, project, w)
    assert Tags(page).seen & harmful == {"svg"}, "the chart of the buckets"
    assert page.count("<style") == 1
    assert "&lt;img src=y onerror=alert(3)&gt;.png" in page
    texts = [text.get_text() for axes in dataset_sheet(report, w).axes for text in axes.texts]
    assert any(HOSTILE[1] in text for text in texts), "a picture holds the letters as they are"
