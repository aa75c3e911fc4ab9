"""Small runs on the tiny checkpoint."""

import hashlib
import time
from dataclasses import replace

import pytest

from studio.core.config import (
    DataConfig,
    DatasetConfig,
    LoraSettings,
    ModelConfig,
    OptimConfig,
    RunConfig,
    ValidationConfig,
)
from studio.core.data.check import check_dataset
from studio.core.model.load import load_bundle
from studio.core.train.job import run_inline

SECONDS = 60


@pytest.fixture
def wait_for():
    """wait_for(condition): returns once the condition holds."""

    def wait(condition):
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, "waited too long"
            time.sleep(0.02)

    return wait


@pytest.fixture
def data_of():
    """data_of(folder, size=64, num_frames=9, batch_size=2): the DataConfig of a drawn dataset."""

    def build(folder, size=64, num_frames=9, batch_size=2):
        clips = DatasetConfig(
            id="clips",
            kind="video",
            directory=folder / "clips",
            conditioning_ids=("start_frames",),
            resolution=size,
            resolution_type="pixel",
            num_frames=num_frames,
        )
        frames = DatasetConfig(
            id="start_frames", kind="conditioning", directory=folder / "start_frames", caption_strategy=None
        )
        return DataConfig(datasets=(clips, frames), train_batch_size=batch_size)

    return build


@pytest.fixture
def config(shapes_dataset, data_of, tmp_path, tmp_path_factory):
    """Four steps without samples; all runs of a session share their latents."""
    cache = tmp_path_factory.getbasetemp() / "latents"
    data = data_of(shapes_dataset, num_frames=5)
    data = replace(data, datasets=tuple(replace(dataset, cache_dir=cache) for dataset in data.datasets))
    return RunConfig(
        model=ModelConfig(source="tiny", device="cpu", gradient_checkpointing=False),
        data=data,
        lora=LoraSettings(rank=4),
        optim=OptimConfig(max_train_steps=4, learning_rate=1e-3, checkpoint_step_interval=0),
        validation=ValidationConfig(
            num_pairs=0, step_interval=0, resolution=(64, 64), num_frames=5, num_inference_steps=1
        ),
        output_dir=tmp_path / "runs",
        seed=7,
    )


@pytest.fixture
def report(config):
    return check_dataset(config.data)


@pytest.fixture
def run(tiny_bundle):
    """run(config, **arguments of run_inline): the folder of a run on the tiny checkpoint."""
    return lambda config, **arguments: run_inline(config, lambda: tiny_bundle, **arguments)


@pytest.fixture(scope="session")
def cuda_bundle():
    """The tiny checkpoint on a GPU."""
    return load_bundle(ModelConfig(source="tiny", device="cuda"))


@pytest.fixture
def with_optim():
    """with_optim(config, **fields): the configuration with other optimiser settings."""
    return lambda config, **fields: replace(config, optim=replace(config.optim, **fields))


@pytest.fixture
def with_validation():
    """with_validation(config, **fields): the configuration with other validation settings."""
    return lambda config, **fields: replace(config, validation=replace(config.validation, **fields))


@pytest.fixture
def weights_hash():
    """weights_hash(module): sha256 over every tensor of its state."""

    def compute(module):
        digest = hashlib.sha256()
        for name, tensor in module.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    return compute
