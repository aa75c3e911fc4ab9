"""The LoRA under training: its parameters, its optimiser, and one step of learning."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from torch import nn

from studio.core.config import RunConfig
from studio.core.config_json import run_config_from_json, run_config_to_json
from studio.core.data.cache import fingerprint
from studio.core.data.dataset import TrainingItem
from studio.core.data.encode import Encoders, PairEncoder
from studio.core.data.seeds import seeded
from studio.core.errors import AdapterError, ConfigError, JobAlreadyRunning, StudioError
from studio.core.events import StepDone
from studio.core.model.load import ModelBundle
from studio.core.model.lora import TRAINING, adapter_names, add_lora, lora_state, read_lora, remove_lora, restore_lora
from studio.core.model.memory import NOTHING_HELPS, VAE_BYTES, free_bytes, memory_errors, swap_for
from studio.core.model.processes import ALONE, Processes
from studio.core.model.vae import encode_video, frames_to_video
from studio.core.remedy import Change
from studio.core.train.checkpoint import Checkpoint, save_checkpoint
from studio.core.train.distributed import Share, averaging, shares_of, sums_up
from studio.core.train.schedule import is_constant, learning_rate
from studio.core.train.step import Batch, clip_losses, collate, draw_noise
from studio.core.types import Pair

MAY_CHANGE = (
    "output_dir", "sharing", "validation", "model.device", "model.gradient_checkpointing", "model.keep_attention",
    "model.blocks_to_swap", "model.block_swap_device", "model.group_offload", "model.vae_tiling", "optim.checkpoint",
    "lora.init_from", "is_sharded",
)  # fmt: skip
"""Parts of a configuration that may differ when a run is resumed: they change no loss."""
_LENGTH = ("optim.max_train_steps", "optim.num_train_epochs")
"""These may differ too, unless the learning rate falls towards the end."""


class Learner:
    """A fresh adapter on the bundle's transformer, and AdamW over nothing else.

    Whoever calls a method holds `bundle.lock`; `close` leaves the transformer as it was. Of several processes each
    has one, and `learn` is a call of all.

    Raises:
        JobAlreadyRunning: an adapter is in training on this transformer already.
    """

    def __init__(
        self,
        config: RunConfig,
        bundle: ModelBundle,
        encoder: PairEncoder,
        num_steps: int,
        processes: Processes = ALONE,
    ) -> None:
        self._config = config
        self._bundle = bundle
        self._encoder = encoder
        self._num_steps = num_steps
        self._processes = processes
        self._model: Any = None
        """The transformer, or what averages its gradients; from the first step on."""
        self._rate = learning_rate(config.optim, num_steps)
        self.peak_bytes: int | None = None
        """The most memory that a step took; None on a CPU."""
        self.parameters = attach(config, bundle)
        optim = config.optim
        try:
            self._optimizer = torch.optim.AdamW(
                self.parameters,
                lr=optim.learning_rate,
                betas=(optim.adam_beta1, optim.adam_beta2),
                eps=optim.adam_epsilon,
                weight_decay=optim.weight_decay,
            )
            self._average = EMAModel(self.parameters, decay=optim.ema_decay) if optim.use_ema else None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Takes the adapter off."""
        self._model = None
        detach(self._bundle)

    def load(self, step: int, batches: Sequence[Sequence[TrainingItem]]) -> list[Batch]:
        """The tensors of what this process computes of a step's batches; `bundle.lock` is not held, for what is missing
        in the cache is encoded.

        Raises:
            MediaError: a file cannot be read any more.
        """
        loaded = []
        for share in self._shares(batches):
            captions = [self._caption(i, step, at) for i, at in zip(share.items, share.positions, strict=True)]
            loaded.append(load_batch(self._bundle, self._encoder, [item.pair for item in share.items], captions))
        return loaded

    def learn(self, step: int, batches: Sequence[Sequence[TrainingItem]], loaded: Sequence[Batch]) -> StepDone:
        """Takes one optimiser step on all batches, `loaded` from them; every clip counts the same.

        Raises:
            StudioError: the loss or the gradient is not finite; nothing was changed.
            ProcessLost: another process has ended.
        """
        started = time.perf_counter()
        is_cuda = self._bundle.device.type == "cuda"
        if is_cuda:
            torch.cuda.reset_peak_memory_stats(self._bundle.device)
        seed, dit, processes = self._config.seed, self._bundle.dit, self._processes
        self._model = self._model or averaging(dit, processes)
        rate = self._rate(step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        pairs = [item.pair for items in batches for item in items]
        losses = torch.zeros(len(pairs), device=self._bundle.device)
        shares = self._shares(batches)
        dropout = (seed, "dropout", step) if processes.is_main else (seed, "dropout", step, processes.rank)
        dit.train()
        try:
            with torch.random.fork_rng(devices=[self._bundle.device] if is_cuda else []):
                torch.manual_seed(seeded(*dropout).initial_seed())
                for number, (share, batch) in enumerate(zip(shares, loaded, strict=True), start=1):
                    generators = [seeded(seed, "noise", step, position) for position in share.positions]
                    # What the processes sum up is divided by their number.
                    weight = processes.count if share.counts else 0
                    with sums_up(self._model, is_last=number == len(shares)):
                        of_clips = clip_losses(self._model, batch, *self._noise(batch, generators))
                        (weight * of_clips.sum() / len(pairs)).backward()
                    if share.counts:
                        losses[list(share.positions)] = of_clips.detach()
        except RuntimeError as error:
            if (explained := processes.explained(error)) is error:
                raise
            raise explained from error
        finally:
            dit.eval()
        grad_norm = torch.nn.utils.clip_grad_norm_(self.parameters, self._config.optim.max_grad_norm or math.inf)
        values, norm = processes.sum(losses).tolist(), grad_norm.item()
        if not (math.isfinite(norm) and all(map(math.isfinite, values))):
            self._optimizer.zero_grad()
            raise _diverged(step, pairs, values)
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self._average is not None:
            self._average.step(self.parameters)
        peak = torch.cuda.max_memory_allocated(self._bundle.device) if is_cuda else None
        if peak is not None:
            self.peak_bytes = max(self.peak_bytes or 0, peak)
        return StepDone(
            step=step,
            num_steps=self._num_steps,
            loss=sum(values) / len(values),
            learning_rate=rate,
            grad_norm=norm,
            seconds=time.perf_counter() - started,
            clips=tuple(f"{pair.dataset_id}/{pair.name}" for pair in pairs),
            clip_losses=tuple(values),
            peak_bytes=peak,
        )

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the adapter has the weights that the run will leave: the moving average, where there is one."""
        if self._average is None:
            yield
            return
        self._average.store(self.parameters)
        self._average.copy_to(self.parameters)
        try:
            yield
        finally:
            self._average.restore(self.parameters)

    def save(self, folder: Path, step: int) -> Path:
        """Writes a checkpoint below `folder`. Raises DiskFull, OSError."""
        average = None
        if self._average is not None:
            with self.averaged():
                average = lora_state(self._bundle.dit)
        lora = lora_state(self._bundle.dit)
        return save_checkpoint(folder, step, lora=lora, ema=average, optimizer=self._optimizer, config=self._config)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes back to a checkpoint.

        Raises:
            ConfigError: it was written under other settings, which are named.
        """
        may_change = MAY_CHANGE + (_LENGTH if is_constant(self._config.optim) else ())
        changed = _changed(_whole(checkpoint.config), run_config_to_json(self._config), may_change)
        if changed:
            raise ConfigError(
                f"{checkpoint.path.name} was trained with other settings: {'; '.join(changed[:3])}.",
                "Set them back to resume, or start a new run.",
            )
        if self._average is not None:
            restore_lora(self._bundle.dit, checkpoint.ema or checkpoint.lora)
            self._begin_average(checkpoint.step)
        restore_lora(self._bundle.dit, checkpoint.lora)
        self._optimizer.load_state_dict(dict(checkpoint.optim))

    def begin_from(self, file: Path) -> None:
        """Begins with the weights of a LoRA file; layers that it does not have begin fresh.

        Raises:
            AdapterError: it is no LoRA of this model, or of layers or a rank that are not trained here.
        """
        dit = self._bundle.dit
        own, (given, _) = lora_state(dit), read_lora(dit, file)
        strange = [name for name, t in given.items() if name not in own or own[name].shape != t.shape]
        if strange:
            raise AdapterError(
                f"Training cannot begin from {file.name}: {strange[0]} is not trained here, or has another rank"
                + (f", and {len(strange) - 1} more." if len(strange) > 1 else "."),
                "Choose a LoRA of the attention projections, or delete init_lora.",
            )
        restore_lora(dit, own | given)
        self._begin_average(0)

    def _shares(self, batches: Sequence[Sequence[TrainingItem]]) -> tuple[Share, ...]:
        return shares_of(batches, self._processes, self._config.data.train_batch_size)

    def _begin_average(self, step: int) -> None:
        """The average stands where the weights stand now, after so many steps."""
        if self._average is not None:
            self._average = EMAModel(self.parameters, decay=self._config.optim.ema_decay)
            self._average.optimization_step = step

    def _noise(self, batch: Batch, generators: Sequence[torch.Generator]) -> tuple[torch.Tensor, torch.Tensor]:
        noise = self._config.noise
        shift = self._bundle.scheduler.config["shift"] if noise.shift is None else noise.shift
        return draw_noise(batch, shift=shift, generators=generators, sigmoid_scale=noise.sigmoid_scale)

    def _caption(self, item: TrainingItem, step: int, position: int) -> str:
        """The caption of a clip, or at times none: the embedding of the empty caption."""
        draw = torch.rand((), generator=seeded(self._config.seed, "caption dropout", step, position)).item()
        return "" if draw < self._config.optim.caption_dropout else item.caption


def load_batch(bundle: ModelBundle, encoder: PairEncoder, pairs: Sequence[Pair], captions: Sequence[str]) -> Batch:
    """One batch of pairs of one bucket on the model's device; what no cache holds is encoded, under `bundle.lock`."""
    encoded = [encoder.pair(pair) for pair in pairs]
    return collate(
        [pair.latents for pair in encoded],
        [pair.start_latent for pair in encoded],
        [encoder.text(caption) for caption in captions],
        text_length=bundle.prompt_encoder.max_length,
        device=bundle.device,
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


def room_for_encoding(bundle: ModelBundle, num_pixels: int) -> str | Change:
    """What to do after the VAE had too little memory for frames of so many pixels, or, for 0, the text encoder."""
    free = free_bytes(bundle.device)
    if free is None:
        return NOTHING_HELPS if num_pixels == 0 else "Lower video.num_frames or resolution."
    missing = VAE_BYTES * num_pixels * bundle.dtype.itemsize - free
    return swap_for(bundle.dit, max(missing, free // 4)) or NOTHING_HELPS


def _diverged(step: int, pairs: Sequence[Pair], losses: Sequence[float]) -> StudioError:
    """Names the clips whose loss is not finite, or all of them when it is the gradient alone."""
    bad = {pair.name: loss for pair, loss in zip(pairs, losses, strict=True) if not math.isfinite(loss)}
    what = f"loss at step {step} is {next(iter(bad.values())):g}" if bad else f"gradient at step {step} is not finite"
    names = ", ".join(bad or dict.fromkeys(pair.name for pair in pairs))
    return StudioError(
        f"The {what}; clips: {names}. The step was not taken.", "Lower the learning rate, or look at these clips."
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
