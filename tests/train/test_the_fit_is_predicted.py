"""What a run takes is measured on a few blocks and predicted for all; what would make it fit is named."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from studio.core.errors import JobAlreadyRunning
from studio.core.events import (
    FitPredicted,
    FitProgress,
    RunFinished,
    RunStarted,
    RunStopped,
    StepDone,
    decode_event,
    encode_event,
)
from studio.core.geometry import GridSpec
from studio.core.model.lora import adapter_names
from studio.core.model.memory import capacity, free_bytes
from studio.core.model.processes import ALONE
from studio.core.runlog import RunFolder, RunState
from studio.core.train import fit as fitting
from studio.core.train import loop
from studio.core.train import measure as measuring
from studio.core.train.change import change_after_failure, cheapest_change, first_change
from studio.core.train.estimate import Measurement, Setup, Sizes, StepBytes, does_fit, extrapolate
from studio.core.train.fit import decide_keep_attention, fit_of, measure_fit, predict
from studio.core.train.learner import attach, detach
from studio.core.train.loop import train
from studio.core.train.measure import _measure_blocks, _measured_bytes, measure_bucket, shortened
from studio.core.train.step import random_batch
from studio.core.types import Bucket
from studio.view.progress import fit_line, fit_rows, fit_verdict, prediction, progress_line, reality
from studio.view.terminal import TrainBar, print_fit
from studio.view.words import words

GIB = 2**30
LARGE = Bucket(num_frames=93, height=480, width=832)
SHORT = Bucket(num_frames=49, height=480, width=832)
SIZES = Sizes(
    depth=48, width=4096, num_heads=32, itemsize=2, block_bytes=564_265_984, small_block_bytes=294_000_000,
    state_bytes=160_000_000, smaller_precision="fp8-torchao", grid=GridSpec(),
)  # fmt: skip
TOKENS = 24 * 30 * 52
INPUT = TOKENS * 4096 * 2
ATTENTION = INPUT + TOKENS * 32 * 4


def measured(setup=None, *, allocated=26 * GIB, working=6 * GIB, kept=INPUT, **fields):
    setup = setup or Setup(bucket=LARGE)
    memory = StepBytes(allocated=allocated, working=working, kept=kept)
    known = {"seconds_beyond": 0.4, "seconds_per_block": 0.25, "copy_seconds": 0.02, "sizes": SIZES}
    return Measurement(setup=setup, memory=memory, **{**known, **fields})


def change_of(measurement, capacity):
    change = cheapest_change(measurement, measurement.setup, capacity)
    return None if change is None else str(change)


def test_a_step_is_what_all_steps_share_and_something_for_each_block():
    fit = extrapolate(measured())
    assert fit.seconds == pytest.approx(0.4 + 48 * 0.25)
    assert fit.peak_bytes == 26 * GIB + 6 * GIB + 48 * INPUT + SIZES.state_bytes


def test_swapped_blocks_leave_and_two_slots_stay():
    setup = Setup(bucket=LARGE, num_swapped=24)
    resident, swapped = (extrapolate(measured(), s) for s in (None, setup))
    assert resident.peak_bytes - swapped.peak_bytes == 22 * SIZES.block_bytes
    assert swapped.seconds == resident.seconds, "copies hide behind the blocks that run"
    slow = measured(copy_seconds=0.1)
    forward = 0.26 * 0.25
    assert extrapolate(slow, setup).seconds - resident.seconds == pytest.approx(24 * (0.1 - forward))
    waited = replace(slow, has_waited=True, setup=setup)
    assert extrapolate(waited).seconds == pytest.approx(resident.seconds), "measured on swapped blocks already"


def test_what_was_not_measured_is_in_proportion_to_its_tokens():
    whole, half = (extrapolate(measured(), Setup(bucket=bucket)) for bucket in (LARGE, SHORT))
    fixed = 26 * GIB + SIZES.state_bytes
    assert (half.peak_bytes - fixed) / (whole.peak_bytes - fixed) == pytest.approx(13 / 24)
    assert half.seconds / whole.seconds == pytest.approx(13 / 24)
    double = extrapolate(measured(), Setup(bucket=LARGE, batch_size=2))
    assert double.peak_bytes - fixed == 2 * (whole.peak_bytes - fixed)


def test_without_checkpointing_a_block_keeps_what_was_measured_and_with_it_its_input():
    plain = measured(Setup(bucket=LARGE, is_checkpointed=False), kept=2 * GIB)
    assert extrapolate(plain).peak_bytes == (26 + 6 + 96) * GIB + SIZES.state_bytes
    checkpointed = extrapolate(plain, Setup(bucket=LARGE))
    assert checkpointed.peak_bytes == (26 + 6 + 2) * GIB + 48 * INPUT + SIZES.state_bytes
    assert checkpointed.seconds > extrapolate(plain).seconds


@pytest.mark.parametrize(
    ("setup", "kept", "capacity", "change"),
    [
        (
            Setup(bucket=LARGE, is_checkpointed=False),
            2 * GIB,
            80,
            "gradient_checkpointing to true in config.json (predicted 47.9 of",
        ),
        (
            Setup(bucket=LARGE, keeps_attention=True),
            INPUT + ATTENTION,
            50,
            "gradient_checkpointing_keep_attention to false in config.json (predicted 45.9 of",
        ),
        (Setup(bucket=LARGE), INPUT, 40, "musubi_blocks_to_swap to 17 in config.json (predicted 38.0 of"),
        (
            Setup(bucket=LARGE, is_checkpointed=False),
            2 * GIB,
            40,
            "gradient_checkpointing to true and musubi_blocks_to_swap to",
        ),
        (Setup(bucket=LARGE, batch_size=2), INPUT, 40, "musubi_blocks_to_swap to 17 in config.json"),
        (Setup(bucket=LARGE), INPUT, 18, "video.num_frames to"),
    ],
)  # fmt: skip
def test_the_cheapest_change_is_named_with_its_keys(setup, kept, capacity, change):
    sentence = change_of(measured(setup, kept=kept), capacity * GIB)
    assert sentence.startswith("Set ")
    assert change in sentence
    assert sentence.endswith(f"of {capacity}.0 GiB).")


@pytest.mark.parametrize(
    ("measurement", "keys"),
    [
        (measured(), ("musubi_blocks_to_swap", "base_model_precision", "video.num_frames", "resolution")),
        (
            measured(Setup(bucket=LARGE, batch_size=2), working=12 * GIB, kept=2 * INPUT),
            ("musubi_blocks_to_swap", "train_batch_size", "video.num_frames", "resolution"),
        ),
    ],
)
def test_what_changes_no_result_comes_first_then_a_batch_then_eight_bits_then_a_smaller_video(measurement, keys):
    sentences = [change_of(measurement, quarters * GIB // 4) or "" for quarters in range(200, 8, -1)]
    first = [next(i for i, sentence in enumerate(sentences) if key in sentence) for key in keys]
    assert first == sorted(first)
    assert len(set(first)) == len(first)


def test_swap_and_eight_bits_have_no_part_where_all_is_offloaded():
    offloaded = measured(Setup(bucket=LARGE, is_offloaded=True), allocated=2 * GIB)
    sentence = change_of(offloaded, 16 * GIB)
    assert sentence.startswith("Set video.num_frames to ")
    assert " in multidatabackend.json (predicted" in sentence
    assert "musubi" not in sentence


def test_the_smallest_number_of_blocks_that_fits_is_taken():
    capacity = 40 * GIB
    number = int(change_of(measured(), capacity).split(" to ")[1].split()[0])
    assert does_fit(extrapolate(measured(), Setup(bucket=LARGE, num_swapped=number)).peak_bytes, capacity)
    assert not does_fit(extrapolate(measured(), Setup(bucket=LARGE, num_swapped=number - 1)).peak_bytes, capacity)


def test_where_nothing_helps_nothing_is_promised():
    assert change_of(measured(allocated=200 * GIB), 8 * GIB) is None


def test_after_a_failure_the_change_goes_beyond_what_was_predicted_to_fit():
    predicted = measured()
    capacity = 80 * GIB
    assert does_fit(extrapolate(predicted).peak_bytes, capacity)
    sentence = str(change_after_failure(predicted, predicted.setup, capacity))
    assert "musubi_blocks_to_swap to" in sentence


def test_what_other_programs_took_meanwhile_is_not_there_any_more(monkeypatch):
    for name, value in (("mem_get_info", (10 * GIB, 80 * GIB)), ("memory_reserved", 30 * GIB)):
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 25 * GIB)
    device = torch.device("cuda", 0)
    assert capacity(device) == 40 * GIB
    assert free_bytes(device) == 15 * GIB
    predicted = measured()
    fit = predict([predicted], {(LARGE, 1): 4}, 80 * GIB)
    assert fit.fits
    before, now = (fit.remedy_after_failure(LARGE, 1, size * GIB) for size in (80, 40))
    assert str(now) == change_of(predicted, 40 * GIB)
    assert now.settings[0][2] > before.settings[0][2], "more blocks are swapped"


def test_where_memory_is_not_known_the_first_change_that_takes_less_is_named():
    plain, grid = Setup(bucket=LARGE, is_checkpointed=False, batch_size=4), GridSpec()
    assert str(first_change(plain, grid)) == "Set gradient_checkpointing to true in config.json."
    once = replace(plain, is_checkpointed=True)
    assert str(first_change(once, grid)) == "Set train_batch_size to 2 in config.json."
    assert str(first_change(Setup(bucket=LARGE), grid)) == "Set video.num_frames to 45 in multidatabackend.json."


def test_attention_is_kept_where_there_is_room_for_it():
    large = measured()
    with_it = extrapolate(large, replace(large.setup, keeps_attention=True)).peak_bytes
    assert with_it == extrapolate(large).peak_bytes + 48 * ATTENTION
    assert decide_keep_attention(large, int(with_it * 1.05))
    assert not decide_keep_attention(large, with_it)
    assert not decide_keep_attention(large, None)
    assert not decide_keep_attention(measured(Setup(bucket=LARGE, is_checkpointed=False)), 1000 * GIB)


@pytest.mark.parametrize(
    ("too_large", "keeps", "progress"),
    [
        (None, True, [(0, 2), (1, 2), (2, 3), (3, 3)]),
        (LARGE, False, [(0, 2), (1, 2), (2, 3), (3, 3)]),
        (SHORT, False, [(0, 2), (1, 2), (2, 3), (3, 3), (4, 4)]),
    ],
)
def test_attention_is_kept_only_where_steps_that_keep_it_are_measured_to_fit(
    config, monkeypatch, too_large, keeps, progress
):
    bundle = SimpleNamespace(
        dit=SimpleNamespace(keep_attention=False), device=torch.device("cpu"), grid=GridSpec(),
        prompt_encoder=SimpleNamespace(max_length=16), processes=ALONE,
    )  # fmt: skip
    calls = []

    def measure(dit, _parameters, bucket, **_):
        calls.append((bucket, dit.keep_attention))
        part = 1 if bucket == LARGE else 0.5
        kept = (INPUT + ATTENTION if dit.keep_attention else INPUT) * part
        more = 80 if dit.keep_attention and bucket == too_large else 0
        setup = Setup(bucket=bucket, keeps_attention=dit.keep_attention)
        return measured(setup, working=6 * GIB + more * GIB, kept=kept)

    monkeypatch.setattr(fitting, "measure_bucket", measure)
    monkeypatch.setattr(fitting, "capacity", lambda _: 80 * GIB)
    heard = []
    fit = fitting._finished(
        measure_fit(config, bundle, (), {(SHORT, 1): 1, (LARGE, 1): 1}), lambda *of: heard.append(of)
    )
    assert heard == progress
    assert fit.fits
    assert fit.keeps_attention is bundle.dit.keep_attention is keeps
    assert {m.setup.bucket: m.setup.keeps_attention for m in fit.measurements} == {LARGE: keeps, SHORT: keeps}
    assert calls[:2] == [(LARGE, False), (LARGE, True)], "the largest decides, and is measured as the run will go"
    assert len(calls) == len(progress) - 1


def test_the_worst_bucket_is_named_and_the_pace_is_the_median_of_the_batches():
    batches = {(SHORT, 1): 5, (LARGE, 1): 2}
    fit = predict([measured()], batches, 40 * GIB)
    assert [f.bucket for f in fit.buckets] == [LARGE, SHORT]
    assert fit.worst.bucket == LARGE
    assert not fit.fits
    assert "musubi_blocks_to_swap to" in str(fit.change)
    assert fit.seconds_per_step == fit.buckets[1].seconds
    assert predict([measured()], batches, 80 * GIB).change is None


def test_a_shortened_transformer_gets_its_blocks_back(tiny_bundle):
    dit = tiny_bundle.dit
    blocks, names = dit.blocks, list(dit.state_dict())
    with shortened(dit, 2):
        assert list(dit.blocks) == list(blocks)[:2]
    with pytest.raises(ZeroDivisionError), shortened(dit, 2):
        raise ZeroDivisionError
    assert dit.blocks is blocks
    assert list(dit.state_dict()) == names


def test_what_libraries_take_in_the_first_step_is_no_part_of_a_block():
    guess = StepBytes(allocated=10 * GIB, working=99 * GIB, kept=1 * GIB)
    two_peaks = _measured_bytes(guess, (2, 4), [15 * GIB, 17 * GIB])
    assert two_peaks == StepBytes(allocated=10 * GIB, working=3 * GIB, kept=1 * GIB)
    assert _measured_bytes(guess, (2, 4), [15 * GIB]) == two_peaks
    assert _measured_bytes(guess, (2, 4), []) == guess


@pytest.fixture
def one_thread():
    """So little work is faster without others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def short_bundle(tiny_bundle, one_thread):
    """The tiny checkpoint with two blocks."""
    with shortened(tiny_bundle.dit, 2):
        yield tiny_bundle


@pytest.mark.usefixtures("one_thread")
def test_measuring_leaves_no_gradient_no_mode_and_no_random_number_behind(config, tiny_bundle):
    config = replace(config, lora=replace(config.lora, dropout=0.1))
    parameters = attach(config, tiny_bundle)
    try:
        before, state = [p.detach().clone() for p in parameters], torch.random.get_rng_state()
        bucket = Bucket(num_frames=5, height=64, width=64)
        measurement = measure_bucket(
            tiny_bundle.dit, parameters, bucket, batch_size=2, text_length=16, device=tiny_bundle.device,
            grid=tiny_bundle.grid,
        )  # fmt: skip
        assert torch.equal(torch.random.get_rng_state(), state)
        assert all(p.grad is None for p in parameters)
        assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))
        assert not tiny_bundle.dit.training
    finally:
        detach(tiny_bundle)
    assert measurement.memory is None, "a CPU has no allocator to ask"
    assert measurement.seconds_per_block is not None
    assert extrapolate(measurement).seconds > 0
    assert measurement.sizes.small_block_bytes < measurement.sizes.block_bytes / 2, "fp32 to one byte"


@pytest.fixture
def measured_first(monkeypatch):
    """A run on a CPU is measured as on a GPU, with what the device would say of its memory."""
    monkeypatch.setattr(loop, "is_measured", lambda _: True)
    for module in (fitting, measuring):
        monkeypatch.setattr(module, "capacity", lambda _: 80 * GIB)
    monkeypatch.setattr(measuring, "allocated_bytes", lambda _: 10 * GIB)


def test_a_run_that_is_measured_first_has_the_same_losses(config, short_bundle, report, request, with_optim):
    config = with_optim(replace(config, lora=replace(config.lora, dropout=0.1)), max_train_steps=2)

    def events():
        return list(train(config, RunFolder.create(config.output_dir, config), short_bundle, report))

    def losses(of):
        return [event.loss for event in of if isinstance(event, StepDone)]

    expected = losses(events())
    request.getfixturevalue("measured_first")
    told = events()
    assert losses(told) == expected
    assert len(expected) == 2
    first = [event for event in told if isinstance(event, FitProgress | FitPredicted | StepDone)][:3]
    assert first[:2] == [FitProgress(done=0, total=1), FitProgress(done=1, total=1)]
    assert isinstance(first[2], FitPredicted)
    assert first[2].seconds_per_step > 0
    assert first[2].batch_size == 2


@pytest.mark.usefixtures("measured_first")
def test_a_run_can_be_stopped_while_it_is_measured(config, short_bundle, report):
    config = replace(config, data=replace(config.data, train_batch_size=3))
    run, seen = RunFolder.create(config.output_dir, config), []
    for event in train(config, run, short_bundle, report, should_stop=lambda: FitProgress(done=1, total=2) in seen):
        assert not short_bundle.lock.locked(), "others may work between two sizes"
        seen.append(event)
    assert seen[-2:] == [FitProgress(done=1, total=2), RunStopped(step=0, lora="")]
    assert adapter_names(short_bundle.dit) == ()


def test_a_fit_without_a_run_measures_each_batch_size_and_leaves_no_adapter(config, report, short_bundle, capsys):
    config = replace(config, data=replace(config.data, train_batch_size=3))
    progress = []
    fit = fit_of(config, short_bundle, report, on_progress=lambda *of: progress.append(of))
    assert progress == [(0, 2), (1, 2), (2, 2)]
    assert {(f.batch_size, f.num_batches) for f in fit.buckets} == {(3, 1), (1, 1)}
    assert adapter_names(short_bundle.dit) == ()
    assert not short_bundle.dit.gradient_checkpointing
    print_fit(fit)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["Size", "Clips", "Batch", "s", "a", "step", "GiB"]
    assert shown[-1] == "Memory is measured on GPUs only."


def test_a_model_in_training_is_not_measured(config, report, tiny_bundle):
    attach(config, tiny_bundle)
    try:
        with pytest.raises(JobAlreadyRunning):
            fit_of(config, tiny_bundle, report)
        assert adapter_names(tiny_bundle.dit) != (), "the other run's adapter stays on"
    finally:
        detach(tiny_bundle)


EVENT = FitPredicted(
    worst="93f 480x832", batch_size=1, peak_bytes=44 * GIB, capacity_bytes=80 * GIB, seconds_per_step=12.1, fits=True,
    change=None, keeps_attention=True,
)  # fmt: skip
STARTED = RunStarted(num_steps=9, num_pairs=3, device="cuda", dtype="x", attention="dense", attention_reason="")


@pytest.mark.parametrize("event", [EVENT, FitProgress(done=1, total=2)])
def test_the_prediction_is_an_event_like_any_other(event):
    assert decode_event(encode_event(event, time=1.0)) == (1.0, event)


def test_the_measuring_is_told_while_it_lasts(config, capsys):
    run = RunFolder.create(config.output_dir, config)
    with run.locked():
        for event in (STARTED, FitProgress(done=1, total=3)):
            run.append(event)
        snapshot = run.snapshot()
        assert snapshot.state is RunState.MEASURING
        assert snapshot.state.is_live
        assert progress_line(snapshot, words("en")) == "size 1 of 3"
        assert progress_line(snapshot, words("es")) == "tamaño 1 de 3"
        run.append(EVENT)
        assert run.state() is RunState.RUNNING
    bar = TrainBar()
    for event in (FitProgress(done=0, total=2), FitProgress(done=2, total=3), FitProgress(done=3, total=3), EVENT):
        bar.show(event)
    shown = capsys.readouterr()
    assert "measuring: 100%" in shown.err
    assert shown.out == f"{prediction(EVENT, words('en'))}\n"


def test_what_an_attempt_took_is_not_said_of_the_next(config):
    run = RunFolder.create(config.output_dir, config)
    for event in (STARTED, EVENT, RunStopped(step=1, lora="", peak_bytes=43 * GIB, seconds_per_step=12.3)):
        run.append(event)
    assert run.snapshot().peak_bytes == 43 * GIB
    run.append(STARTED)
    assert (run.snapshot().fit, run.snapshot().peak_bytes) == (None, None)
    run.append(EVENT)
    assert run.snapshot().fit == EVENT
    assert fit_line(run.snapshot(), words("en")) == prediction(EVENT, words("en"))


def test_the_batch_size_is_named_where_it_is_not_one():
    for language, said in (("en", "93f 480x832 with batch size 2,"), ("es", "93f 480x832 con lotes de 2,")):
        w = words(language)
        assert said in prediction(replace(EVENT, batch_size=2), w)
        assert "93f 480x832, " in prediction(EVENT, w)
    two = predict([measured(Setup(bucket=LARGE, batch_size=2))], {(LARGE, 2): 1}, 80 * GIB)
    assert fit_verdict(two, words("en")) == "Fits: 45.9 of 80.0 GiB for 93f 480x832 with batch size 2."


def test_what_steps_took_is_a_whole_sentence():
    assert reality(43 * GIB, 12.3, words("en")) == "In fact, a step took 12.3 s and up to 43.0 GiB."
    assert reality(43 * GIB, None, words("en")) == "In fact, a step took up to 43.0 GiB."
    assert reality(43 * GIB, None, words("es")) == "En realidad, un paso ocupó hasta 43,0 GiB."
    assert reality(None, 12.3, words("en")) == ""


@pytest.mark.parametrize(("language", "number"), [("en", "44.0 of 80.0"), ("es", "44,0 de 80,0")])
def test_what_was_predicted_stands_beside_what_it_took(config, language, number):
    run = RunFolder.create(config.output_dir, config)
    run.append(EVENT)
    w = words(language)
    assert number in fit_line(run.snapshot(), w)
    assert fit_line(run.snapshot(), w).count("44") == 1
    run.append(StepDone(step=1, num_steps=1, loss=1.0, learning_rate=1.0, grad_norm=1.0, seconds=12.3))
    run.append(RunFinished(step=1, seconds=13.0, lora="x", peak_bytes=43 * GIB, seconds_per_step=12.3))
    line = fit_line(run.snapshot(), w)
    assert w.number(43, 1) in line
    assert w.number(12.3, 1) in line


def test_a_fit_is_shown_with_its_verdict_in_both_languages():
    fit = predict([measured()], {(LARGE, 1): 3}, 40 * GIB)
    assert fit_verdict(fit, words("en")) == "Too large: 45.9 of 40.0 GiB for 93f 480x832."
    assert "45,9 de 40,0 GiB" in fit_verdict(fit, words("es"))
    assert fit_rows(fit, words("en"))[1] == ("93f 480x832", "3", "1", "12.4", "45.9")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("is_checkpointed", [True, False])
def test_on_a_gpu_the_peak_is_within_a_tenth_of_what_all_blocks_take(config, cuda_bundle, batch_size, is_checkpointed):
    config = replace(config, model=replace(config.model, gradient_checkpointing=is_checkpointed))
    parameters, dit, device = attach(config, cuda_bundle), cuda_bundle.dit, cuda_bundle.device
    bucket = Bucket(num_frames=33, height=256, width=256)
    try:
        measurement = measure_bucket(
            dit, parameters, bucket, batch_size=batch_size, text_length=64, device=device, grid=cuda_bundle.grid
        )
        latents = cuda_bundle.grid.latent_grid(bucket.num_frames, bucket.height, bucket.width)
        batch = random_batch(dit, latents, text_length=64, device=device, batch_size=batch_size)
        _, peak = _measure_blocks(dit, parameters, batch, len(dit.blocks), device)
    finally:
        detach(cuda_bundle)
    assert extrapolate(measurement).peak_bytes == pytest.approx(peak + measurement.sizes.state_bytes, rel=0.1)
