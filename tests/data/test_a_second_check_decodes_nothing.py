"""What a check found is kept under the files' content: it comes back the same, and costs nothing where it cannot."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from studio.core.data import probe_cache
from studio.core.data.check import Probes, check_project
from studio.core.data.probe import probe_clip
from studio.core.data.probe_cache import ProbeCache, user_cache
from studio.core.data.probe_worker import ProbeWorker
from studio.core.data.report import report_to_json
from studio.core.errors import DamagedClipError, MediaError
from studio.core.types import Clip

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cache(tmp_path_factory):
    return ProbeCache(tmp_path_factory.mktemp("cache") / "probes")


@pytest.fixture
def check(tmp_path, cache, monkeypatch):
    """check(folder): its report as a new process would find it, and the names of the files that were decoded."""

    def run(folder=tmp_path):
        decoded = []

        def watched(probe):
            return lambda worker, path: (decoded.append(path.name), probe(worker, path))[1]

        with monkeypatch.context() as patch:
            for probe in (ProbeWorker.clip, ProbeWorker.start_frame):
                patch.setattr(ProbeWorker, probe.__name__, watched(probe))
            _, report = check_project(folder, probes=Probes(disk=ProbeCache(cache.folder)))
        return report, sorted(decoded)

    return run


def entries(cache):
    return sorted(cache.folder.rglob("*.json"))


def test_good_damaged_and_unreadable_files_come_back_the_same(tmp_path, add_pair, check, cache):
    add_pair("good")
    add_pair("text").write_bytes(b"not a video")
    add_pair("empty").write_bytes(b"")
    cut = add_pair("cut", num_frames=60, height=128, width=192, faststart=True)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (tmp_path / "start_frames" / "text.png").write_bytes(b"not an image")
    first, decoded = check()
    assert len(decoded) == 8
    assert {"clip_damaged", "clip_unreadable", "image_unreadable"} <= {issue.code for issue in first.errors}
    second, decoded = check()
    assert decoded == []
    assert second == first
    assert [type(pair.clip) for pair in second.pairs] == [type(pair.clip) for pair in first.pairs]
    assert len(entries(cache)) == 9, "eight files, and how the good start frame fits"
    damaged = ProbeCache(cache.folder).get_or_probe(cut, Clip, probe_clip)
    assert type(damaged) is DamagedClipError


def test_one_clip_added_changed_or_renamed_costs_one_clip(tmp_path, add_pair, draw_clip, check):
    for name in "abc":
        add_pair(name)
    check()
    draw_clip(tmp_path / "clips" / "d.mp4", num_frames=13)
    report, decoded = check()
    assert decoded == ["d.mp4"]
    draw_clip(tmp_path / "clips" / "a.mp4", num_frames=17)
    report, decoded = check()
    assert decoded == ["a.mp4"]
    assert report.pairs[0].clip.num_frames == 17
    (tmp_path / "clips" / "b.mp4").write_bytes(b"no video any more")
    check()
    (tmp_path / "clips" / "b.mp4").rename(tmp_path / "clips" / "z.mp4")
    report, decoded = check()
    assert decoded == ["z.mp4"]
    assert any(issue.message.startswith("z.mp4 is not a video") for issue in report.errors)


def test_a_touched_or_moved_folder_is_not_decoded_again(tmp_path, add_pair, check):
    add_pair("a")
    check()
    os.utime(tmp_path / "clips" / "a.mp4", (1, 1))
    assert check()[1] == []
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("clips", "start_frames"):
        (tmp_path / name).rename(moved / name)
    report, decoded = check(moved)
    assert decoded == []
    assert report.pairs[0].clip.path == moved / "clips" / "a.mp4"


def test_what_another_version_found_is_not_used(add_pair, check, monkeypatch, tmp_path_factory):
    add_pair("a")
    check()
    monkeypatch.setattr(probe_cache, "PROBE_VERSION", probe_cache.PROBE_VERSION + 1)
    assert len(check()[1]) == 2
    monkeypatch.setitem(sys.modules, "decord", None)
    without_decord = tmp_path_factory.mktemp("without_decord")
    (without_decord / "decord.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(without_decord))
    report, decoded = check()
    assert len(decoded) == 2
    assert report.pairs[0].clip.reader == "pyav"


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\0" * 50, b"{", b"[]", b"[" * 100_000, b"\xff\xfe", b"{}",
        b'{"error": "SystemExit", "message": "", "remedy": ""}',
        b'{"error": [], "message": "", "remedy": ""}', b'{"error": "MediaError", "message": 1, "remedy": ""}',
        b'{"num_frames": "9", "fps": 15.0, "height": 64, "width": 96, "reader": "pyav", "reader_reason": ""}',
        b'{"path": "/etc/passwd", "height": 64, "width": 96}',
    ],
)  # fmt: skip
def test_a_damaged_entry_costs_one_decoding_and_one_line(add_pair, check, cache, caplog, content):
    add_pair("a")
    first, _ = check()
    for entry in entries(cache):
        entry.write_bytes(content)
    second, decoded = check()
    assert second == first
    assert len(decoded) == 2
    assert len(caplog.records) == 1
    assert check() == (first, [])


@pytest.mark.parametrize("obstacle", ["file", "entry is a folder"])
def test_a_cache_that_cannot_be_written_costs_time_and_one_line(add_pair, check, cache, caplog, obstacle):
    add_pair("a")
    first, _ = check()
    if obstacle == "file":
        shutil.rmtree(cache.folder)
        cache.folder.write_text("in the way")
    else:
        for entry in entries(cache):
            entry.unlink()
            entry.mkdir()
    report, decoded = check()
    assert report == first
    assert len(decoded) == 2
    assert len(caplog.records) == 1
    assert not list(cache.folder.rglob("*.part"))


def test_an_error_of_the_machine_is_not_kept(tmp_path, draw_clip, cache):
    path = draw_clip(tmp_path / "a.mp4")

    def without_memory(path):
        raise MediaError("too little memory", "wait") from MemoryError()

    def without_files(path):
        raise MediaError("too many open files", "wait") from OSError(24, "Too many open files")

    for probe in (without_memory, without_files):
        assert isinstance(cache.get_or_probe(path, Clip, probe), MediaError)
    assert cache.get_or_probe(path, Clip, probe_clip) == probe_clip(path)


def test_a_file_that_changes_while_it_is_decoded_is_not_kept(tmp_path, draw_clip, cache):
    path = draw_clip(tmp_path / "a.mp4")

    def slow(path):
        draw_clip(path, num_frames=30)
        return probe_clip(path)

    assert cache.get_or_probe(path, Clip, slow).num_frames == 30
    assert not entries(cache)


def test_entries_out_of_use_are_dropped_and_other_files_left_alone(add_pair, check, cache, monkeypatch):
    for name in "abc":
        add_pair(name)
    check()
    assert len(entries(cache)) == 9
    long_ago = time.time() - 91 * 86_400
    for entry in entries(cache)[:4]:
        os.utime(entry, (long_ago, long_ago))
    stranger = entries(cache)[0].with_name("notes.txt")
    stranger.write_text("mine")
    os.utime(stranger, (long_ago, long_ago))
    # Used today, they are young again.
    check()
    add_pair("d")
    check()
    assert len(entries(cache)) == 12
    for entry in entries(cache)[:4]:
        os.utime(entry, (long_ago, long_ago))
    ProbeCache(cache.folder).drop_old()
    assert len(entries(cache)) == 12, "nothing was added, so nothing is looked through"
    cache.get_or_probe(add_pair("e"), Clip, probe_clip)
    cache.drop_old()
    assert len(entries(cache)) == 9
    monkeypatch.setattr(probe_cache, "MAX_ENTRIES", 2)
    newest = cache.get_or_probe(add_pair("f"), Clip, probe_clip)
    cache.drop_old()
    assert len(entries(cache)) == 2
    assert ProbeCache(cache.folder).get_or_probe(newest.path, Clip, None) == newest
    assert stranger.read_text() == "mine"


def test_threads_that_check_at_the_same_time_find_the_same(tmp_path, add_pair, cache, caplog):
    for name in "abc":
        add_pair(name)
    reports = []
    threads = [
        threading.Thread(
            target=lambda: reports.append(check_project(tmp_path, probes=Probes(disk=ProbeCache(cache.folder)))[1])
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reports) == 4
    assert all(report == reports[0] for report in reports)
    assert not caplog.records
    assert not list(cache.folder.rglob("*.part"))


def test_processes_share_what_they_find(tmp_path, add_pair, tmp_path_factory):
    for name in "ab":
        add_pair(name)
    add_pair("text").write_bytes(b"not a video")
    folder = tmp_path_factory.mktemp("elsewhere")
    command = [sys.executable, "-m", "studio", "check", str(tmp_path), "--json"]
    environment = os.environ | {"LONGCAT_STUDIO_CACHE": str(folder), "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    together = [subprocess.Popen(command, env=environment, **pipes) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in together]
    kept = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}
    said.append(subprocess.run(command, env=environment, check=False, text=True, capture_output=True))
    said[2] = (said[2].stdout, said[2].stderr)
    assert len(kept) == 8
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()} == kept
    assert said[0] == said[1] == said[2]
    assert said[0][1] == ""
    project, report = check_project(tmp_path)
    assert json.loads(said[0][0]) == report_to_json(report, project)


def test_the_cache_lies_in_the_users_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LONGCAT_STUDIO_CACHE", str(tmp_path))
    assert user_cache().folder == tmp_path / "probes"
    monkeypatch.delenv("LONGCAT_STUDIO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache().folder == tmp_path / "longcat-studio" / "probes"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "platform", "linux")
    for value in ("", "caches"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert user_cache().folder == tmp_path / "home/.cache/longcat-studio/probes", "a relative one is passed over"


def test_a_user_without_a_home_keeps_nothing(tmp_path, draw_clip, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("LONGCAT_STUDIO_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    path = draw_clip(tmp_path / "a.mp4")
    assert user_cache().folder is None
    assert Probes().clip(path, probe_clip) == probe_clip(path)
