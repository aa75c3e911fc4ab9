"""Prints how good `assets/tiny` and the demo's LoRA are, measured on start frames that neither was trained on.

python assets/measure_tiny.py                       # the checkpoint: start frame, motion, shape and colour, seconds
python assets/measure_tiny.py --lora LORA           # the effect before and after, and the base's own motions after
python assets/measure_tiny.py --attention sparse    # the same under block-sparse attention; --sparsity sets another
python assets/measure_tiny.py --precision fp8-torchao   # the same with the base model in eight bits; or int8-quanto
python assets/measure_tiny.py --layers              # what the lists of every layer share, and the attention they keep
python assets/measure_tiny.py --plot assets/sparsity.png    # dense and sparse videos of the same seeds, compared
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from matplotlib.figure import Figure

from studio.bench.learn import Verdict, judge, psnr, render
from studio.core.config import BasePrecision, ModelConfig
from studio.core.data.shapes import BASE_MOTIONS, EFFECT
from studio.core.geometry import Grid
from studio.core.model.attention import AttentionChoice
from studio.core.model.load import ModelBundle, load_bundle
from studio.core.model.lora import lora_applied
from studio.view.plots import LIGHT, save_figure

PLOTTED = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.9375, 0.95)


def print_misses(verdicts: Sequence[Verdict]) -> None:
    """Names the videos that do not do what their caption says."""
    for verdict in verdicts:
        if not (verdict.follows and verdict.keeps):
            print(f"  missed: {verdict.caption} (motion {'kept' if verdict.follows else 'lost'}, "
                  f"shape and colour {'kept' if verdict.keeps else 'lost'})")  # fmt: skip


def seconds_of_one_sample(bundle: ModelBundle) -> float:
    """Start frame to decoded frames at the defaults, the second of two."""
    for _ in range(2):
        started = time.perf_counter()
        render(bundle, ("stays still",), 1)
        seconds = time.perf_counter() - started
    return seconds


def print_rates(bundle: ModelBundle, lora: Path | None, count: int) -> None:
    """The table of success rates."""
    print(f"one sample: {seconds_of_one_sample(bundle):.1f} s")
    rows = [("base, its own motions", BASE_MOTIONS, None), (f"base, {EFFECT}", (EFFECT,), None)]
    if lora:
        rows += [(f"with the LoRA, {EFFECT}", (EFFECT,), lora), ("with the LoRA, base motions", BASE_MOTIONS, lora)]
    print(f"{'':<30}{'start frame':>14}{'motion':>10}{'shape, colour':>16}   ({count} held-out pairs)")
    for label, motions, file in rows:
        with lora_applied(bundle.dit, file) if file else nullcontext():
            verdicts = judge(render(bundle, motions, count))
        print_misses(verdicts)
        first, follows, keeps = np.mean([(v.first, v.follows, v.keeps) for v in verdicts], axis=0)
        print(f"{label:<30}{first:>11.1f} dB{follows:>10.0%}{keeps:>16.0%}", flush=True)


def print_layers(bundle: ModelBundle, count: int) -> None:
    """Means over the steps and samples of one rendering, both prompts of the guidance included."""
    with bundle.dit.recorded_attention() as records:
        render(bundle, BASE_MOTIONS, count)
    print(f"{'layer':>5}{'overlap':>10}{'mass':>8}   ({count} held-out pairs)")
    for layer in range(len(bundle.dit.blocks)):
        of_layer = [(record.overlap, record.mass) for record in records if record.layer == layer]
        overlap, mass = np.mean(of_layer, axis=0)
        print(f"{layer:>5}{overlap:>10.0%}{mass:>8.0%}")


def compare(bundle: ModelBundle, count: int) -> list[tuple[float, int, np.ndarray]]:
    """(sparsity, key blocks kept, PSNR of every sparse video against the dense one) for each sparsity `PLOTTED`.

    The first frame is left out: it is the start frame in both. Sparsities that keep equally many blocks give the same
    video, which is rendered once.
    """
    block, size = bundle.attention.block, bundle.defaults
    grid = bundle.grid.token_grid(size.num_frames, size.height, size.width)
    num_blocks = int(np.prod([-(-cells // edge) for cells, edge in zip(_triple(grid), block, strict=True)]))
    bundle.dit.set_attention(replace(bundle.attention, setting="dense"))
    dense = render(bundle, BASE_MOTIONS, count).frames
    rows, by_kept = [], {}
    for sparsity in PLOTTED:
        kept = max(1, int((1 - sparsity) * num_blocks))
        if kept not in by_kept:
            bundle.dit.set_attention(replace(bundle.attention, setting="sparse", sparsity=sparsity))
            sparse = render(bundle, BASE_MOTIONS, count).frames
            by_kept[kept] = np.array([psnr(a[1:], b[1:]) for a, b in zip(sparse, dense, strict=True)])
        rows.append((sparsity, kept, by_kept[kept]))
        print(f"sparsity {sparsity:<7} {kept} of {num_blocks} blocks: {by_kept[kept].mean():.1f} dB", flush=True)
    return rows


def _triple(grid: Grid) -> tuple[int, int, int]:
    return grid.t, grid.h, grid.w


def draw_comparison(rows: Sequence[tuple[float, int, np.ndarray]]) -> Figure:
    """Mean PSNR over the sparsity, with the middle half of the videos around it."""
    figure = Figure(figsize=(6.4, 3.4), dpi=110, layout="constrained", facecolor=LIGHT.paper)
    axes = figure.add_subplot()
    sparsities = [sparsity for sparsity, _, _ in rows]
    low, high = np.array([np.percentile(values, (25, 75)) for _, _, values in rows]).T
    means = [values.mean() for _, _, values in rows]
    axes.fill_between(sparsities, low, high, color=LIGHT.accent, alpha=0.15, linewidth=0, label="middle half")
    axes.plot(sparsities, means, "o-", color=LIGHT.accent, markersize=4, label="mean")
    for index, (sparsity, kept, _) in enumerate(rows):
        if index == 0 or kept != rows[index - 1][1]:
            axes.annotate(f"{kept} kept", (sparsity, means[index]), (0, 8), textcoords="offset points",
                          fontsize=8, color=LIGHT.muted, ha="center")  # fmt: skip
    axes.set_xlabel("sparsity (share of key blocks skipped)", color=LIGHT.muted)
    axes.set_ylabel("PSNR, sparse against dense (dB)", color=LIGHT.muted)
    axes.grid(color=LIGHT.line, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


def main() -> None:
    """Reads the command line and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="a checkpoint folder")
    parser.add_argument("--lora", type=Path, help="the demo's LoRA")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--attention", choices=("dense", "sparse"), default="dense")
    parser.add_argument("--precision", choices=get_args(BasePrecision), default="no_change")
    parser.add_argument("--sparsity", type=float, help="another than the checkpoint's")
    parser.add_argument("--layers", action="store_true", help="print the table of layers instead")
    parser.add_argument("--plot", type=Path, help="draw PSNR over sparsity into this file instead")
    arguments = parser.parse_args()
    is_sparse = arguments.attention == "sparse" or arguments.layers
    attention = "sparse" if is_sparse else "dense"
    bundle = load_bundle(ModelConfig(source=arguments.model, attention=attention, base_precision=arguments.precision))
    choice: AttentionChoice = bundle.attention
    if arguments.sparsity is not None:
        choice = replace(choice, sparsity=arguments.sparsity)
        bundle.dit.set_attention(choice)
    size = bundle.defaults
    used = replace(bundle, attention=choice).attention_of(size.num_frames, size.height, size.width)
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    if arguments.plot:
        save_figure(draw_comparison(compare(bundle, arguments.count)), arguments.plot)
        return
    print(f"{used.kind} attention ({used.reason})")
    if arguments.layers:
        print_layers(bundle, arguments.count)
    else:
        print_rates(bundle, arguments.lora, arguments.count)


if __name__ == "__main__":
    main()
