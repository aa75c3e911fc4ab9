import gc
import io
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from studio.core.config import ModelConfig
from studio.core.errors import CheckpointError
from studio.core.filelock import FileLock
from studio.core.model.lora import LoraFile, adapter_names
from studio.core.sample import desk as desks
from studio.core.sample.compare import strength_variants
from studio.core.sample.desk import SampleDesk, compared
from studio.core.sample.gallery import list_videos
from studio.core.sample.queue import EntryState
from studio.core.sample.request import SampleRequest
from studio.core.sample.underway import UNDERWAY
from studio.core.sample.video import read_settings

ROOT = Path(__file__).parents[2]
SMALL = SampleRequest(prompt="one", height=32, width=32, num_frames=5, num_inference_steps=3, preview_steps=1)
SECONDS = 60
"""Nothing here takes long; nothing waits for ever."""

WORK = """
import sys, time
from pathlib import Path
from studio.core.config import ModelConfig
from studio.core.model.load import load_bundle
from studio.core.sample.desk import SampleDesk
desk = SampleDesk(Path(sys.argv[1]), lambda model: load_bundle(ModelConfig(source="tiny", device="cpu")))
desk.start()
time.sleep(600)
"""


def until(is_so):
    """The first true value; an error after a while."""
    deadline = time.monotonic() + SECONDS
    while not (value := is_so()):
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)
    return value


@pytest.fixture
def make_desk(tiny_bundle, tmp_path):
    """make_desk(load): a desk on one gallery; it is stopped at the end."""
    made = []

    def make(load=lambda _: tiny_bundle):
        made.append(SampleDesk(tmp_path / "samples", load))
        return made[-1]

    yield make
    for desk in made:
        desk.stop()


@pytest.fixture
def lora(tmp_path):
    state = {"blocks.0.ffn.w2.lora_A.weight": torch.ones(2, 768), "blocks.0.ffn.w2.lora_B.weight": torch.ones(256, 2)}
    save_file(state, tmp_path / "lora.safetensors")
    return LoraFile(path=tmp_path / "lora.safetensors")


def states(desk):
    return [(entry.prompt, entry.state.value) for entry in desk.snapshot().entries]


def test_what_waits_is_rendered_and_seen_on_its_way(make_desk):
    desk = make_desk()
    seen, pictures = [], []
    note = desk._report.note

    def watched(event):
        note(event)
        seen.append(desk.snapshot().underway)
        pictures.append(desk.preview())

    desk._report.note = watched
    desk.add([SMALL])
    desk.start()
    until(lambda: not desk.snapshot().is_busy)
    assert [u.phase for u in seen if u][:3] == ["load", "encode", "denoise"]
    assert {"decode", "write"} <= {u.phase for u in seen if u}
    assert max(u.step for u in seen if u) == max(u.num_steps for u in seen if u) == 3
    with Image.open(io.BytesIO(next(filter(None, pictures)))) as picture:
        assert (picture.format, picture.n_frames, picture.size) == ("WEBP", 2, (64, 64))
    (done,) = desk.snapshot().entries
    assert (done.state, done.video) == (EntryState.DONE, "sample-0001")
    assert done.ended > 0
    assert desk.snapshot().underway is None
    until(lambda: desk.preview() is None)
    assert sorted(p.name for p in desk.gallery.iterdir()) == ["queue", "sample-0001.mp4", "sample-0001.request.json"]


def test_a_group_is_rendered_under_its_labels(make_desk, lora):
    desk = make_desk()
    desk.add(compared(strength_variants(replace(SMALL, loras=(lora,)), (0, 1))))
    desk.start()
    until(lambda: not desk.snapshot().is_busy)
    notes = [read_settings(desk.gallery / f"sample-000{number}.mp4") for number in (1, 2)]
    assert [note["label"] for note in notes] == ["0", "1"]
    assert notes[0]["group"] == notes[1]["group"] != ""
    assert len({entry.group for entry in desk.snapshot().entries}) == 1


def test_a_cancelled_one_ends_within_a_step_and_leaves_nothing(make_desk, tiny_bundle):
    desk = make_desk()
    (entry,) = desk.add([replace(SMALL, num_inference_steps=500, preview_steps=0)])
    desk.start()
    step = until(lambda: (u := desk.snapshot().underway) and u.step)
    desk.queue.cancel(entry.id)
    until(lambda: not tiny_bundle.lock.locked())
    assert desk._report.now.step < step + 400
    until(lambda: not (desk.queue.folder / UNDERWAY).exists())
    gc.collect()
    assert states(desk) == [("one", "cancelled")]
    assert not list(desk.gallery.glob("*.mp4"))
    assert adapter_names(tiny_bundle.dit) == ()


def test_what_cannot_be_rendered_says_why_and_the_next_one_is_rendered(make_desk, tiny_bundle):
    tried = []

    def load(model):
        tried.append(model)
        if model is not None:
            raise CheckpointError("There is no such checkpoint.", "Use tiny.")
        if len(tried) == 2:
            raise ZeroDivisionError
        return tiny_bundle

    desk = make_desk(load)
    desk.add([SMALL], ModelConfig(source="elsewhere"))
    desk.add([replace(SMALL, prompt="two")])
    desk.add([replace(SMALL, prompt="three")])
    desk.start()
    until(lambda: not desk.snapshot().is_busy)
    assert tried == [ModelConfig(source="elsewhere"), None, None]
    missing, unforeseen, done = desk.snapshot().entries
    assert (missing.message, missing.remedy) == ("There is no such checkpoint.", "Use tiny.")
    assert "not foreseen: ZeroDivisionError" in unforeseen.message
    assert done.state is EntryState.DONE


def test_what_nobody_foresaw_is_said_and_the_desk_goes_on(make_desk, monkeypatch):
    monkeypatch.setattr(desks, "TROUBLE_SECONDS", 0.5)
    desk = make_desk()
    note = desk._report.note

    def breaks(event):
        desk._report.note = note
        raise ZeroDivisionError

    desk._report.note = breaks
    desk.add([SMALL])
    desk.start()
    assert "ZeroDivisionError" in until(lambda: desk.snapshot().trouble)[0]
    until(lambda: not desk.snapshot().is_busy)
    assert states(desk) == [("one", "done")]
    until(lambda: desk.snapshot().trouble is None)


def test_a_stopped_desk_puts_back_what_it_renders(make_desk):
    desk = make_desk()
    desk.add([replace(SMALL, num_inference_steps=500, preview_steps=0)])
    desk.start()
    until(lambda: (u := desk.snapshot().underway) and u.step)
    desk.stop()
    assert states(desk) == [("one", "waiting")]
    assert desk.snapshot().underway is None


def test_of_two_on_one_folder_one_renders_and_the_other_says_so(make_desk):
    first, second = make_desk(), make_desk()
    first.add([SMALL])
    held = FileLock(first.queue.folder / desks.LOCK)
    assert held.acquire()
    second.start()
    until(lambda: second.snapshot().is_elsewhere)
    assert states(second) == [("one", "waiting")]
    held.release()
    until(lambda: not second.snapshot().is_busy)
    assert states(first) == [("one", "done")]
    assert not first.snapshot().is_elsewhere
    assert not second.snapshot().is_elsewhere


def test_a_killed_desk_is_taken_up_where_it_was(make_desk):
    desk = make_desk()
    long, short = desk.add([replace(SMALL, num_inference_steps=2000, preview_steps=0), replace(SMALL, prompt="two")])
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels/torch-ext")])
    killed = subprocess.Popen([sys.executable, "-c", WORK, desk.gallery], env=os.environ | {"PYTHONPATH": paths})
    try:
        until(lambda: (u := desk.snapshot().underway) and u.step)
    finally:
        killed.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
        killed.wait(SECONDS)
    assert states(desk) == [("one", "running"), ("two", "waiting")]
    desk.start()
    until(lambda: (u := desk.snapshot().underway) and u.id == long.id and u.step)
    desk.queue.cancel(long.id)
    until(lambda: not desk.snapshot().is_busy)
    assert states(desk) == [("one", "cancelled"), ("two", "done")]
    assert desk.queue.entries()[1].id == short.id
    assert [video.name for video in list_videos(desk.gallery)] == [desk.queue.entries()[1].video] == ["sample-0001"]
    assert sorted(p.name for p in desk.gallery.iterdir()) == ["queue", "sample-0001.mp4", "sample-0001.request.json"]


def test_done_ones_do_not_pile_up(make_desk, monkeypatch):
    monkeypatch.setattr(desks, "DONE_KEPT", 1)
    desk = make_desk()
    desk.add([replace(SMALL, prompt=name, num_inference_steps=1, preview_steps=0) for name in ("one", "two")])
    desk.start()
    until(lambda: states(desk) == [("two", "done")])
    assert len(list(desk.gallery.glob("*.mp4"))) == 2
