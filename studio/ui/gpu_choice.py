"""How many GPUs a run or a sample gets, and whether a run splits its base over them; nothing where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from studio.view.words import Words


def build_gpu_choice(num_gpus: int, w: Words) -> list[Any]:
    """Lays the choice of a run out, where it is called: a number of GPUs, and whether the base is split over them."""
    with gr.Column(visible=num_gpus > 1, min_width=1):
        count = _radio(range(1, max(1, num_gpus) + 1), w, info=w("gpus.help"), elem_id="gpus")
        shard = gr.Checkbox(label=w("gpus.shard"), info=w("gpus.shard_help"), visible=False, elem_id="gpus-shard")
    count.change(
        lambda chosen: gr.update(visible=(chosen or 1) > 1), count, shard,
        queue=False, show_progress="hidden", api_visibility="private",
    )  # fmt: skip
    return [count, shard]


ONE: tuple[int, bool] = (1, False)
"""What the choice shows first."""


def on_gpus(count: int | None = 1, is_sharded: bool | None = False) -> dict[str, Any]:
    """The fields of a RunConfig that the choice sets."""
    count = count or 1
    return {"num_processes": count, "is_sharded": bool(is_sharded) and count > 1}


def build_sample_gpus(num_gpus: int, w: Words) -> gr.Radio:
    """Lays the choice of a sample out, where it is called."""
    choices = sample_gpus(num_gpus)
    is_choice = len(choices) > 1
    return _radio(choices, w, info=w("gpus.sample_help"), visible=is_choice, elem_id="sample-gpus")


def sample_gpus(num_gpus: int) -> list[int]:
    """1, 2, 4 and so on, up to what is here: other numbers do not divide the attention heads."""
    return [2**power for power in range(max(1, num_gpus).bit_length())]


def offered_gpus(asked: int | None, num_gpus: int) -> int:
    """The number of the choice that is nearest below what was asked for."""
    return max(count for count in sample_gpus(num_gpus) if count <= max(1, asked or 1))


def _radio(choices: Sequence[int], w: Words, **more: Any) -> gr.Radio:
    return gr.Radio(choices=list(choices), value=1, label=w("gpus.label"), **more)
