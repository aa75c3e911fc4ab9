"""What a run will take, as rows of text: the page, the notebook and the command show the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from studio.view.progress import pace
from studio.view.words import Words

if TYPE_CHECKING:
    # Loads torch, and a command answers at once.
    from studio.core.train.preflight import DiskUse, Preflight


def plan_rows(plan: Preflight, w: Words) -> list[tuple[str, str]]:
    """(name, value): clips, steps, time, disk, and what is chosen where the configuration leaves it open."""
    clips = w("plan.clips_held", n=plan.num_pairs, held=plan.num_held_out) if plan.num_held_out else str(plan.num_pairs)
    steps = w("plan.steps_passes", steps=plan.num_steps, passes=w.number(plan.num_passes, 1))
    model = plan.source if plan.is_here else w("plan.model_away", model=plan.source)
    rows = [
        (w("plan.clips"), clips),
        (w("plan.steps"), steps),
        (w("plan.time"), _time(plan, w)),
        (w("plan.disk"), _disk(plan.disk, w)),
        (w("plan.model"), model),
    ]
    if plan.device and plan.dtype:
        precision = plan.dtype if plan.base_precision == "no_change" else f"{plan.dtype}, {plan.base_precision}"
        rows.append((w("plan.device"), f"{plan.device.upper()}, {precision}"))
    if plan.attention:
        rows.append((w("plan.attention"), w(f"chip.{plan.attention.kind}")))
    if plan.num_processes > 1:
        rows.append((w("gpus.label"), _gpus(plan, w)))
    if plan.num_short_sizes:
        rows.append((w("gpus.idle"), w.count("gpus.plan_short", plan.num_short_sizes)))
    rows.append((w("plan.backward"), w(f"plan.attention_{plan.attention_kept}")))
    rows.append((w("plan.result"), _result(plan, w)))
    return rows


def disk_rows(disk: DiskUse, w: Words) -> list[tuple[str, str]]:
    """(name, size) of what a run writes; empty where the model's shapes are not known."""
    if disk.total is None or disk.cache is None or disk.checkpoint is None:
        return []
    checkpoints = w("plan.disk_times", n=disk.num_checkpoints, size=size(disk.checkpoint, w))
    return [
        (w("plan.disk_cache"), size(disk.cache, w) if disk.cache else w("plan.disk_cached")),
        (w("plan.disk_checkpoints"), checkpoints if disk.num_checkpoints > 1 else size(disk.checkpoint, w)),
        (w("plan.disk_lora"), size(disk.lora or 0, w)),
        (w("plan.disk_samples"), size(disk.samples or 0, w)),
    ]


def size(num_bytes: int, w: Words) -> str:
    """`3.4 MB`, or `1.2 GB` from a thousand megabytes on."""
    if num_bytes >= 1e9:
        return f"{w.number(num_bytes / 1e9, 1)} GB"
    return f"{w.number(num_bytes / 1e6, 1)} MB"


def _time(plan: Preflight, w: Words) -> str:
    if plan.seconds is None or plan.seconds_per_step is None:
        return w("plan.time_unknown")
    told = {"time": w.duration(plan.seconds), "pace": pace(plan.seconds_per_step, w)}
    if plan.num_processes > 1 and plan.pace_from == "fit":
        return w("gpus.time_fit", **told)
    return w(f"plan.time_{plan.pace_from}", **told)


def _gpus(plan: Preflight, w: Words) -> str:
    """How the processes share a step, and the base."""
    shared = w("gpus.plan_sharded" if plan.is_sharded else "gpus.plan_whole")
    told = {"n": plan.num_processes, "each": plan.batch_size, "clips": plan.effective_batch}
    return f"{w('gpus.plan', **told)} {shared}"


def _disk(disk: DiskUse, w: Words) -> str:
    if disk.total is None:
        return w("plan.disk_unknown", free=size(disk.free, w))
    return w("plan.disk_of", total=size(disk.total, w), free=size(disk.free, w))


def _result(plan: Preflight, w: Words) -> str:
    if plan.num_parameters is None or plan.disk.lora is None:
        return w("plan.lora", rank=plan.rank)
    return w("plan.lora_size", rank=plan.rank, size=size(plan.disk.lora // 2, w))
