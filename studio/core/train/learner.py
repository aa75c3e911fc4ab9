"""The LoRA under training: its parameters, its optimiser, and one step of learning."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.optimization import get_scheduler
from torch import nn

from studio.core.config import RunConfig
from studio.core.config_json import run_config_from_json, run_config_to_json
from studio.core.data.cache import fingerprint
from studio.core.data.dataset import TrainingItem
from studio.core.data.encode import Encoders, PairEncoder
from studio.core.data.seeds import seeded
from studio.core.errors import ConfigError, JobAlreadyRunning, StudioError
from studio.core.events import StepDone
from studio.core.model.load import ModelBundle
from studio.core.model.lora import TRAINING, adapter_names, add_lora, lora_state, remove_lora, restore_lora
from studio.core.model.memory import NOTHING_HELPS, VAE_BYTES, free_bytes, memory_errors, swap_for
from studio.core.model.vae import encode_video, frames_to_video
from studio.core.train.checkpoint import Checkpoint, save_checkpoint
from studio.core.train.step import Batch, collate, training_loss

WEIGHT_DECAY = 0.01
"""torch's default for AdamW; SimpleTuner's too."""

_MAY_CHANGE = (
    "output_dir", "validation", "model.device", "model.gradient_checkpointing", "model.keep_attention",
    "model.blocks_to_swap", "model.block_swap_device", "model.group_offload", "model.vae_tiling", "optim.checkpoint",
)  # fmt: skip
"""Parts of a configuration that may differ when a run is resumed: they change no loss."""
_LENGTH = ("optim.max_train_steps", "optim.num_train_epochs")
"""These may differ too, unless the learning rate falls towards the end."""


class Learner:
    """A fresh adapter on the bundle's transformer, and AdamW over nothing else.

    Whoever calls a method holds `bundle.lock`; `close` leaves the transformer as it was.

    Raises:
        JobAlreadyRunning: an adapter is in training on this transformer already.
    """

    def __init__(self, config: RunConfig, bundle: ModelBundle, encoder: PairEncoder, num_steps: int) -> None:
        self._config = config
        self._bundle = bundle
        self._encoder = encoder
        self._num_steps = num_steps
        # Only its formula is used, so that the rate depends on the step alone and a resumed run needs no more state.
        self._schedule = get_scheduler(
            config.optim.lr_scheduler,
            torch.optim.SGD([torch.zeros(1)], lr=1.0),
            num_warmup_steps=config.optim.lr_warmup_steps,
            num_training_steps=num_steps + 1,
        ).lr_lambdas[0]
        self.peak_bytes: int | None = None
        """The most memory that a step took; None on a CPU."""
        self.parameters = attach(config, bundle)
        try:
            self._optimizer = torch.optim.AdamW(
                self.parameters, lr=config.optim.learning_rate, weight_decay=WEIGHT_DECAY
            )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Takes the adapter off."""
        detach(self._bundle)

    def learn(self, step: int, items: tuple[TrainingItem, ...]) -> StepDone:
        """Takes one optimiser step on `items`.

        Raises:
            StudioError: the loss or the gradient is not finite; nothing was changed.
        """
        started = time.perf_counter()
        is_cuda = self._bundle.device.type == "cuda"
        if is_cuda:
            torch.cuda.reset_peak_memory_stats(self._bundle.device)
        seed, dit = self._config.seed, self._bundle.dit
        batch = self._batch(items)
        rate = self._config.optim.learning_rate * self._schedule(step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        generators = [seeded(seed, "noise", step, index) for index in range(len(items))]
        dit.train()
        try:
            with torch.random.fork_rng(devices=[self._bundle.device] if is_cuda else []):
                torch.manual_seed(seeded(seed, "dropout", step).initial_seed())
                loss = training_loss(dit, batch, shift=self._bundle.scheduler.config["shift"], generators=generators)
                loss.backward()
        finally:
            dit.eval()
        grad_norm = torch.nn.utils.clip_grad_norm_(self.parameters, self._config.optim.max_grad_norm or math.inf)
        loss_value, norm_value = loss.item(), grad_norm.item()
        if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
            self._optimizer.zero_grad()
            raise _diverged(step, items, loss_value)
        self._optimizer.step()
        self._optimizer.zero_grad()
        if is_cuda:
            self.peak_bytes = max(self.peak_bytes or 0, torch.cuda.max_memory_allocated(self._bundle.device))
        return StepDone(
            step=step,
            num_steps=self._num_steps,
            loss=loss_value,
            learning_rate=rate,
            grad_norm=norm_value,
            seconds=time.perf_counter() - started,
        )

    def save(self, folder: Path, step: int) -> Path:
        """Writes a checkpoint below `folder`. Raises OSError."""
        return save_checkpoint(
            folder, step, lora=lora_state(self._bundle.dit), optimizer=self._optimizer, config=self._config
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes back to a checkpoint.

        Raises:
            ConfigError: it was written under other settings, which are named.
        """
        is_constant = self._config.optim.lr_scheduler.startswith("constant")
        may_change = _MAY_CHANGE + (_LENGTH if is_constant else ())
        changed = _changed(_whole(checkpoint.config), run_config_to_json(self._config), may_change)
        if changed:
            raise ConfigError(
                f"{checkpoint.path.name} was trained with other settings: {'; '.join(changed[:3])}.",
                "Set them back to resume, or start a new run.",
            )
        restore_lora(self._bundle.dit, checkpoint.lora)
        self._optimizer.load_state_dict(dict(checkpoint.optim))

    def _batch(self, items: tuple[TrainingItem, ...]) -> Batch:
        encoded = [self._encoder.pair(item.pair) for item in items]
        return collate(
            [pair.latents for pair in encoded],
            [pair.start_latent for pair in encoded],
            [self._encoder.text(item.caption) for item in items],
            text_length=self._bundle.prompt_encoder.max_length,
            device=self._bundle.device,
        )


def _whole(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A checkpoint's configuration with the fields that came after it, at their defaults; as it is if it has others."""
    try:
        return run_config_to_json(run_config_from_json(config))
    except (ValueError, TypeError):
        return config


def attach(config: RunConfig, bundle: ModelBundle) -> list[nn.Parameter]:
    """Puts a fresh adapter on the transformer and sets how it is checkpointed; returns the adapter's parameters.

    Raises:
        JobAlreadyRunning: an adapter is in training on this transformer already.
    """
    dit = bundle.dit
    if TRAINING in adapter_names(dit):
        raise JobAlreadyRunning("This model is being trained already.", "Wait for that run, or stop it.")
    try:
        parameters = add_lora(dit, config.lora, seed=config.seed)
    except BaseException:
        detach(bundle)
        raise
    if config.model.gradient_checkpointing:
        dit.enable_gradient_checkpointing()
    dit.keep_attention = config.model.keep_attention is True
    return parameters


def detach(bundle: ModelBundle) -> None:
    """Leaves the transformer as it was before `attach`."""
    bundle.dit.disable_gradient_checkpointing()
    bundle.dit.keep_attention = False
    remove_lora(bundle.dit, TRAINING)


def make_encoders(bundle: ModelBundle) -> Encoders:
    """The bundle's VAE and text encoder as functions; each call holds `bundle.lock`."""

    def video(frames: np.ndarray, generator: torch.Generator) -> torch.Tensor:
        count, height, width, _ = frames.shape
        said = f"The device ran out of memory while {count} frames of {height}x{width} were encoded."
        with bundle.lock, memory_errors(said, lambda: room_for_encoding(bundle, height * width)):
            return encode_video(bundle.vae, frames_to_video(frames), generator)[0]

    def text(caption: str) -> torch.Tensor:
        said = "The device ran out of memory while a caption was encoded."
        with bundle.lock, memory_errors(said, lambda: room_for_encoding(bundle, 0)):
            condition = bundle.prompt_encoder.encode([caption])
        return condition.embeds[0, 0][condition.mask[0].bool()]

    return Encoders(
        video=video,
        video_id=fingerprint(bundle.vae),
        text=text,
        text_id=f"{fingerprint(bundle.prompt_encoder.encoder)} {bundle.prompt_encoder.max_length}",
    )


def room_for_encoding(bundle: ModelBundle, num_pixels: int) -> str:
    """What to do after the VAE had too little memory for frames of so many pixels, or, for 0, the text encoder."""
    free = free_bytes(bundle.device)
    if free is None:
        return NOTHING_HELPS if num_pixels == 0 else "Lower video.num_frames or resolution."
    missing = VAE_BYTES * num_pixels * bundle.dtype.itemsize - free
    return swap_for(bundle.dit, max(missing, free // 4)) or NOTHING_HELPS


def _diverged(step: int, items: tuple[TrainingItem, ...], loss: float) -> StudioError:
    names = ", ".join(dict.fromkeys(item.pair.name for item in items))
    return StudioError(
        f"The loss at step {step} is {loss:g} or its gradient is not finite; clips: {names}.",
        "Lower the learning rate, or look at these clips; what was saved before is kept.",
    )


def _changed(
    before: Mapping[str, Any], after: Mapping[str, Any], may_change: tuple[str, ...], at: str = ""
) -> list[str]:
    """`lora.rank 8, now 16` for each setting that differs and is not among `may_change`."""
    changed = []
    for key in before.keys() | after.keys():
        path = f"{at}{key}"
        if path.startswith(may_change):
            continue
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            changed += _changed(old, new, may_change, f"{path}.")
        elif old != new:
            changed.append(f"{path} {old}, now {new}")
    return sorted(changed)
