"""A decoder that hangs or crashes takes one file with it; a check that is stopped keeps what it found."""

import io
import json
import os
import subprocess
import sys

import pytest

from studio.core.data import probe_worker
from studio.core.data.check import Probes, check_project
from studio.core.data.probe import probe_clip
from studio.core.data.probe_cache import ProbeCache, to_json
from studio.core.data.probe_worker import ProbeWorker
from studio.core.errors import CheckStopped, MediaError
from studio.core.types import Severity

BAD_DECORD = """
import os, signal, time
from pathlib import Path
__version__ = "0"
class DECORDError(Exception): pass
def VideoReader(path, num_threads=0):
    if Path(path).stem == "hangs": time.sleep(600)
    if Path(path).stem == "crashes": os.kill(os.getpid(), signal.SIGSEGV)
    raise RuntimeError("reads nothing")
"""


def test_a_file_that_never_answers_is_given_up_and_the_next_one_is_read(tmp_path, draw_clip, monkeypatch):
    monkeypatch.setattr(probe_worker, "DEADLINE_SECONDS", 1.5)
    os.mkfifo(tmp_path / "pipe.mp4")
    worker = ProbeWorker()
    with pytest.raises(MediaError, match=r"pipe\.mp4: its decoder gave no frame for 2 s"):
        worker.clip(tmp_path / "pipe.mp4")
    monkeypatch.setattr(probe_worker, "DEADLINE_SECONDS", 60)
    assert worker.clip(draw_clip(tmp_path / "a.mp4")).num_frames == 9
    worker.close()


def test_a_child_tells_of_its_progress_while_it_decodes(tmp_path, draw_clip, draw_image, monkeypatch):
    clip = draw_clip(tmp_path / "a.mp4", num_frames=12)
    other = draw_image(tmp_path / "other.png", 96, 64)
    monkeypatch.setattr(probe_worker, "_SIGN_SECONDS", 0)
    path = {"path": str(clip), "seconds": 600}
    requests = [
        {"kind": "Clip", **path},
        {"kind": "StartFrameMatch", "clip": to_json(probe_clip(clip)), "start_frame": str(other), **path},
    ]
    answers = io.BytesIO()
    probe_worker._serve(io.BytesIO(b"".join(json.dumps(each).encode() + b"\n" for each in requests)), answers)
    *signs, answer, end = answers.getvalue().split(b"\n")
    assert [len(line) > 0 for line in signs] == [False] * 12 + [True] + [False] * 12
    assert "psnr" in json.loads(answer)["found"]
    assert not end


SLOW_CHILD = """
import json, sys, time
sys.stdin.readline()
for _ in range(20):
    time.sleep(0.15)
    print(flush=True)
print(json.dumps({"found": {"error": "MediaError", "message": "it took 3 s", "remedy": ""}, "is_of_content": True}))
"""


def test_a_child_that_shows_progress_is_waited_for_longer_than_the_deadline(tmp_path, draw_clip, monkeypatch):
    command = [sys.executable, "-S", "-c", SLOW_CHILD]
    pipe = subprocess.PIPE
    monkeypatch.setattr(probe_worker, "_start_child", lambda: subprocess.Popen(command, stdin=pipe, stdout=pipe))
    monkeypatch.setattr(probe_worker, "DEADLINE_SECONDS", 2)
    worker = ProbeWorker()
    with pytest.raises(MediaError, match="it took 3 s"):
        worker.clip(draw_clip(tmp_path / "a.mp4"))
    worker.close()


def test_a_decoder_that_hangs_or_crashes_is_named_and_the_others_are_ready(tmp_path, add_pair, monkeypatch):
    for name in ("good", "hangs", "crashes", "last"):
        add_pair(name)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "decord.py").write_text(BAD_DECORD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "bad"))
    monkeypatch.setattr(probe_worker, "DEADLINE_SECONDS", 4)
    probes = Probes(disk=ProbeCache(tmp_path / "cache"))
    pairs = {pair.name: pair for pair in check_project(tmp_path, probes=probes)[1].pairs}
    assert {name for name, pair in pairs.items() if pair.is_ready} == {"good", "last"}
    assert "crashes.mp4 makes its decoder crash" in pairs["crashes"].issues[0].message
    assert "hangs.mp4: its decoder gave no frame" in pairs["hangs"].issues[0].message
    monkeypatch.delenv("PYTHONPATH")
    for each in (probes, Probes(disk=ProbeCache(tmp_path / "cache"))):
        again = check_project(tmp_path, probes=each)[1]
        assert all(pair.is_ready for pair in again.pairs), "what the content did not bring about is not kept"


def test_a_stopped_check_says_how_far_it_came_and_the_next_one_goes_on(tmp_path, add_pair, monkeypatch):
    for name in "abcdef":
        add_pair(name)
    seen = []
    with pytest.raises(CheckStopped, match=r"after \d of 6 clips"):
        check_project(
            tmp_path,
            progress=lambda done, total: seen.append(done),
            probes=Probes(disk=ProbeCache(tmp_path / "cache")),
            should_stop=lambda: bool(seen),
        )
    kept = {entry: entry.stat().st_mtime_ns for entry in (tmp_path / "cache").rglob("*.json")}
    assert kept
    decoded, probe = [], ProbeWorker.clip
    monkeypatch.setattr(ProbeWorker, "clip", lambda worker, path: (decoded.append(path), probe(worker, path))[1])
    assert check_project(tmp_path, probes=Probes(disk=ProbeCache(tmp_path / "cache")))[1].is_ok
    assert len(decoded) < 6
    assert {entry: entry.stat().st_mtime_ns for entry in kept} == kept, "what was found is not looked at again"


def test_a_file_that_changes_while_it_is_checked_is_said_by_name_and_not_decoded_once_more(
    tmp_path, add_pair, draw_image, draw_clip
):
    for name in "abc":
        add_pair(name)

    def change(done, total):
        if done == total:
            draw_clip(tmp_path / "clips" / "a.mp4", num_frames=30)
            draw_image(tmp_path / "start_frames" / "b.png", height=32)

    a, b, c = check_project(tmp_path, progress=change)[1].pairs
    assert [issue.message for issue in a.issues if issue.severity is Severity.ERROR] == [
        "a.mp4 has changed while it was checked."
    ]
    assert [issue.message for issue in b.issues if issue.severity is Severity.ERROR] == [
        "b.png has changed while it was checked."
    ]
    assert (a.clip, b.start_frame, a.match, b.match) == (None, None, None, None)
    assert c.is_ready
    assert check_project(tmp_path)[1].pairs[0].clip.num_frames == 30
