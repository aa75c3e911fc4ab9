"""How many GPUs a run gets, and whether they share the base; nothing where there are fewer than two."""

from __future__ import annotations

from typing import Any

import gradio as gr

from studio.view.words import Words


def build_gpu_choice(num_gpus: int, w: Words) -> list[Any]:
    """Lays the choice out, where it is called: a number of GPUs, and whether the base is split over them."""
    with gr.Column(visible=num_gpus > 1, min_width=1):
        count = gr.Radio(
            choices=list(range(1, max(1, num_gpus) + 1)), value=1, label=w("gpus.label"), info=w("gpus.help"),
            elem_id="gpus",
        )  # fmt: skip
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
