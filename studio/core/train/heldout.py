"""The loss on clips that are not trained on, in numbers that can be compared from step to step and with the base."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from statistics import mean

import torch

from studio.core.config import RunConfig
from studio.core.data.dataset import training_pairs
from studio.core.data.encode import PairEncoder
from studio.core.data.seeds import seeded
from studio.core.events import HeldOutLoss
from studio.core.model.load import ModelBundle
from studio.core.model.lora import lora_applied
from studio.core.train.learner import load_batch
from studio.core.train.step import clip_losses
from studio.core.types import DatasetReport, Pair

BANDS = 4
"""Equal parts of the noise levels from 0 to 1; each is looked at in its middle."""

MAX_CLIPS = 16
"""Of more held-out clips the first are looked at: each takes `BANDS` forwards."""

Weights = Callable[[], AbstractContextManager[None]]


def held_out_pairs(report: DatasetReport, config: RunConfig) -> tuple[Pair, ...]:
    """The ready pairs of validation datasets that are not trained on, `MAX_CLIPS` at most."""
    if config.validation.eval_loss_disabled:
        return ()
    ids = {dataset.id for dataset in config.data.datasets if dataset.is_eval} | {config.validation.eval_dataset_id}
    trained = set(training_pairs(report, config))
    return tuple(p for p in report.pairs if p.is_ready and p.dataset_id in ids and p not in trained)[:MAX_CLIPS]


class HeldOut:
    """Measures the loss on `pairs`; the base model's is measured once."""

    def __init__(self, pairs: Sequence[Pair], config: RunConfig, bundle: ModelBundle, encoder: PairEncoder) -> None:
        self.pairs = tuple(pairs)
        self._seed = config.seed
        self._bundle = bundle
        self._encoder = encoder
        self._base: list[tuple[float, ...]] = []
        """Of each clip, by band."""

    def measure(
        self, step: int, weights: Weights | None, memory: Weights, should_stop: Callable[[], bool]
    ) -> Iterator[HeldOutLoss]:
        """One event with the loss under the weights that the adapter has inside `weights()`, or None for a fresh one,
        which changes nothing; no event after a stop.

        `bundle.lock` is held for one clip at a time, inside `memory()`.
        """
        if not self.pairs:
            return
        started = time.perf_counter()
        losses = []
        for index, pair in enumerate(self.pairs):
            if should_stop():
                return
            if index == len(self._base):
                self._base.append(self._bands(pair, lambda: lora_applied(self._bundle.dit, None), memory))
            losses.append(self._base[index] if weights is None else self._bands(pair, weights, memory))
        bands, base = (tuple(mean(band) for band in zip(*of, strict=True)) for of in (losses, self._base))
        yield HeldOutLoss(
            step=step,
            loss=mean(bands),
            bands=bands,
            base_loss=mean(base),
            base_bands=base,
            num_clips=len(losses),
            seconds=time.perf_counter() - started,
        )

    def _bands(self, pair: Pair, weights: Weights, memory: Weights) -> tuple[float, ...]:
        """The losses of a clip, by band; noise depends on seed, clip and band alone."""
        device = self._bundle.device
        batch = load_batch(self._bundle, self._encoder, [pair], pair.captions[:1])
        losses = []
        with self._bundle.lock, memory(), weights(), torch.no_grad():
            for band in range(BANDS):
                generator = seeded(self._seed, "held out", pair.dataset_id, pair.name, band)
                noise = torch.randn(batch.latents.shape, generator=generator).to(device)
                sigma = torch.full((1,), (band + 0.5) / BANDS, device=device)
                losses.append(clip_losses(self._bundle.dit, batch, sigma, noise).item())
        return tuple(losses)
