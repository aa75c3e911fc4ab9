"""What the lists of the form of the room Sample offer, and its fields for a request that is there already."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import gradio as gr

from studio.core.data.pair import pair_files
from studio.core.data.scan import scan_folder
from studio.core.runlog import list_runs
from studio.core.sample.request import SampleRequest
from studio.core.sample.video import write_video
from studio.core.simpletuner import read_project
from studio.core.train.checkpoint_files import LORA, list_checkpoints
from studio.ui.gpu_choice import offered_gpus
from studio.ui.train_tab import lora_choices
from studio.ui.workshop import Workshop
from studio.view.words import Words

NO_LORA = ""
MOST_LORAS = 3
"""At once."""
MOST_PAIRS = 200
"""Start frames of a dataset in the list."""


def lora_files(workshop: Workshop, w: Words) -> dict[str, Path]:
    """LoRAs by the name that the list shows: of the newest runs and of their checkpoints, and those of files."""
    found = dict(lora_choices(workshop))
    for run in list_runs(workshop.output_dir)[:20]:
        for checkpoint in reversed(list_checkpoints(run.path / "checkpoints")):
            step = checkpoint.name.removeprefix("step-").lstrip("0")
            if (checkpoint / LORA).is_file():
                found[f"{run.name} · {w('train.sample_step', step=step)}"] = checkpoint / LORA
    return found | {file.name: file for file in workshop.desk().kept_loras()}


def start_frames(workshop: Workshop) -> tuple[str, list[tuple[str, Path, str]]]:
    """`dataset` or `demo`, and (name, start frame, caption) of its validation clips, or of all."""
    opened = workshop.opened.get(workshop.latest or "")
    if opened is not None:
        wanted = opened.project.run.validation.eval_dataset_id
        ready = [pair for pair in opened.report.pairs if pair.is_ready and pair.start_frame is not None]
        pairs = [pair for pair in ready if pair.dataset_id == wanted] or ready
        return "dataset", [
            (pair.name, pair.start_frame.path, pair.captions[0] if pair.captions else "")
            for pair in pairs[:MOST_PAIRS]
            if pair.start_frame is not None
        ]
    run = read_project(workshop.settings.demo).run
    data = run.data
    clips = data.by_id.get(run.validation.eval_dataset_id or "") or next(d for d in data.datasets if d.kind == "video")
    folders = {name: scan_folder(data.by_id[name].directory) for name in clips.conditioning_ids}
    scan = scan_folder(clips.directory)
    found = pair_files(clips, scan, folders or {clips.id: scan})
    return "demo", [
        (pair.name, pair.start_frame, pair.captions[0] if pair.captions else "") for pair in found if pair.start_frame
    ]


def fields_of(workshop: Workshop, request: SampleRequest, w: Words, gpus: int = 1) -> list[Any]:
    """Updates of both groups, of all inputs and of the further rows of LoRAs; of `gpus` as many as are here."""
    is_long = request.num_segments > 1
    mode = "clip" if request.clip is not None else "long" if is_long else "picture"
    if request.clip is None and request.start_frame is None and not is_long:
        mode = "text"
    files = lora_files(workshop, w)
    names = {path.resolve(): name for name, path in files.items()}
    there = [lora for lora in request.loras if lora.path.resolve() in names]
    chosen = [(names[lora.path.resolve()], lora.strength) for lora in there[:MOST_LORAS]]
    left_out = [lora.path.name for lora in request.loras if lora not in there[:MOST_LORAS]]
    if left_out:
        gr.Warning(w("sample.lora_gone", names=", ".join(left_out), most=MOST_LORAS))
    choices = [(w("sample.lora_none"), NO_LORA), *((name, name) for name in files)]
    rows = chosen + [(NO_LORA, 1.0)] * (MOST_LORAS - len(chosen))
    is_sparse = request.attention == "sparse"
    return [
        gr.update(visible=mode in ("picture", "long")),
        gr.update(visible=mode in ("clip", "long")),
        mode,
        request.start_frame,
        gr.update(value=_shown_clip(workshop, request), visible=mode == "clip"),
        None if request.clip is None else (request.clip, request.clip_fps),
        request.prompt,
        request.num_segments,
        "\n".join(request.later_prompts),
        "nothing",
        gr.update(visible=False),
        request.negative_prompt,
        request.num_frames,
        request.num_inference_steps,
        request.height,
        request.width,
        request.guidance_scale,
        request.seed,
        "distilled" if request.schedule == "distilled" else "standard",
        request.refinement,
        request.attention or "auto",
        gr.update(value=None if request.sparsity is None else 100 * request.sparsity, visible=is_sparse),
        offered_gpus(gpus, workshop.num_gpus),
        *[part for name, strength in rows for part in (gr.update(choices=choices, value=name), strength)],
        *[gr.update(visible=at < len(chosen)) for at in range(MOST_LORAS - 1)],
    ]


def _shown_clip(workshop: Workshop, request: SampleRequest) -> str | None:
    """A video of the clip that a request goes on from, to be looked at."""
    if request.clip is None:
        return None
    file = workshop.folder / "clips" / f"{zlib.crc32(request.clip.data):08x}.mp4"
    write_video(file, request.clip, request.clip_fps or 15.0, {})
    return str(file)
