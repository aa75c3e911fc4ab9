"""What a LoRA learns: two effects that the tiny checkpoint does not know, rendered from held-out start frames before
and after training, over several seeds; and what it learns from start frames that belong to other clips.

Each LoRA is trained by the product, from a project folder, with the settings of the demo. A seed draws the clips, the
LoRA's first weights and the noise; the held-out scenes and their noise are always the same.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import diffusers
import numpy as np
import peft
import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from studio.bench.drawn import write_pair
from studio.core.assets import TINY, asset_path
from studio.core.config import ModelConfig
from studio.core.data.check import check_project
from studio.core.data.shapes import (
    BASE_MOTIONS,
    COLORS,
    EFFECTS,
    MOTIONS,
    SHAPES,
    Scenes,
    draw_background,
    draw_clips,
    random_scenes,
    to_uint8,
    track,
)
from studio.core.model.load import ModelBundle, load_bundle, resolve_device
from studio.core.model.lora import lora_applied
from studio.core.model.vae import decode_latents, encode_video, frames_to_video, video_to_frames
from studio.core.runlog import RunState
from studio.core.sample.denoise import denoise
from studio.core.train.job import run_inline
from studio.view.terminal import write

HELD_OUT_SEED = 777
"""No training seed: those of the checkpoint start at 2026 and are multiplied by a million, those of the demo and of
this bench are `DRAWN_SEED` and a few more."""
DRAWN_SEED = 5000
SIZE, NUM_FRAMES = 128, 17
NUM_EFFECT, NUM_VALIDATION = 24, 4
"""Clips of the effect, beside one of each base motion, and held-out ones: as in the demo's dataset."""
NUM_HELD_OUT = 32
OTHERS = "start frames of other clips"
BATCH = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Videos:
    """What was rendered of held-out pairs, uint8."""

    scenes: Scenes
    starts: np.ndarray
    """[N, H, W, 3]."""
    frames: np.ndarray
    """[N, T, H, W, 3]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What one video shows."""

    caption: str
    first: float
    """Decoded first frame against the start frame, dB. The model is given that frame: only the autoencoder counts."""
    later: float
    """All other frames against the start frame, where nothing of the true clip moves, dB."""
    motion: str
    """Of `MOTIONS`, which the tracked path follows; empty: none."""
    follows: bool
    """The motion is the caption's."""
    keeps: bool
    """Shape and colour are the caption's, over the clip and at its end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A LoRA to train and judge."""

    effect: str
    seed: int
    is_shuffled: bool = False
    """Each training clip has the start frame of another one."""


@torch.inference_mode()
def render(bundle: ModelBundle, motions: Sequence[str], count: int) -> Videos:
    """Samples `count` held-out pairs at the checkpoint's defaults; the same pairs and noise in every call."""
    defaults = bundle.defaults
    generator = torch.Generator().manual_seed(HELD_OUT_SEED)
    scenes = random_scenes(count, height=defaults.height, width=defaults.width, generator=generator, motions=motions)
    starts = to_uint8(draw_clips(scenes, 2)[:, :, :1])[:, 0]
    grid = bundle.grid.latent_grid(defaults.num_frames, defaults.height, defaults.width)
    captions, videos = scenes.captions(), []
    for first in range(0, count, BATCH):
        part = range(first, min(first + BATCH, count))
        held = torch.cat([encode_video(bundle.vae, frames_to_video(starts[i : i + 1]), generator) for i in part])
        noise = torch.randn(len(part), held.shape[1], grid.t, grid.h, grid.w, generator=generator)
        *_, latents = denoise(
            bundle.dit, bundle.scheduler, noise=noise.to(bundle.device), held=held,
            prompt=bundle.prompt_encoder.encode([captions[i] for i in part]),
            negative=bundle.prompt_encoder.encode([""] * len(part)),
            num_steps=defaults.num_inference_steps, guidance_scale=defaults.guidance_scale,
        )  # fmt: skip
        videos += [video_to_frames(decode_latents(bundle.vae, one[None])[0]) for one in latents]
    return Videos(scenes=scenes, starts=starts, frames=np.stack(videos))


def judge(videos: Videos) -> list[Verdict]:
    """Tracks the shape in every video."""
    scenes, names, verdicts = videos.scenes, list(COLORS), []
    plates = to_uint8(draw_background(scenes).unsqueeze(2))[:, 0]
    truths = to_uint8(draw_clips(scenes, videos.frames.shape[1]))
    for i, (frames, caption) in enumerate(zip(videos.frames, scenes.captions(), strict=True)):
        seen, wanted = track(frames, plates[i]), MOTIONS[scenes.motion[i]]
        still = (truths[i] == truths[i][:1]).all((0, 3))
        motion = next((motion for motion in MOTIONS if seen.follows(motion)), "")
        verdicts.append(
            Verdict(
                caption=caption,
                first=psnr(frames[0], videos.starts[i]),
                later=psnr(frames[1:, still], videos.starts[i][still]),
                motion=motion,
                follows=motion == wanted,
                keeps=seen.keeps(names[scenes.color[i]], SHAPES[scenes.shape[i]]),
            )
        )
    return verdicts


def psnr(found: np.ndarray, expected: np.ndarray) -> float:
    """Of uint8 pictures, dB."""
    return float(10 * np.log10(255**2 / np.square(found.astype(np.float64) - expected).mean()))


def bench_learn(seeds: int, jobs: int, *, num_steps: int | None = None, count: int = NUM_HELD_OUT) -> None:
    """Prints a row for each LoRA as it is done, `jobs` at a time, then the means over the seeds.

    `num_steps` and `count` make it short, for a trial of the bench itself. Raises RuntimeError when a run fails.
    """
    started = time.monotonic()
    cores = os.cpu_count() or 1
    threads = max(1, cores // jobs)
    trials = [Trial(effect=effect, seed=0, is_shuffled=shuffled) for shuffled in (False, True) for effect in EFFECTS]
    trials += [Trial(effect=effect, seed=seed) for seed in range(1, seeds) for effect in EFFECTS]
    untrained: list[tuple[str, ...]] = [*((effect,) for effect in EFFECTS), BASE_MOTIONS]
    write(
        f"{_device_name()}, {platform.machine()}, {cores} cores, {jobs} processes of {threads} threads, Python "
        f"{platform.python_version()}, torch {torch.__version__}, peft {peft.__version__}, diffusers "
        f"{diffusers.__version__}"
    )
    write(
        f"Trained on {NUM_EFFECT} clips of the effect and {len(BASE_MOTIONS)} of known motions, with the demo's "
        f"settings; {count} held-out start frames a row"
    )
    write("\n| asked for | trained on | seed | first frame | later frames | motion | shape, colour | both |")
    write("|---|---|---|---|---|---|---|---|")
    rates: dict[tuple[str, bool], list[float]] = {}
    seen: list[str] = []
    spawn = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(prefix="longcat-studio-bench-") as folder,
        ProcessPoolExecutor(jobs, spawn, _begin, (threads, folder)) as pool,
    ):
        before = {pool.submit(_judge_base, motions, count): motions for motions in untrained}
        trained = {pool.submit(_train_and_judge, trial, Path(folder), num_steps, count): trial for trial in trials}
        for done in as_completed((*before, *trained)):
            if done.exception() is not None:
                pool.shutdown(wait=False, cancel_futures=True)
            verdicts = done.result()
            if done in trained:
                trial = trained[done]
                rates.setdefault((trial.effect, trial.is_shuffled), []).append(_success(verdicts))
                data = f"its clips, {OTHERS}" if trial.is_shuffled else "its clips"
                _write_row(trial.effect, data, str(trial.seed), verdicts)
            else:
                motions = before[done]
                _write_row(motions[0] if len(motions) == 1 else "its own motions", "nothing: the base", "", verdicts)
                if motions is BASE_MOTIONS:
                    seen = [verdict.motion for verdict in verdicts]
    write("")
    for effect in EFFECTS:
        write(f"{effect}: seen in {seen.count(effect)} of the base's {len(seen)} videos of its own motions")
    for (effect, is_shuffled), found in rates.items():
        data = f"{OTHERS}, {len(found)} seed" if is_shuffled else f"{len(found)} seeds"
        write(f"{effect}, {data}: {fmean(found):.0%} of the videos move, and keep shape and colour, as asked")
    write(f"{time.monotonic() - started:.0f} s")


def _begin(threads: int, folder: str) -> None:
    """In each process: its threads, no bars of the libraries between our rows, and a folder for temporary files of its
    own. There lies the lock by which one run at a time has a GPU; several of this small model have room.
    """
    tempfile.tempdir = tempfile.mkdtemp(dir=folder)
    torch.set_num_threads(threads)
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def _write_row(asked: str, data: str, seed: str, verdicts: Sequence[Verdict]) -> None:
    first, later = (fmean(values) for values in zip(*((v.first, v.later) for v in verdicts), strict=True))
    follows, keeps = (fmean(values) for values in zip(*((v.follows, v.keeps) for v in verdicts), strict=True))
    write(
        f"| {asked} | {data} | {seed} | {first:.1f} dB | {later:.1f} dB | {follows:.0%} | {keeps:.0%} | "
        f"{_success(verdicts):.0%} |"
    )


def _success(verdicts: Sequence[Verdict]) -> float:
    return fmean(verdict.follows and verdict.keeps for verdict in verdicts)


def _device_name() -> str:
    device = resolve_device("auto")
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _judge_base(motions: Sequence[str], count: int) -> list[Verdict]:
    return judge(render(load_bundle(ModelConfig(source=TINY)), motions, count))


def _train_and_judge(trial: Trial, folder: Path, num_steps: int | None, count: int) -> list[Verdict]:
    """Draws a project, trains on it, and renders with the LoRA. Raises RuntimeError."""
    project = folder / f"{trial.effect}-{trial.seed}{'-shuffled' if trial.is_shuffled else ''}"
    draw_project(project, trial)
    opened, report = check_project(project)
    run = opened.run
    config = replace(
        run,
        optim=replace(run.optim, max_train_steps=num_steps or run.optim.max_train_steps),
        # What it learns is judged here, on more start frames.
        validation=replace(run.validation, num_pairs=0),
        output_dir=project / "runs",
        seed=trial.seed,
    )
    bundle = load_bundle(config.model)
    done = run_inline(config, lambda: bundle, report=report).snapshot()
    if done.state is not RunState.FINISHED or done.lora is None:
        said = f"{done.failure.message} {done.failure.remedy}" if done.failure else done.state.value
        raise RuntimeError(f"The run for {trial.effect}, seed {trial.seed}, did not finish: {said}")
    with lora_applied(bundle.dit, done.lora):
        return judge(render(bundle, (trial.effect,), count))


def draw_project(project: Path, trial: Trial) -> None:
    """A new folder like the demo's dataset, with its settings, drawn from the trial's seed."""
    project.mkdir()
    for name in ("config.json", "multidatabackend.json"):
        shutil.copy(asset_path("shapes") / name, project)
    generator = torch.Generator().manual_seed(DRAWN_SEED + trial.seed)
    counts = {trial.effect: NUM_EFFECT, **dict.fromkeys(BASE_MOTIONS, 1)}
    drawn = [_draw((motion,), number, generator) for motion, number in counts.items()]
    clips, captions = np.concatenate([frames for frames, _ in drawn]), [c for _, some in drawn for c in some]
    starts = np.roll(clips[:, 0], 1, axis=0) if trial.is_shuffled else clips[:, 0]
    _write(project / "train", clips, captions, starts)
    clips, captions = _draw((trial.effect,), NUM_VALIDATION, generator)
    _write(project / "val", clips, captions, clips[:, 0])


def _draw(motions: tuple[str, ...], count: int, generator: torch.Generator) -> tuple[np.ndarray, list[str]]:
    """Clips, uint8 [B, T, H, W, 3], and their captions."""
    scenes = random_scenes(count, height=SIZE, width=SIZE, generator=generator, motions=motions)
    return to_uint8(draw_clips(scenes, NUM_FRAMES)), scenes.captions()


def _write(part: Path, clips: np.ndarray, captions: Sequence[str], starts: np.ndarray) -> None:
    """Clips with captions, and start frames in a folder of their own, as the demo's configuration names them."""
    (part / "clips").mkdir(parents=True)
    (part / "start_frames").mkdir()
    for index, (frames, caption, start) in enumerate(zip(clips, captions, starts, strict=True)):
        clip = part / "clips" / f"{index:02d}.mp4"
        write_pair(clip, frames, caption, start)
        clip.with_suffix(".png").rename(part / "start_frames" / f"{index:02d}.png")
