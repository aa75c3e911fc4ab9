"""The fit prediction beside what whole steps then take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from studio.bench.paths import SIZE, TEXT_TOKENS, lora_in_training, time_training, use_fast_path
from studio.bench.speed import use_sparse_path
from studio.core.config import BasePrecision
from studio.core.geometry import GridSpec
from studio.core.model.dit import LongCatVideoTransformer3DModel
from studio.core.model.dit_block import DitBlock
from studio.core.model.precision import quantise_blocks
from studio.core.model.swap import BlockSwap
from studio.core.train.estimate import Measurement, extrapolate
from studio.core.train.fit import measure_bucket
from studio.core.types import Bucket
from studio.view.terminal import write


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """A way to train."""

    size: Bucket
    batch_size: int = 1
    is_sparse: bool = False
    is_checkpointed: bool = True
    keep_attention: bool = False
    num_swapped: int = 0
    precision: BasePrecision = "no_change"

    def __str__(self) -> str:
        words = [str(self.size), f"batch {self.batch_size}" if self.batch_size > 1 else ""]
        words += ["sparse" if self.is_sparse else "", "" if self.is_checkpointed else "not checkpointed"]
        words += ["attention kept" if self.keep_attention else ""]
        words += [f"{self.num_swapped} swapped" if self.num_swapped else "", self.precision.replace("no_change", "")]
        return ", ".join(word for word in words if word)


def _size(num_frames: int, height: int, width: int) -> Bucket:
    return Bucket(num_frames=num_frames, height=height, width=width)


SETTINGS = (
    Setting(size=SIZE, keep_attention=True),
    Setting(size=_size(49, 480, 832)),
    Setting(size=_size(61, 512, 512), keep_attention=True),
    Setting(size=_size(93, 256, 448), keep_attention=True, batch_size=2),
    Setting(size=_size(17, 256, 448), is_checkpointed=False),
    Setting(size=_size(93, 448, 896), is_sparse=True, keep_attention=True),
    Setting(size=_size(77, 320, 576), num_swapped=40),
    Setting(size=SIZE, is_sparse=True, precision="fp8-torchao"),
    Setting(size=_size(93, 320, 576), num_swapped=40, precision="fp8-torchao"),
)


def compare_predictions(dit: LongCatVideoTransformer3DModel) -> None:
    """A table: each prediction from a few blocks of its own setting, and from the first setting's by formula alone."""
    write("\n| setting | GiB predicted | measured | off | s predicted | measured | off | from row 1: GiB, s |")
    write("|---|---|---|---|---|---|---|---|")
    first: Measurement | None = None
    device, precision = dit.device, "no_change"
    for setting in SETTINGS:
        if setting.precision != precision:
            precision = setting.precision
            quantise_blocks(dit, precision, device)
            nn.Module.to(dit, device)
        blocks = cast(list[DitBlock], dit.blocks)
        swap = BlockSwap(blocks[-setting.num_swapped :], device, torch.device("cpu")) if setting.num_swapped else None
        first = _compare(dit, setting, first, device)
        if swap is not None:
            swap.remove()
        torch.cuda.empty_cache()


def _compare(
    dit: LongCatVideoTransformer3DModel, setting: Setting, first: Measurement | None, device: torch.device
) -> Measurement:
    """Writes a row; gives the measurement of the first."""
    prepare = use_sparse_path if setting.is_sparse else use_fast_path
    checkpointed = setting.is_checkpointed
    with lora_in_training(
        dit, prepare, keep_attention=setting.keep_attention, is_checkpointed=checkpointed
    ) as parameters:
        measurement = measure_bucket(
            dit, parameters, setting.size, batch_size=setting.batch_size, text_length=TEXT_TOKENS, device=device,
            grid=GridSpec(), base_precision=setting.precision,
        )  # fmt: skip
        torch.cuda.empty_cache()
        timing = time_training(dit, parameters, setting.size, batch_size=setting.batch_size)
    predicted = extrapolate(measurement)
    cells = [str(setting)]
    for guess, true in ((predicted.peak_bytes, timing.peak_bytes / 2**30), (predicted.seconds, timing.seconds)):
        if guess is None:
            raise RuntimeError("nothing was predicted on a CUDA device")
        value = guess / 2**30 if guess is predicted.peak_bytes else guess
        cells += [f"{value:.2f}", f"{true:.2f}", f"{100 * (value / true - 1):+.1f} %"]
    if first is not None and not setting.is_sparse:
        by_formula = extrapolate(first, measurement.setup)
        cells.append(f"{(by_formula.peak_bytes or 0) / 2**30:.1f}, {by_formula.seconds or 0:.2f}")
    else:
        cells.append("")
    write(f"| {' | '.join(cells)} |")
    return first or measurement
