"""Which pairs are trained on, and which of them make up the batch of a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from studio.core.config import DataConfig, RunConfig
from studio.core.data.bucket import pairs_to_train
from studio.core.data.seeds import seeded
from studio.core.types import Bucket, DatasetReport, Pair


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingItem:
    """One place in a batch: a pair, and the caption that it has this time."""

    pair: Pair
    caption: str


def training_pairs(report: DatasetReport, config: RunConfig) -> tuple[Pair, ...]:
    """The ready pairs, without those of validation datasets unless there is no other."""
    return pairs_to_train(report.pairs, config.data, config.validation.eval_dataset_id)


def validation_pairs(report: DatasetReport, config: RunConfig) -> tuple[Pair, ...]:
    """The pairs whose start frames are rendered while training: of the validation dataset, or of what is trained on,
    or none when there is neither `eval_dataset_id` nor `using_datasets`.
    """
    validation = config.validation
    if validation.eval_dataset_id is not None:
        pool = tuple(p for p in report.pairs if p.is_ready and p.dataset_id == validation.eval_dataset_id)
    else:
        pool = training_pairs(report, config) if validation.using_datasets else ()
    return tuple(pair for pair in pool if pair.start_frame is not None)[: validation.num_pairs]


class BatchSampler:
    """Batches of one bucket each; an epoch shows every pair 1 + `repeats` times, in a new order.

    The batch of a step follows from the seed and the step alone, so that a resumed run goes on exactly. What does
    not fill a batch makes a smaller one: no pair is left out. With `num_processes` a batch has `train_batch_size`
    clips for each of them.
    """

    def __init__(self, pairs: Sequence[Pair], data: DataConfig, seed: int, num_processes: int = 1) -> None:
        self.batch_size = data.train_batch_size * num_processes
        self.num_processes = num_processes
        self.seed = seed
        self._by_bucket: dict[Bucket, list[Pair]] = {}
        for pair in pairs:
            if pair.bucket is not None:
                copies = [pair] * (1 + data.by_id[pair.dataset_id].repeats)
                self._by_bucket.setdefault(pair.bucket, []).extend(copies)

    @property
    def num_clips(self) -> Mapping[Bucket, int]:
        """How many an epoch has of each bucket, repeats counted."""
        return {bucket: len(pairs) for bucket, pairs in self._by_bucket.items()}

    @property
    def steps_per_epoch(self) -> int:
        """Batches that show everything once."""
        return sum(-(-len(pairs) // self.batch_size) for pairs in self._by_bucket.values())

    @property
    def batches(self) -> Mapping[tuple[Bucket, int], int]:
        """How many batches an epoch has of each bucket and number of clips, as one process sees them."""
        counts: Counter[tuple[Bucket, int]] = Counter()
        for bucket, pairs in self._by_bucket.items():
            full, rest = divmod(len(pairs), self.batch_size)
            for clips, number in ((self.batch_size, full), (rest, 1 if rest else 0)):
                counts[bucket, -(-clips // self.num_processes)] += number
        return {of: number for of, number in counts.items() if number}

    def batch_for_step(self, step: int) -> tuple[TrainingItem, ...]:
        """The items of `step`, which counts from 1."""
        epoch, index = divmod(step - 1, self.steps_per_epoch)
        generator = seeded(self.seed, "order", epoch)
        batches = [
            [pairs[i] for i in chunk.tolist()]
            for pairs in self._by_bucket.values()
            for chunk in torch.randperm(len(pairs), generator=generator).split(self.batch_size)
        ]
        batch = batches[int(torch.randperm(len(batches), generator=generator)[index])]
        return tuple(
            TrainingItem(pair=pair, caption=self._caption(pair, step, position)) for position, pair in enumerate(batch)
        )

    def _caption(self, pair: Pair, step: int, position: int) -> str:
        generator = seeded(self.seed, "caption", step, position)
        return pair.captions[int(torch.randint(len(pair.captions), (), generator=generator))]
