"""Times and memory of the full-size transformer on this machine, each beside what it is to be compared with.

Its weights are random: speed and memory hardly depend on their values.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence

import torch

from studio.core.errors import DeviceError
from studio.view.terminal import write

PARTS = ("speed", "memory", "fit")


def run_bench(parts: Sequence[str] = PARTS) -> None:
    """Prints the tables of these parts. Raises DeviceError without a CUDA device."""
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
