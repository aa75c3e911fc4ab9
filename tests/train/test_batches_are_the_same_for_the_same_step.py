"""Which pairs a step sees: one bucket, everything once an epoch, and nothing but seed and step decide."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from studio.core.config import DataConfig, DatasetConfig, LoraSettings, ModelConfig, OptimConfig, RunConfig
from studio.core.config import ValidationConfig as Validation
from studio.core.data.dataset import BatchSampler, training_pairs, validation_pairs
from studio.core.types import Bucket, DatasetReport, Pair, StartFrame

WIDE, TALL = Bucket(num_frames=9, height=64, width=128), Bucket(num_frames=9, height=128, width=64)


def pair(name, bucket=WIDE, dataset_id="clips", captions=("a", "b", "c")):
    return Pair(
        dataset_id=dataset_id,
        name=name,
        clip=None,
        clip_path=Path(name),
        start_frame=StartFrame(path=Path(f"{name}.png"), height=64, width=64),
        captions=captions,
        bucket=bucket,
        issues=(),
    )


PAIRS = tuple(pair(f"w{i}") for i in range(5)) + tuple(pair(f"t{i}", TALL) for i in range(3))


@pytest.fixture
def data():
    def build(repeats=0, batch_size=2):
        clips = DatasetConfig(id="clips", kind="video", directory=Path("clips"), repeats=repeats)
        held = DatasetConfig(id="held", kind="video", directory=Path("held"))
        return DataConfig(datasets=(clips, held), train_batch_size=batch_size)

    return build


def epoch(sampler, number=0):
    first = number * sampler.steps_per_epoch + 1
    return [sampler.batch_for_step(first + i) for i in range(sampler.steps_per_epoch)]


def test_batches_never_mix_buckets_and_an_epoch_shows_everything(data):
    sampler = BatchSampler(PAIRS, data(repeats=1), seed=3)
    assert sampler.steps_per_epoch == 5 + 3
    batches = epoch(sampler)
    assert all(len({item.pair.bucket for item in batch}) == 1 for batch in batches)
    assert Counter(item.pair.name for batch in batches for item in batch) == {p.name: 2 for p in PAIRS}


def test_a_step_is_the_same_whatever_came_before(data):
    sampler = BatchSampler(PAIRS, data(), seed=3)
    forward = [sampler.batch_for_step(step) for step in range(1, 30)]
    fresh = BatchSampler(PAIRS, data(), seed=3)
    assert [fresh.batch_for_step(step) for step in reversed(range(1, 30))] == forward[::-1]
    assert forward != [BatchSampler(PAIRS, data(), seed=4).batch_for_step(step) for step in range(1, 30)]


def test_orders_and_captions_change_from_epoch_to_epoch(data):
    sampler = BatchSampler(PAIRS, data(), seed=3)
    orders = {tuple(item.pair.name for batch in epoch(sampler, n) for item in batch) for n in range(4)}
    assert len(orders) == 4
    drawn = {item.caption for n in range(8) for batch in epoch(sampler, n) for item in batch}
    assert drawn == {"a", "b", "c"}


def test_validation_pairs_are_not_trained_on_unless_there_are_no_others():
    held = (pair("h0", dataset_id="held"), pair("h1", dataset_id="held"))
    config = RunConfig(
        model=ModelConfig(), data=DataConfig(datasets=()), lora=LoraSettings(), optim=OptimConfig(),
        validation=Validation(eval_dataset_id="held"), output_dir=Path("runs"),
    )  # fmt: skip
    both = DatasetReport(pairs=PAIRS + held, issues=())
    assert training_pairs(both, config) == PAIRS
    assert validation_pairs(both, config) == held[:1]
    only = DatasetReport(pairs=held, issues=())
    assert training_pairs(only, config) == held
    seen = DatasetConfig(id="held", kind="video", directory=Path("held"), is_eval=True)
    another = replace(config, data=DataConfig(datasets=(seen,)), validation=Validation(eval_dataset_id="other"))
    assert training_pairs(both, another) == PAIRS, "held out, though samples are rendered from another"
    without = replace(config, validation=Validation(num_pairs=2))
    assert validation_pairs(both, without) == PAIRS[:2]


@pytest.mark.parametrize(
    ("using_datasets", "eval_dataset_id", "is_rendered"),
    [(True, "clips", True), (True, None, True), (False, "clips", True), (False, None, False)],
)
def test_samples_are_left_out_only_when_neither_datasets_nor_one_of_them_is_asked_for(
    using_datasets, eval_dataset_id, is_rendered
):
    config = RunConfig(
        model=ModelConfig(), data=DataConfig(datasets=()), lora=LoraSettings(), optim=OptimConfig(),
        validation=Validation(using_datasets=using_datasets, eval_dataset_id=eval_dataset_id), output_dir=Path("runs"),
    )  # fmt: skip
    assert bool(validation_pairs(DatasetReport(pairs=PAIRS, issues=()), config)) is is_rendered
