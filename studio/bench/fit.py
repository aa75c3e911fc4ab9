"""The fit prediction beside what whole steps then take."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from studio.bench.paths import REPEATS, SIZE, TEXT_TOKENS, lora_in_training, time_training, use_fast_path
from studio.bench.speed import use_sparse_path
from studio.core.geometry import GridSpec
from studio.core.model.dit import LongCatVideoTransformer3DModel
from studio.core.model.dit_block import DitBlock
from studio.core.model.precision import quantise_blocks
from studio.core.model.swap import BlockSwap
from studio.core.train.estimate import Measurement, Setup, extrapolate
from studio.core.train.measure import measure_bucket
from studio.core.types import Bucket
from studio.view.terminal import write


def _setup(num_frames: int, height: int, width: int, **settings: Any) -> Setup:
    return Setup(bucket=Bucket(num_frames=num_frames, height=height, width=width), **settings)


SETTINGS = (
    (Setup(bucket=SIZE, keeps_attention=True), "dense"),
    (_setup(49, 480, 832), "dense"),
    (_setup(61, 512, 512, keeps_attention=True), "dense"),
    (_setup(93, 256, 448, keeps_attention=True, batch_size=2), "dense"),
    (_setup(17, 256, 448, is_checkpointed=False), "dense"),
    (_setup(93, 448, 896, keeps_attention=True), "sparse"),
    (_setup(77, 320, 576, num_swapped=40), "dense"),
    (Setup(bucket=SIZE, base_precision="fp8-torchao"), "sparse"),
    (_setup(93, 320, 576, num_swapped=40, base_precision="fp8-torchao"), "dense"),
)
"""Ways to train, each with its attention."""


def compare_predictions(dit: LongCatVideoTransformer3DModel) -> None:
    """A table: each prediction from a few blocks of its own setting, and from the first setting's by formula alone."""
    write("\n| setting | GiB predicted | measured | off | s predicted | measured | off | from row 1: GiB, s |")
    write("|---|---|---|---|---|---|---|---|")
    first: Measurement | None = None
    device, precision = dit.device, SETTINGS[0][0].base_precision
    for setup, attention in SETTINGS:
        if setup.base_precision != precision:
            precision = setup.base_precision
            quantise_blocks(dit, precision, device)
            nn.Module.to(dit, device)
        blocks = cast(list[DitBlock], dit.blocks)
        swap = BlockSwap(blocks[-setup.num_swapped :], device, torch.device("cpu")) if setup.num_swapped else None
        first = _compare(dit, setup, attention, first, device)
        if swap is not None:
            swap.remove()
        torch.cuda.empty_cache()


def _compare(
    dit: LongCatVideoTransformer3DModel,
    setup: Setup,
    attention: str,
    first: Measurement | None,
    device: torch.device,
) -> Measurement:
    """Writes a row; gives the measurement of the first."""
    prepare = use_sparse_path if attention == "sparse" else use_fast_path
    with lora_in_training(
        dit, prepare, keep_attention=setup.keeps_attention, is_checkpointed=setup.is_checkpointed
    ) as parameters:
        measurement = measure_bucket(
            dit, parameters, setup.bucket, batch_size=setup.batch_size, text_length=TEXT_TOKENS, device=device,
            grid=GridSpec(), base_precision=setup.base_precision,
        )  # fmt: skip
        torch.cuda.empty_cache()
        timing = time_training(dit, parameters, setup.bucket, batch_size=setup.batch_size, repeats=REPEATS)
    predicted = extrapolate(measurement)
    cells = [_describe(setup, attention)]
    for guess, true in ((predicted.peak_bytes, timing.peak_bytes / 2**30), (predicted.seconds, timing.seconds)):
        if guess is None:
            raise RuntimeError("nothing was predicted on a CUDA device")
        value = guess / 2**30 if guess is predicted.peak_bytes else guess
        cells += [f"{value:.2f}", f"{true:.2f}", f"{100 * (value / true - 1):+.1f} %"]
    if first is not None and attention == "dense":
        by_formula = extrapolate(first, measurement.setup)
        cells.append(f"{(by_formula.peak_bytes or 0) / 2**30:.1f}, {by_formula.seconds or 0:.2f}")
    else:
        cells.append("")
    write(f"| {' | '.join(cells)} |")
    return first or measurement


def _describe(setup: Setup, attention: str) -> str:
    words = [str(setup.bucket), attention, f"batch {setup.batch_size}" if setup.batch_size > 1 else ""]
    words += ["" if setup.is_checkpointed else "not checkpointed", "attention kept" if setup.keeps_attention else ""]
    words += [f"{setup.num_swapped} swapped" if setup.num_swapped else "", setup.base_precision]
    return ", ".join(word for word in words if word not in ("", "no_change"))
