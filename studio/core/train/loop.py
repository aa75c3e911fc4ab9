"""The training loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from statistics import median

from studio.core.config import RunConfig
from studio.core.config_json import with_absolute_paths
from studio.core.data.dataset import BatchSampler, TrainingItem, training_pairs, validation_pairs
from studio.core.data.encode import PairEncoder
from studio.core.errors import DatasetError
from studio.core.events import (
    CacheProgress,
    FitPredicted,
    FitProgress,
    RunFinished,
    RunStarted,
    RunStopped,
    TrainEvent,
)
from studio.core.model.attention import AttentionUsed
from studio.core.model.load import ModelBundle
from studio.core.model.memory import memory_errors
from studio.core.model.processes import ALONE, Processes
from studio.core.model.sharding import is_sharded
from studio.core.runlog import RunFolder
from studio.core.train.attempt import Attempt
from studio.core.train.checkpoint import newest_checkpoint
from studio.core.train.distributed import notices_of, require_one_run
from studio.core.train.fit import Fit, largest_first, measure_fit, remedy_for_step
from studio.core.train.heldout import HeldOut, held_out_pairs
from studio.core.train.learner import Learner, make_encoders
from studio.core.train.requests import Request, is_asked
from studio.core.types import Bucket, DatasetReport, Pair

logger = logging.getLogger(__name__)


def train(
    config: RunConfig,
    folder: RunFolder,
    bundle: ModelBundle,
    report: DatasetReport,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    resume: bool = False,
    processes: Processes = ALONE,
) -> Generator[TrainEvent, None, None]:
    """Trains a LoRA on the ready pairs of `report` and says what happens, as it happens; nothing is written to the
    log of the run, that is up to whoever listens.

    `bundle.lock` is held for each step, sample and encoding, never between two events, so that someone else may
    sample in between. Requests in the folder are obeyed between two steps. In the end, or when the generator is
    closed, the bundle is as it was. `resume` goes on from the folder's newest whole checkpoint, or from the start when
    there is none.

    Of several `processes` all run this side by side, with the same events; the first one alone writes the folder, and
    what it is asked for counts.

    Raises:
        ConfigError: the processes were not given the same.
        DatasetError: no pair is ready.
        ProcessLost: another process has ended.
        OutOfMemory: the device has too little memory; says the cheapest change that fits.
        StudioError: the loss is not finite, a file cannot be read any more, or the settings do not fit the checkpoint.
        OSError: the folder cannot be written.
    """
    started = time.perf_counter()
    config = with_absolute_paths(config)
    pairs = training_pairs(report, config)
    if not pairs:
        raise DatasetError("No clip is ready to train on.", "Check the dataset, and mend what it lists.")

    def stopping() -> bool:
        return processes.agree(should_stop() or is_asked(folder, Request.STOP))

    sampler = BatchSampler(pairs, config.data, config.seed, config.num_processes)
    num_steps = count_steps(config, sampler)
    used = attention_of_run(bundle.attention_of, pairs)
    checkpoint, passed_over = newest_checkpoint(folder.path / "checkpoints") if resume else (None, ())
    step = checkpoint.step if checkpoint else 0
    require_one_run(config, pairs, step, processes)
    samples, held_out = validation_pairs(report, config), held_out_pairs(report, config)
    yield RunStarted(
        num_steps=num_steps,
        num_pairs=len(pairs),
        device=str(bundle.device),
        dtype=str(bundle.dtype).removeprefix("torch."),
        attention=used.kind,
        attention_reason=used.reason,
        attention_sparsity=used.sparsity,
        attention_block=used.block,
        notices=(*bundle.notices, *passed_over, *_notices(config), *notices_of(config, processes)),
        from_step=step,
        num_held_out=len(held_out),
    )
    encoder = PairEncoder(config.data, make_encoders(bundle), config.output_dir / "cache")
    to_encode = tuple(dict.fromkeys((*pairs, *held_out)))
    for done, total in encoder.fill(to_encode, rank=processes.rank, count=processes.count):
        yield CacheProgress(done=done, total=total)
        if stopping():
            yield RunStopped(step=step, lora="")
            return
    if config.optim.caption_dropout:
        encoder.text("")

    largest, clips = largest_first(sampler.batches)[0]

    def memory(when: str, bucket: Bucket = largest, batch_size: int = clips) -> AbstractContextManager[None]:
        said = f"The device ran out of memory {when}, for {bucket} with batch size {batch_size}."
        return memory_errors(said, lambda: remedy_for_step(config, bundle, fit, bucket, batch_size))

    fit: Fit | None = None
    seconds: list[float] = []
    with bundle.lock, memory("before the first step"):
        learner = Learner(config, bundle, encoder, num_steps, processes)
    try:
        if is_measured(bundle):
            measuring = measure_fit(config, bundle, learner.parameters, sampler.batches)
            while fit is None:
                with bundle.lock, memory("before the first step"):
                    told = _next_measured(measuring)
                if isinstance(told, Fit):
                    fit = told
                    yield _fit_event(fit)
                else:
                    yield told
                if stopping():
                    yield RunStopped(step=step, lora="")
                    return
        with bundle.lock, memory("before the first step"):
            if checkpoint:
                learner.restore(checkpoint)
            elif config.lora.init_from:
                learner.begin_from(config.lora.init_from)
        attempt = Attempt(
            config=config, folder=folder, bundle=bundle, learner=learner,
            samples=samples, on_demand=tuple(pair for pair in pairs if pair.start_frame)[:1],
            held_out=HeldOut(held_out, config, bundle, encoder),
            memory=lambda: memory("while the held-out loss was measured", batch_size=1),
            should_stop=stopping, step=step, saved=step, processes=processes,
        )  # fmt: skip
        if step == 0:
            yield from attempt.measure()
        while step < num_steps:
            yield from attempt.obey()
            if stopping():
                break
            step += 1
            batches = batches_for_step(sampler, step, config.optim.gradient_accumulation_steps)
            loaded = learner.load(step, batches)
            first = batches[0][0].pair.bucket or largest
            with bundle.lock, memory(f"in step {step}", first, len(loaded[0].latents)):
                done = learner.learn(step, batches, loaded)
            attempt.step = step
            seconds.append(done.seconds)
            yield done
            yield from attempt.after_step()
        yield from attempt.save()
        if step < num_steps:
            lora = attempt.leave()
            yield RunStopped(step=step, lora=lora, peak_bytes=learner.peak_bytes, seconds_per_step=_median(seconds))
            return
        lora = attempt.leave()
        yield from attempt.measure()
        yield from attempt.sample(samples)
        yield RunFinished(
            step=step,
            seconds=time.perf_counter() - started,
            lora=lora,
            peak_bytes=learner.peak_bytes,
            seconds_per_step=_median(seconds),
        )
    finally:
        with bundle.lock:
            learner.close()


def count_steps(config: RunConfig, sampler: BatchSampler) -> int:
    """`max_train_steps`, or as many as the epochs have."""
    optim = config.optim
    batches = optim.num_train_epochs * sampler.steps_per_epoch
    return optim.max_train_steps or -(-batches // optim.gradient_accumulation_steps)


def batches_for_step(sampler: BatchSampler, step: int, num_batches: int) -> tuple[tuple[TrainingItem, ...], ...]:
    """The batches of an optimiser step, which counts from 1: the next `num_batches` of the sampler."""
    return tuple(sampler.batch_for_step(number + 1) for number in range((step - 1) * num_batches, step * num_batches))


def _notices(config: RunConfig) -> Iterator[str]:
    """What the settings amount to, where it is not plain to see."""
    optim, size = config.optim, config.data.train_batch_size * config.num_processes
    if optim.gradient_accumulation_steps > 1:
        number = optim.gradient_accumulation_steps
        yield f"A step learns from {number} batches of up to {size}: an effective batch of {number * size} clips."
    if optim.use_ema:
        yield f"Samples, held-out loss and LoRA are the moving average of the weights (decay {optim.ema_decay:g})."
    if config.lora.init_from:
        yield (
            f"Training begins from {config.lora.init_from.name}: rank {config.lora.rank}, "
            f"alpha {config.lora.resolved_alpha:g}."
        )


def attention_of_run(attention_of: Callable[[int, int, int], AttentionUsed], pairs: Sequence[Pair]) -> AttentionUsed:
    """The attention that all sizes get, or `mixed` with what each kind is for; `attention_of` as in a bundle."""
    sizes = sorted({pair.bucket for pair in pairs if pair.bucket}, key=lambda b: b.num_frames * b.height * b.width)
    used = {size: attention_of(size.num_frames, size.height, size.width) for size in sizes}
    kinds = {of_size.kind: of_size for of_size in used.values()}
    largest = used[sizes[-1]]
    if len(kinds) == 1:
        return largest
    parts = [
        f"{kind} for {', '.join(str(size) for size in sizes if used[size].kind == kind)} ({of_kind.reason})"
        for kind, of_kind in sorted(kinds.items())
    ]
    return replace(kinds["sparse"], kind="mixed", reason="; ".join(parts))


def is_measured(bundle: ModelBundle) -> bool:
    """True where a run is measured before its first step: on a GPU, whose memory is known, and that holds the model."""
    return bundle.device.type == "cuda" and not is_sharded(bundle.dit)


def _next_measured(measuring: Generator[tuple[int, int], None, Fit]) -> FitProgress | Fit:
    """How far the measuring is after one size more, or the fit."""
    try:
        done, total = next(measuring)
    except StopIteration as end:
        return end.value
    return FitProgress(done=done, total=total)


def _fit_event(fit: Fit) -> FitPredicted:
    """The fit as an event; a device with memory to ask for was measured."""
    worst = fit.worst
    assert worst.peak_bytes is not None
    assert fit.capacity_bytes is not None
    logger.info(
        "fit worst=%s batch=%d peak_bytes=%d capacity_bytes=%d seconds_per_step=%s keeps_attention=%s change=%s",
        worst.bucket, worst.batch_size, worst.peak_bytes, fit.capacity_bytes, fit.seconds_per_step,
        fit.keeps_attention, fit.change,
    )  # fmt: skip
    return FitPredicted(
        worst=str(worst.bucket),
        batch_size=worst.batch_size,
        peak_bytes=worst.peak_bytes,
        capacity_bytes=fit.capacity_bytes,
        seconds_per_step=fit.seconds_per_step,
        fits=fit.fits,
        change=None if fit.change is None else str(fit.change),
        keeps_attention=fit.keeps_attention,
        settings=() if fit.change is None else fit.change.settings,
    )


def _median(seconds: list[float]) -> float | None:
    return median(seconds) if seconds else None
