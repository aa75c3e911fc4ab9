"""Cancelled at twenty moments, drawn at random: nothing stays in memory or on disk, and the next sample is as ever."""

import gc
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from studio.core.events import DenoiseStep, SampleDone
from studio.core.model.lora import LoraFile, adapter_names
from studio.core.sample import sampler, video
from studio.core.sample.gallery import sample_into
from studio.core.sample.preview import LatentColors
from studio.core.sample.queue import EntryState, SampleQueue
from studio.core.sample.request import SampleRequest
from studio.core.sample.sampler import frames_of, sample
from studio.core.sample.video import read_video

SMALL = SampleRequest(
    prompt="it moves", height=32, width=32, num_frames=5, num_inference_steps=2, schedule="standard", preview_steps=1
)
LONG = replace(SMALL, start_frame=np.full((64, 64, 3), 90, np.uint8), num_segments=2, num_overlap_frames=1)
REFINED = replace(SMALL, refinement="space")
NUM_STEPS = {"long": 2 * 2, "refined": 2 + 5}
NUM_EVENTS = {"long": 1 + 2 * (3 + 2) + 1, "refined": 1 + 3 + 2 + 3 + 5 + 1}
"""The start, three phases and the steps of each segment and of the refinement, and the phase of writing."""
PLACES = {
    "encode": (sampler, "encode_video"),
    "preview": (LatentColors, "paint"),
    "decode": (sampler, "decode_latents"),
    "write": (video.iio, "imwrite"),
}
"""Where a Ctrl-C may strike in the middle: what has it, and its name."""
CALLS = {
    "long": {"encode": 2, "preview": 4, "decode": 2, "write": 1},
    "refined": {"preview": 7, "decode": 2, "write": 1},
}
"""How often each is called."""
MOST_GROWTH = 48 << 20
"""Bytes that the process may have more after all of it: the allocator keeps some pages."""


def moments():
    """Twenty (face, "long" or "refined", kind of cancelling, where, after how many)."""
    chance = random.Random(7)
    for number in range(20):
        face = ("file", "gallery", "queue")[number % 3]
        kind = ("stop", "close", "break", "close")[number % 4]
        name = "refined" if number % 5 > 2 else "long"
        where = chance.choice(sorted(CALLS[name])) if kind == "break" else ""
        most = CALLS[name][where] if where else (NUM_STEPS if kind == "stop" else NUM_EVENTS)[name]
        yield face, name, kind, where, chance.randint(1, most)


@pytest.fixture
def loras(tmp_path_factory):
    file = tmp_path_factory.mktemp("lora") / "lora.safetensors"
    state = {"blocks.0.ffn.w2.lora_A.weight": torch.ones(2, 768), "blocks.0.ffn.w2.lora_B.weight": torch.ones(256, 2)}
    save_file(state, file)
    return (LoraFile(path=file),)


def events_of(face, request, bundle, folder, should_stop):
    if face == "file":
        return sample(request, bundle, folder / "out.mp4", should_stop=should_stop)
    if face == "gallery":
        return sample_into(request, bundle, folder, should_stop=should_stop)
    queue = SampleQueue(folder / "queue")
    queue.add(request)
    return (event for _, event in queue.run(lambda _: bundle, folder / "gallery", should_stop=should_stop))


def cancel(face, request, kind, where, after, bundle, folder, monkeypatch):
    """Renders until the moment; returns how many steps were done."""
    done = 0
    events = events_of(face, request, bundle, folder, lambda: kind == "stop" and done >= after)
    with monkeypatch.context() as patch:
        if kind == "break":
            strike(patch, where, after)
        try:
            for number, event in enumerate(events, start=1):
                done += isinstance(event, DenoiseStep)
                assert not isinstance(event, SampleDone)
                if kind == "close" and number >= after:
                    events.close()
                    break
        except KeyboardInterrupt:
            assert kind == "break"
        else:
            assert kind != "break"
    return done


def strike(patch, where, after):
    """The `after`-th call of it ends with a Ctrl-C once its work is done."""
    owner, name = PLACES[where]
    real, calls = getattr(owner, name), []

    def struck(*args, **kwargs):
        result = real(*args, **kwargs)
        calls.append(name)
        if len(calls) == after:
            raise KeyboardInterrupt
        return result

    patch.setattr(owner, name, struck)


def bytes_of_tensors():
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def bytes_of_process():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 if sys.platform == "linux" else 0


def frames(request, bundle):
    """What a request comes to."""
    steps = frames_of(request, bundle)
    with bundle.lock:
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value.frames


def test_at_any_moment(published_checkpoint, loras, tmp_path, monkeypatch):
    bundle, next_one = published_checkpoint, replace(SMALL, loras=loras, num_inference_steps=1)
    expected = frames(next_one, bundle)
    held = grown = None
    for number, (face, name, kind, where, after) in enumerate(moments()):
        moment = f"{number}: {face} {name} {kind} {where} {after}"
        request = LONG if name == "long" else REFINED
        folder = tmp_path / str(number)
        folder.mkdir()
        done = cancel(face, replace(request, loras=loras), kind, where, after, bundle, folder, monkeypatch)
        assert kind != "stop" or done == after, f"{moment}: within one step"
        assert not bundle.lock.locked(), moment
        assert adapter_names(bundle.dit) == (), moment
        assert bundle.dit.blocks[0].attn.choice is bundle.attention, moment
        assert not [*folder.rglob("*.mp4"), *folder.rglob("*.part*")], f"{moment}: no half file"
        if face == "queue":
            queue = SampleQueue(folder / "queue")
            queue.recover(folder / "gallery")
            assert [entry.state for entry in queue.entries()] == [EntryState.WAITING], moment
        np.testing.assert_array_equal(frames(next_one, bundle), expected, err_msg=moment)
        if number == 4:
            # Whatever is kept for good, such as the colours of the previews, is there by now.
            held, grown = bytes_of_tensors(), bytes_of_process()
        elif number % 5 == 4:
            assert bytes_of_tensors() == held, f"{moment}: no tensor of it, or of the four before it, is alive"
    assert bytes_of_process() - grown < MOST_GROWTH


def test_a_cancelled_entry_of_the_queue_stays_cancelled(published_checkpoint, loras, tmp_path):
    queue = SampleQueue(tmp_path / "queue")
    entry = queue.add(replace(LONG, loras=loras))
    steps = 0
    for at, event in queue.run(lambda _: published_checkpoint, tmp_path / "gallery"):
        steps += isinstance(event, DenoiseStep)
        if steps == 3 and isinstance(event, DenoiseStep):
            queue.cancel(at.id)
    assert steps == 3, "in the second segment, within one step"
    assert [(e.id, e.state) for e in queue.entries()] == [(entry.id, EntryState.CANCELLED)]
    assert not list((tmp_path / "gallery").iterdir())


def test_the_same_seed_gives_the_same_video_bit_for_bit(tiny_bundle, loras, tmp_path):
    request = replace(LONG, loras=loras)
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        list(sample(replace(request, seed=seed), tiny_bundle, tmp_path / f"{name}.mp4"))
    one, two, three = (read_video(tmp_path / f"{name}.mp4")[0] for name in ("one", "two", "three"))
    np.testing.assert_array_equal(one, two)
    assert (one != three).any()
