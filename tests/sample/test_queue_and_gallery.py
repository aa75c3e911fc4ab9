import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import numpy as np
import pytest

from studio.core.config import ModelConfig
from studio.core.errors import ConfigError, MediaError
from studio.core.events import DenoiseStep, SampleDone
from studio.core.model.lora import LoraFile
from studio.core.sample.gallery import delete_video, list_videos, new_video, sample_into, settings_again
from studio.core.sample.queue import EntryState, SampleQueue
from studio.core.sample.request import SampleRequest
from studio.core.sample.request_file import load_request, save_request

PIXELS = np.random.default_rng(0).integers(0, 255, (13, 32, 32, 3), np.uint8)
SMALL = SampleRequest(prompt="one", height=32, width=32, num_frames=5, num_inference_steps=1)


def same(a, b):
    for field in fields(SampleRequest):
        one, other = getattr(a, field.name), getattr(b, field.name)
        if isinstance(one, np.ndarray):
            np.testing.assert_array_equal(one, other)
        else:
            assert one == other, field.name


@pytest.fixture
def queue(tmp_path):
    return SampleQueue(tmp_path / "queue")


def states(queue):
    return [(entry.prompt, entry.state.value) for entry in queue.entries()]


def test_a_request_is_kept_to_the_last_bit(tmp_path):
    loras = (LoraFile(path=tmp_path / "a.safetensors", strength=-0.5),)
    for number, request in enumerate((
        replace(SMALL, start_frame=PIXELS[0], loras=loras, seed=2**40, guidance_scale=3.5),
        replace(SMALL, clip=PIXELS, clip_fps=29.97, num_segments=2, later_prompts=("two",), schedule="standard"),
    )):  # fmt: skip
        save_request(request, tmp_path, str(number))
        same(load_request(tmp_path, str(number)), request)
    (tmp_path / "1.request.json").write_text("{")
    with pytest.raises(ConfigError, match="request 1 cannot be read"):
        load_request(tmp_path, "1")
    with pytest.raises(ConfigError, match="request 7 cannot be read"):
        load_request(tmp_path, "7")


def test_the_queue_is_reordered_cancelled_and_survives_a_restart(queue):
    one, two, three = (queue.add(replace(SMALL, prompt=name)) for name in ("one", "two", "three"))
    queue.move(three.id, 0)
    assert states(queue) == [("three", "waiting"), ("one", "waiting"), ("two", "waiting")]
    queue.move(three.id, 99)
    queue.cancel(one.id)
    assert queue.take().id == two.id
    again = SampleQueue(queue.folder)
    assert states(again) == [("one", "cancelled"), ("two", "running"), ("three", "waiting")]
    again.recover(queue.folder.parent)
    assert states(again)[1] == ("two", "waiting")
    assert again.request(two.id).prompt == "two"
    again.remove(one.id)
    assert [entry.id for entry in again.entries()] == [two.id, three.id]
    assert not [file for file in again.folder.iterdir() if one.id in file.name]


def test_what_is_not_there_or_runs_is_said(queue):
    entry = queue.add(SMALL)
    for id_ in ("../../etc/passwd", "0" * 12, ""):
        for do in (queue.cancel, queue.remove, queue.request, lambda id_: queue.move(id_, 0)):
            with pytest.raises(ConfigError, match="There is no sample"):
                do(id_)
    queue.take()
    with pytest.raises(ConfigError, match="is running"):
        queue.remove(entry.id)
    with pytest.raises(ConfigError, match="is running"):
        queue.move(entry.id, 0)


def test_an_entry_that_cannot_be_read_has_failed_and_the_others_go_on(queue, tiny_bundle, tmp_path):
    broken, good = queue.add(SMALL), queue.add(replace(SMALL, prompt="good"))
    bad = queue.add(replace(SMALL, prompt="bad", num_frames=4))
    (queue.folder / f"{broken.id}.entry.json").write_text("no")
    (queue.folder / f"{'0' * 12}.entry.json").write_text('{"state": "done", "place": 9, "video": "../../x"}')
    for _ in queue.run(lambda _: tiny_bundle, tmp_path / "gallery"):
        pass
    ended = {entry.id: entry for entry in queue.entries()}
    assert ended[broken.id].state is EntryState.FAILED
    assert "cannot be read" in ended[broken.id].message
    assert (ended["0" * 12].state, ended["0" * 12].video) == (EntryState.FAILED, "")
    assert ended[bad.id].state is EntryState.FAILED
    assert ("4 frames" in ended[bad.id].message, ended[bad.id].remedy) == (True, "Use 5 or 9.")
    assert (ended[good.id].state, ended[good.id].video) == (EntryState.DONE, "sample-0001")


def test_an_entry_says_for_how_many_gpus_it_is_and_one_of_before_is_for_one(queue):
    alone, several = queue.add(SMALL), queue.add(SMALL, ModelConfig(source="tiny"), 4)
    assert [queue.gpus(entry.id) for entry in (alone, several)] == [1, 4]
    file = queue.folder / f"{alone.id}.entry.json"
    before = json.loads(file.read_text())
    del before["gpus"]
    file.write_text(json.dumps(before))
    assert (queue.gpus(alone.id), queue.next().id) == (1, alone.id)
    assert queue.take(lambda entry: entry.gpus == 4) is None, "its turn has not come"
    for wrong in (0, 4, "many", 1e999):
        file.write_text(json.dumps({**before, "gpus": wrong}))
        assert queue.entries()[0].state is EntryState.FAILED
        assert "cannot be read" in queue.entries()[0].message


def test_what_two_change_at_once_is_changed_twice(queue):
    def add(other):
        return [other.add(SMALL).place for _ in range(20)]

    with ThreadPoolExecutor(2) as both:
        places = [place for added in both.map(add, (queue, SampleQueue(queue.folder))) for place in added]
    assert sorted(places) == list(range(1, 41))


def test_a_running_sample_is_cancelled_after_its_step_and_a_stop_puts_it_back(queue, tiny_bundle, tmp_path):
    first, second = (queue.add(replace(SMALL, prompt=name, num_inference_steps=3)) for name in ("one", "two"))
    steps = []
    for entry, event in queue.run(lambda _: tiny_bundle, tmp_path / "gallery", should_stop=lambda: len(steps) == 2):
        if isinstance(event, DenoiseStep):
            steps.append(entry.id)
            if entry.id == first.id:
                queue.cancel(first.id)
    assert steps == [first.id, second.id]
    assert states(queue) == [("one", "cancelled"), ("two", "waiting")]
    assert not list((tmp_path / "gallery").glob("*.mp4"))
    running = queue.run(lambda _: tiny_bundle, tmp_path / "gallery")
    next(running)
    running.close()
    assert states(queue)[1] == ("two", "waiting")
    assert not tiny_bundle.lock.locked()


def test_one_that_is_cancelled_and_removed_ends_too(queue, tiny_bundle, tmp_path):
    entry, steps = queue.add(replace(SMALL, num_inference_steps=3)), 0
    for _, event in queue.run(lambda _: tiny_bundle, tmp_path / "gallery"):
        if isinstance(event, DenoiseStep):
            steps += 1
            queue.cancel(entry.id)
            queue.remove(entry.id)
    assert steps == 1
    assert states(queue) == []
    assert not list((tmp_path / "gallery").iterdir())


def test_after_a_kill_half_a_video_is_gone_and_a_whole_one_stays(queue, tiny_bundle, tmp_path):
    gallery, entry = tmp_path / "gallery", queue.add(SMALL)
    events = queue.run(lambda _: tiny_bundle, gallery)
    next(events)
    (gallery / ".sample-0001.part.mp4").write_bytes(b"half")
    killed = SampleQueue(shutil.copytree(tmp_path, tmp_path / "killed") / "queue")
    events.close()
    taken = killed.folder.parent / "gallery"
    assert sorted(file.name for file in taken.iterdir()) == [".sample-0001.part.mp4", "sample-0001.mp4"]
    (taken / "sample-0002.mp4").touch()
    killed.recover(taken)
    assert [file.name for file in taken.iterdir()] == ["sample-0002.mp4"], "of somebody else"
    assert [(one.id, one.state, one.taken) for one in killed.entries()] == [(entry.id, EntryState.WAITING, "")]


def test_the_gallery_keeps_settings_figures_and_the_request(tiny_bundle, tmp_path):
    folder = tmp_path / "gallery"
    request = replace(SMALL, start_frame=PIXELS[0], seed=4)
    *_, done = sample_into(request, tiny_bundle, folder)
    assert isinstance(done, SampleDone)
    list(sample_into(replace(SMALL, prompt="two"), tiny_bundle, folder))
    (folder / "sample-0003.mp4").write_bytes(b"cut off")
    (folder / "other.mp4").write_bytes(b"not ours")
    videos = list_videos(folder)
    assert [video.name for video in videos] == ["sample-0003", "sample-0002", "sample-0001"]
    assert videos[0].settings == {}
    assert (videos[1].settings["prompt"], videos[2].settings["seed"]) == ("two", 4)
    assert videos[2].figures["start_psnr"] == pytest.approx(done.start_psnr, abs=1e-3)
    assert videos[1].figures["start_psnr"] is None
    same(settings_again(folder, "sample-0001"), request)
    delete_video(folder, "sample-0001")
    assert not [file for file in folder.iterdir() if "sample-0001" in file.name]
    assert new_video(folder).name == "sample-0004.mp4"
    for name in ("other", "../gallery/sample-0002", "sample-0009", ""):
        with pytest.raises(MediaError, match="There is no video"):
            delete_video(folder, name)
    assert (folder / "other.mp4").exists()
