"""Times and memory on this machine, each beside what it is to be compared with: of the full-size transformer on a
CUDA device, and of the check of a thousand clips. `kills` times nothing: it kills a run 200 times.

The transformer's weights are random: speed and memory hardly depend on their values.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence

from studio.bench.check import compare_check
from studio.core.errors import DeviceError
from studio.view.terminal import write

FULL_SIZE = ("speed", "memory", "fit")
PARTS = ("check", "kills", *FULL_SIZE)


def run_bench(parts: Sequence[str] = FULL_SIZE) -> None:
    """Prints the tables of these parts. Raises DeviceError when the full size is asked for without a CUDA device."""
    if "check" in parts:
        compare_check()
    if "kills" in parts:
        from studio.bench.kills import bench_kills

        bench_kills()
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
