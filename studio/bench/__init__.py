"""Times and proofs on this machine: of the full-size transformer on a CUDA device (`speed`, `memory`, `fit`) and on
several (`gpus`), of the check of a thousand clips (`check`), of a run that is killed 200 times (`kills`), of what a
LoRA learns (`learn`), of the app under many watchers (`watchers`) and under restarts (`restarts`).

The full-size transformer's weights are random: speed and memory hardly depend on their values.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from studio.bench.check import compare_check
from studio.core.errors import DeviceError
from studio.view.terminal import write

FULL_SIZE = ("speed", "memory", "fit")
REPORTED = ("kills", "watchers", "restarts")
"""Parts that tell what they have when they are asked to stop."""
PARTS = ("check", "learn", "gpus", *REPORTED, *FULL_SIZE)


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchSettings:
    """How much of each part."""

    times: int | None = None
    """Of `kills`, 200 unless it says otherwise, and of `restarts`, 20."""
    seeds: int = 3
    """Of `learn`, as `jobs`: LoRAs that are trained at a time."""
    jobs: int = 1
    clients: int = 100
    """Of `watchers`, as `minutes`."""
    minutes: float = 10


def run_bench(
    parts: Sequence[str] = FULL_SIZE,
    settings: BenchSettings | None = None,
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Prints the tables of these parts; `should_stop` ends those that are `REPORTED`.

    Raises DeviceError when the full size is asked for without a CUDA device.
    """
    chosen = settings or BenchSettings()
    if "check" in parts:
        compare_check()
    if "kills" in parts:
        from studio.bench.kills import bench_kills

        bench_kills(chosen.times or 200, should_stop)
    if "learn" in parts:
        from studio.bench.learn import bench_learn

        bench_learn(chosen.seeds, chosen.jobs)
    if "gpus" in parts:
        from studio.bench.gpus import bench_gpus

        bench_gpus()
    if "watchers" in parts:
        from studio.bench.watchers import bench_watchers

        bench_watchers(chosen.clients, chosen.minutes, should_stop)
    if "restarts" in parts:
        from studio.bench.restarts import bench_restarts

        bench_restarts(chosen.times or 20, should_stop)
    if set(parts) & set(FULL_SIZE):
        _bench_full_size(parts)


def _bench_full_size(parts: Sequence[str]) -> None:
    import torch

    if not torch.cuda.is_available():
        raise DeviceError(
            "The benchmark times the full-size transformer, and there is no CUDA device here.",
            "For the tiny checkpoint on a CPU, run the demo.",
        )
    from studio.bench.fit import compare_predictions
    from studio.bench.memory import measure_memory
    from studio.bench.paths import REPEATS, SIZE, TEXT_TOKENS, random_transformer
    from studio.bench.speed import compare_paths, time_eight_bits, time_forwards, time_steps

    device = torch.device("cuda")
    write(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Python {platform.python_version()}")
    write(f"Full size, {SIZE}, one conditioning latent, {TEXT_TOKENS} text tokens, batch 1, bf16, medians of {REPEATS}")
    if "speed" in parts:
        compare_paths(device)
        dit = random_transformer(device)
        plain = time_forwards(dit), time_steps(dit)
        time_eight_bits(dit, "fp8-torchao", *plain)
        del dit
        torch.cuda.empty_cache()
        time_eight_bits(random_transformer(device), "int8-quanto", *plain)
    if "memory" in parts:
        torch.cuda.empty_cache()
        measure_memory(random_transformer(device))
    if "fit" in parts:
        torch.cuda.empty_cache()
        compare_predictions(random_transformer(device))
