"""Memory that runs out becomes one sentence with what to change, is given back, and the next attempt works."""

import gc
import re
import time
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from studio.cli import USER_ERROR, main
from studio.core.config import ModelConfig
from studio.core.errors import CheckpointError, OutOfMemory
from studio.core.events import FitPredicted, RunFailed, SampleDone, StepDone
from studio.core.model import load
from studio.core.model.dit import LongCatVideoTransformer3DModel
from studio.core.model.load import load_bundle
from studio.core.model.loading_room import room_for_weights
from studio.core.model.lora import adapter_names
from studio.core.model.memory import is_out_of_memory, memory_errors
from studio.core.runlog import RunState
from studio.core.sample.room import has_room_for_both, needed_bytes, room_for_decoding, room_for_sample
from studio.core.sample.sampler import SampleRequest, sample
from studio.core.train.job import run_inline
from studio.core.types import Bucket
from studio.ui.sample_queue import queue_list
from studio.ui.sample_stage import stage
from studio.ui.settings import AppSettings
from studio.ui.workshop import Workshop
from studio.view.words import words
from tests.memory_that_runs_out import failing

pytestmark = [
    # gradio imports starlette's test client, which warns; it is not used here
    pytest.mark.filterwarnings("ignore::DeprecationWarning:starlette.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio.*"),
]

GIB = 2**30
PICTURE = np.zeros((64, 64, 3), np.uint8)
SMALL = {"height": 64, "width": 64, "num_frames": 9, "num_inference_steps": 1}


def failure_of(folder):
    (failed,) = [event for _, event in folder.events() if isinstance(event, RunFailed)]
    return failed


@pytest.mark.parametrize(
    ("is_checkpointed", "batch_size", "remedy"),
    [
        (False, 2, "Set gradient_checkpointing to true in config.json."),
        (True, 2, "Set train_batch_size to 1 in config.json."),
        (True, 1, "Set resolution to one that gives 32x32 (height x width) in multidatabackend.json."),
    ],
)
def test_a_step_without_memory_ends_the_run_with_a_sentence(
    config, run, tiny_bundle, is_checkpointed, batch_size, remedy
):
    config = replace(
        config,
        model=replace(config.model, gradient_checkpointing=is_checkpointed),
        data=replace(config.data, train_batch_size=batch_size),
    )
    block = tiny_bundle.dit.blocks[1]
    with failing(block, at_call=3 if is_checkpointed else 2) as held:
        folder = run(config)
    failed = failure_of(folder)
    assert folder.state() is RunState.FAILED
    assert failed.message == (f"The device ran out of memory in step 2, for 5f 64x64 with batch size {batch_size}.")
    assert failed.remedy == remedy
    assert folder.snapshot().step == 1, "what was trained before is kept"
    assert adapter_names(tiny_bundle.dit) == ()
    assert not tiny_bundle.dit.gradient_checkpointing
    assert not tiny_bundle.dit.training
    assert not tiny_bundle.lock.locked()
    gc.collect()
    assert held
    assert all(reference() is None for reference in held), "nothing keeps the tensors of the step alive"


def test_the_next_run_trains(config, run, tiny_bundle, with_optim):
    expected = run(with_optim(config, max_train_steps=1)).snapshot().losses
    with failing(tiny_bundle.dit.blocks[0]):
        run(config)
    folder = run(with_optim(config, max_train_steps=1))
    assert folder.state() is RunState.FINISHED
    assert folder.snapshot().losses == expected


def test_memory_that_runs_out_in_the_backward_pass_is_said_too(config, run, tiny_bundle):
    config = replace(config, model=replace(config.model, gradient_checkpointing=True))
    with failing(tiny_bundle.dit.blocks[0], at_call=2):
        failed = failure_of(run(config))
    assert failed.message.startswith("The device ran out of memory in step 1")


def test_encoding_without_memory_names_what_is_encoded(config, run, tiny_bundle, tmp_path):
    config = replace(config, data=replace(config.data, datasets=tuple(
        replace(dataset, cache_dir=tmp_path / "fresh") for dataset in config.data.datasets
    )))  # fmt: skip
    with failing(tiny_bundle.vae.encoder):
        failed = failure_of(run(config))
    assert failed.message == "The device ran out of memory while 5 frames of 64x64 were encoded."
    assert "num_frames" in failed.remedy
    assert not tiny_bundle.lock.locked()


def test_a_validation_sample_without_memory_ends_the_run_with_a_sentence(config, run, tiny_bundle, with_validation):
    config = with_validation(config, num_pairs=1, step_interval=1)
    with failing(tiny_bundle.vae.decoder):
        folder = run(config)
    assert "5 frames of 64x64 was decoded" in failure_of(folder).message
    assert "vae_enable_tiling to true" in failure_of(folder).remedy
    assert adapter_names(tiny_bundle.dit) == ()


def test_a_sample_without_memory_says_so_and_the_next_one_is_rendered(tiny_bundle, tmp_path):
    request = SampleRequest(prompt="", start_frame=PICTURE, **SMALL)
    with failing(tiny_bundle.dit.blocks[0]) as held, pytest.raises(OutOfMemory) as caught:
        list(sample(request, tiny_bundle, tmp_path / "one.mp4"))
    assert caught.value.message == "The device ran out of memory while a video of 9 frames of 64x64 was rendered."
    assert caught.value.remedy == "Render 5 frames or fewer."
    assert caught.value.__context__.__traceback__ is None
    assert all(reference() is None for reference in held)
    assert not tiny_bundle.lock.locked()
    assert isinstance(list(sample(request, tiny_bundle, tmp_path / "two.mp4"))[-1], SampleDone)


def test_a_decoder_without_memory_is_told_to_work_in_tiles(tiny_bundle, tmp_path):
    request = SampleRequest(prompt="", start_frame=PICTURE, **SMALL)
    with (
        failing(tiny_bundle.vae.decoder),
        pytest.raises(OutOfMemory, match=r"was decoded.*vae_enable_tiling to true in config.json"),
    ):
        list(sample(request, tiny_bundle, tmp_path / "one.mp4"))


def test_the_app_shows_the_sentence_in_its_queue(tiny_bundle, tmp_path, monkeypatch):
    settings = AppSettings(model=ModelConfig(source="tiny", device="cpu"), output_dir=tmp_path)
    workshop = Workshop(settings)
    monkeypatch.setattr(Workshop, "bundle", lambda _self, _model: tiny_bundle)
    request = SampleRequest(prompt="it hops", start_frame=PICTURE, **SMALL)
    desk, deadline = workshop.desk(), time.monotonic() + 60
    with failing(tiny_bundle.dit.blocks[0]):
        desk.add([request])
        while desk.snapshot().is_busy:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    desk.stop()
    for shown in (stage(desk, desk.snapshot(), words("es")), queue_list(desk.snapshot(), words("es"))):
        assert "Render 5 frames or fewer." in shown


def test_a_model_that_does_not_load_for_want_of_memory_is_no_damaged_checkpoint(monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(load, "place", fail)
    with pytest.raises(OutOfMemory, match="while the model was loaded"):
        load_bundle(ModelConfig(source="tiny", device="cpu"))
    with pytest.raises(torch.OutOfMemoryError), load._named(tmp := load.Path("dit")):
        fail()
    with pytest.raises(CheckpointError), load._named(tmp):
        raise RuntimeError("header too large")


def test_the_model_before_is_let_go_before_another_is_loaded(tmp_path, monkeypatch):
    workshop = Workshop(AppSettings(model=ModelConfig(source="tiny", device="cpu"), output_dir=tmp_path))
    seen = []

    class Bundle:
        pass

    def load_one(model):
        gc.collect()
        seen.append([reference() for reference in references])
        bundle = Bundle()
        references.append(weakref.ref(bundle))
        return bundle

    references = []
    monkeypatch.setattr("studio.ui.workshop.load_bundle", load_one)
    workshop.bundle(workshop.settings.model)
    workshop.bundle(replace(workshop.settings.model, blocks_to_swap=4))
    assert seen == [[], [None]]


def number_of(key, remedy):
    return int(re.search(rf"\b{key} to (\d+)[\w ]* in config\.json\.", remedy)[1])


@pytest.mark.parametrize(
    ("remedy", "shown"),
    [
        ("Set musubi_blocks_to_swap to 24 in config.json.", "Give --swap 24."),
        (
            "Set base_model_precision to int8-quanto and musubi_blocks_to_swap to 40 in config.json.",
            "Give --precision int8-quanto --swap 40.",
        ),
        ("Set vae_enable_tiling to true in config.json.", "Give --vae-tiling."),
        ("Render 5 frames or fewer.", "Render 5 frames or fewer."),
    ],
)
def test_a_sample_on_the_command_line_is_told_its_options(tiny_bundle, monkeypatch, tmp_path, capsys, remedy, shown):
    def fail(*_, **__):
        raise OutOfMemory("Too little.", remedy)

    Image.fromarray(PICTURE).save(tmp_path / "start.png")
    monkeypatch.setattr("studio.core.sample.parallel.load_bundle", fail)
    arguments = ["--image", str(tmp_path / "start.png"), "--prompt", "", "--out", str(tmp_path / "out.mp4")]
    assert main(["sample", *arguments]) == USER_ERROR
    assert capsys.readouterr().err == f"Too little. {shown}\n"


@pytest.fixture(scope="module")
def published():
    """The published transformer without its weights."""
    with torch.device("meta"):
        return LongCatVideoTransformer3DModel().bfloat16()


def test_loading_asks_for_as_much_swap_as_the_device_needs(published, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    shapes, cuda = {n: tuple(t.shape) for n, t in published.state_dict().items()}, torch.device("cuda")

    def remedy(free, **settings):
        return str(room_for_weights(shapes, ModelConfig(**settings), cuda, free * GIB, 2))

    numbers = [number_of("musubi_blocks_to_swap", remedy(free)) for free in (24, 20, 16)]
    assert numbers == sorted(numbers)
    assert numbers[0] > 2
    assert "int8-quanto" in remedy(5)
    assert remedy(1) == "No setting makes it fit: use a device with more memory."
    assert remedy(16, group_offload=True).startswith("No setting")
    assert room_for_weights(shapes, ModelConfig(), torch.device("cpu"), None, 4).startswith("Close other programs")


def test_a_sample_is_given_swap_then_fewer_frames_then_a_smaller_size(tiny_bundle, published, monkeypatch):
    bundle = replace(tiny_bundle, dit=published)
    size = Bucket(num_frames=93, height=480, width=832)

    def remedy(free, change=room_for_sample):
        monkeypatch.setattr("studio.core.sample.room.free_bytes", lambda _: int(free * GIB))
        return str(change(bundle, size))

    swaps = [number_of("musubi_blocks_to_swap", remedy(free)) for free in (4, 3, 2)]
    assert swaps == sorted(swaps)
    monkeypatch.setattr("studio.core.sample.room.swap_for", lambda _dit, _missing: None)
    monkeypatch.setattr("studio.core.sample.room.freed_by_swap", lambda _dit, _count: 0)
    frames = [int(remedy(free).split()[1]) for free in (4, 3, 2)]
    assert frames == sorted(frames, reverse=True)
    assert all((number - 1) % 4 == 0 for number in frames)
    assert "smaller size" in remedy(0.1)
    assert remedy(0).startswith("No setting")
    assert remedy(4, room_for_decoding) == "Set vae_enable_tiling to true in config.json."
    monkeypatch.setattr(bundle.vae, "use_tiling", True)
    assert remedy(4, room_for_decoding) == remedy(4)


def test_guidance_takes_one_batch_where_both_prompts_have_room(tiny_bundle, published, monkeypatch):
    bundle = replace(tiny_bundle, dit=published)
    size = Bucket(num_frames=93, height=480, width=832)
    assert has_room_for_both(bundle, size), "on a CPU there is nobody to ask"
    needed = needed_bytes(bundle, size, num_prompts=2)
    for free, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr("studio.core.sample.room.free_bytes", lambda _, free=free: free)
        assert has_room_for_both(bundle, size) is fits


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_is_an_error_of_memory_and_what_is_not(error, is_it):
    assert is_out_of_memory(error) is is_it
    expected = OutOfMemory if is_it else type(error)
    with pytest.raises(expected), memory_errors("Too little.", lambda: "Use less."):
        raise error


def test_a_sentence_from_further_inside_is_kept():
    def inner():
        with memory_errors("The inner one.", lambda: "Do this."):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(OutOfMemory, match="inner one"), memory_errors("The outer one.", lambda: "Do that."):
        inner()


@pytest.fixture
def little_memory(cuda_bundle):
    """little_memory(bytes): until the test ends, PyTorch may take so much beyond what is allocated."""
    device = cuda_bundle.device

    def limit(spare):
        gc.collect()
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + spare) / total, device)

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0, device)


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@needs_cuda
def test_on_a_gpu_a_run_that_fits_says_what_it_took(config, report, cuda_bundle):
    config = replace(config, model=replace(config.model, device="cuda", gradient_checkpointing=True))
    folder = run_inline(config, lambda: cuda_bundle, report=report)
    fit, last = folder.snapshot().fit, folder.events()[-1][1]
    assert fit.fits
    assert fit.keeps_attention, "there is room for it"
    assert last.peak_bytes == pytest.approx(fit.peak_bytes, rel=0.1)
    assert last.seconds_per_step > 0


@pytest.mark.gpu
@needs_cuda
def test_on_a_gpu_a_run_in_little_memory_is_warned_and_fails_with_a_sentence(
    config, data_of, known_shapes_dataset, cuda_bundle, little_memory, with_optim
):
    data = data_of(known_shapes_dataset, size=128, num_frames=17, batch_size=2)
    config = replace(with_optim(config, max_train_steps=2), data=data)
    config = replace(config, model=replace(config.model, device="cuda", gradient_checkpointing=False))
    assert run_inline(config, lambda: cuda_bundle).state() is RunState.FINISHED
    little_memory(40 * 2**20)
    folder = run_inline(config, lambda: cuda_bundle)
    events = [event for _, event in folder.events()]
    (fit,) = [event for event in events if isinstance(event, FitPredicted)]
    assert not fit.fits
    assert fit.change.startswith("Set gradient_checkpointing to true")
    assert not any(isinstance(event, StepDone) for event in events)
    assert failure_of(folder).message.startswith("The device ran out of memory")
    before = torch.cuda.memory_allocated(cuda_bundle.device)
    torch.cuda.set_per_process_memory_fraction(1.0, cuda_bundle.device)
    assert run_inline(config, lambda: cuda_bundle).state() is RunState.FINISHED
    assert torch.cuda.memory_allocated(cuda_bundle.device) <= before + 2**20, "nothing is left behind"


@pytest.mark.gpu
@needs_cuda
def test_on_a_gpu_a_sample_in_little_memory_fails_with_a_sentence_and_is_rendered_later(
    cuda_bundle, little_memory, tmp_path
):
    request = SampleRequest(prompt="", start_frame=PICTURE, height=256, width=256, num_frames=33, num_inference_steps=1)
    little_memory(4 * 2**20)
    with pytest.raises(OutOfMemory):
        list(sample(request, cuda_bundle, tmp_path / "one.mp4"))
    torch.cuda.set_per_process_memory_fraction(1.0, cuda_bundle.device)
    assert isinstance(list(sample(request, cuda_bundle, tmp_path / "two.mp4"))[-1], SampleDone)
