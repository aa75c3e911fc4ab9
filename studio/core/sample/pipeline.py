"""The sampling loop as a pipeline of diffusers, which has none for this model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from PIL import Image

from studio.core.config import Attention, ModelConfig
from studio.core.errors import AdapterError, ConfigError
from studio.core.events import DenoiseStep
from studio.core.model.flow import Schedule
from studio.core.model.load import ModelBundle, load_bundle, resolve_attention
from studio.core.model.lora import LORA_FILE, LoraFile
from studio.core.model.pointwise import choose_pointwise
from studio.core.model.text import PromptEncoder
from studio.core.sample.denoise import Denoised
from studio.core.sample.request import Refinement, SampleRequest
from studio.core.sample.sampler import frames_of

Pictures = np.ndarray | Sequence[Image.Image]
"""uint8 [T, H, W, 3], or pictures."""
StepCallback = Callable[[Any, int, torch.Tensor, dict[str, torch.Tensor]], dict[str, torch.Tensor] | None]
"""(pipeline, step counted from 0, timestep, {"latents": [B, C, T, H, W]}) -> the latents to go on with, or None."""


@dataclass
class LongCatVideoOutput(BaseOutput):
    """`frames`: a list with one video, as `output_type` says; None when it was interrupted."""

    frames: Any


class LongCatVideoPipeline(DiffusionPipeline):
    """Text to video, image to video, continuation and long video with LongCat-Video.

    ```python
    from studio.core.sample.pipeline import LongCatVideoPipeline
    from diffusers.utils import export_to_video
    pipe = LongCatVideoPipeline.from_pretrained("tiny")
    video = pipe("a red circle moves right", num_frames=5, generator=torch.Generator().manual_seed(1)).frames[0]
    export_to_video(video, "circle.mp4", fps=pipe.fps)
    ```

    The same seed gives the frames of `sample`, bit for bit. `to`, `enable_model_cpu_offload`, `progress_bar` and the
    rest are those of diffusers. Setting `_interrupt` in a callback ends the call after that step.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _callback_tensor_inputs = ("latents",)

    def __init__(self, tokenizer: Any, text_encoder: Any, transformer: Any, vae: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer, text_encoder=text_encoder, transformer=transformer, vae=vae, scheduler=scheduler
        )
        self._loaded: ModelBundle | None = None
        self._loras: dict[str, LoraFile] = {}
        self._active: tuple[str, ...] = ()
        self._interrupt = False

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        torch_dtype: torch.dtype | None = None,
        device: str = "cpu",
        attention: Attention = "auto",
    ) -> Self:
        """The pipeline of a checkpoint in the published layout: a folder, a hub id, or `tiny`.

        The published `model_index.json` names no class, so the parts are loaded one by one, and checked.
        Raises as `load_bundle`.
        """
        names: dict[torch.dtype, Literal["bf16", "fp32"]] = {torch.bfloat16: "bf16", torch.float32: "fp32"}
        if torch_dtype is not None and torch_dtype not in names:
            raise ConfigError(f"The dtype {torch_dtype} is not known.", "Use torch.bfloat16 or torch.float32.")
        config = ModelConfig(
            source=str(pretrained_model_name_or_path),
            device=device,
            dtype=names[torch_dtype] if torch_dtype is not None else "auto",
            attention=attention,
        )
        return cls.from_bundle(load_bundle(config))

    @classmethod
    def from_bundle(cls, bundle: ModelBundle) -> Self:
        """A pipeline over a loaded model, which stays usable by itself."""
        prompts = bundle.prompt_encoder
        pipe = cls(prompts.tokenizer, prompts.encoder, bundle.dit, bundle.vae, bundle.scheduler)
        pipe._loaded = bundle
        return pipe

    @property
    def fps(self) -> float:
        """Frames per second of a video that is not refined in time."""
        return self._bundle().defaults.fps

    @property
    def interrupt(self) -> bool:
        """True once the running call is to end after its step."""
        return self._interrupt

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | Path,
        adapter_name: str | None = None,
        *,
        weight_name: str = LORA_FILE,
    ) -> None:
        """A LoRA in any of the known layouts: a file, or `weight_name` in a folder or a repository on the hub.

        It is put on beside the weights for each call, and is active at strength 1 at once. Raises AdapterError.
        """
        file = _lora_file(pretrained_model_name_or_path_or_dict, weight_name)
        name = adapter_name or f"default_{len(self._loras)}"
        if name in self._loras:
            raise AdapterError(f"There is an adapter {name} already.", "Give another adapter_name.")
        self._loras[name] = LoraFile(path=file)
        self._active = (*self._active, name)

    def set_adapters(
        self, adapter_names: str | Sequence[str], adapter_weights: float | Sequence[float] | None = None
    ) -> None:
        """Which LoRAs are active, and how strongly (1 by default). Raises AdapterError."""
        names = (adapter_names,) if isinstance(adapter_names, str) else tuple(adapter_names)
        given = 1.0 if adapter_weights is None else adapter_weights
        weights = [float(given)] * len(names) if isinstance(given, int | float) else [float(w) for w in given]
        unknown = [name for name in names if name not in self._loras]
        if unknown:
            known = ", ".join(self._loras) or "none"
            raise AdapterError(f"There is no adapter {unknown[0]}; loaded: {known}.", "Load it, or name another.")
        if len(weights) != len(names):
            raise AdapterError(f"There are {len(weights)} weights for {len(names)} adapters.", "Give one for each.")
        for name, weight in zip(names, weights, strict=True):
            self._loras[name] = replace(self._loras[name], strength=weight)
        self._active = names

    def get_active_adapters(self) -> list[str]:
        """Names of the LoRAs that the next call runs with."""
        return list(self._active)

    def unload_lora_weights(self) -> None:
        """Forgets all LoRAs."""
        self._loras, self._active = {}, ()

    @torch.no_grad()
    def __call__(
        self,
        prompt: str,
        image: Image.Image | np.ndarray | None = None,
        video: Pictures | None = None,
        *,
        negative_prompt: str = "",
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        schedule: Schedule | None = None,
        video_fps: float | None = None,
        num_segments: int = 1,
        refinement: Refinement = "none",
        generator: torch.Generator | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
    ) -> LongCatVideoOutput | tuple[Any]:
        """Renders one video; what is None is the checkpoint's own (`SampleRequest`).

        Args:
            prompt: what is to be seen.
            image: the start frame, PIL or uint8 [H, W, 3].
            video: a clip to go on from, PIL pictures or uint8 [T, H, W, 3], at `video_fps`; not with `image`.
            generator: on the CPU; None: seed 0.
            output_type: `pil` pictures; `np` float [T, H, W, 3] in 0..1; `pt` float [T, 3, H, W] in 0..1; `latent` the
                normalised latents [1, C, T, H, W] of the last segment, which refinement does not have.
            callback_on_step_end: called after every denoising step.

        Raises as `sample`.
        """
        if generator is not None and generator.device.type != "cpu":
            raise ConfigError(
                f"The generator is on {generator.device}; noise is drawn on the CPU, alike for every device.",
                "Give torch.Generator().manual_seed(...).",
            )
        if output_type == "latent" and refinement != "none":
            raise ConfigError("A refined video has no latents to give.", "Take another output_type, or do not refine.")
        request = SampleRequest(
            prompt=prompt,
            start_frame=None if image is None else _pixels(image),
            clip=None if video is None else _clip(video),
            clip_fps=video_fps,
            negative_prompt=negative_prompt,
            height=height,
            width=width,
            num_frames=num_frames,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            schedule=schedule,
            num_segments=num_segments,
            refinement=refinement,
            loras=tuple(self._loras[name] for name in self._active),
        )
        self._interrupt = False
        bundle = self._bundle()
        on_step = None if callback_on_step_end is None else self._on_step(callback_on_step_end)
        steps = frames_of(request, bundle, should_stop=lambda: self._interrupt, on_step=on_step, generator=generator)
        with bundle.lock, cast(Any, self).progress_bar(total=1) as bar:
            while True:
                try:
                    event = next(steps)
                except StopIteration as end:
                    rendered = end.value
                    break
                if isinstance(event, DenoiseStep):
                    bar.total = event.num_steps
                    bar.update()
        self.maybe_free_model_hooks()
        if rendered is None:
            frames = None
        elif output_type == "latent":
            frames = [rendered.latents]
        else:
            frames = [_as_output(rendered.frames, output_type)]
        return LongCatVideoOutput(frames=frames) if return_dict else (frames,)

    def _on_step(self, callback: StepCallback) -> Callable[[Denoised], torch.Tensor]:
        def on_step(denoised: Denoised) -> torch.Tensor:
            at = torch.tensor(denoised.timestep)
            changed = callback(self, denoised.step - 1, at, {"latents": denoised.latents})
            return (changed or {}).get("latents", denoised.latents)

        return on_step

    def _bundle(self) -> ModelBundle:
        """The parts as they stand: on whichever device diffusers has put them, or takes them to for their calls."""
        loaded, dit = self._loaded, cast(Any, self.transformer)
        hook = getattr(dit, "_hf_hook", None)
        device = torch.device(getattr(hook, "execution_device", None) or dit.device)
        if loaded is None:
            raise ConfigError("The pipeline has no checkpoint.", "Make it by from_pretrained.")
        if device != loaded.device:
            attention = resolve_attention(loaded.attention.setting, dit, device, loaded.dtype)
            dit.set_attention(attention)
            dit.set_pointwise(choose_pointwise(device, loaded.dtype)[0])
            prompts = PromptEncoder(
                loaded.prompt_encoder.tokenizer, loaded.prompt_encoder.encoder, device, visits=False
            )
            loaded = replace(loaded, device=device, attention=attention, prompt_encoder=prompts)
            self._loaded = loaded
        return loaded


def _lora_file(source: str | Path, name: str) -> Path:
    """The file of a LoRA. Raises AdapterError."""
    path = Path(source)
    if path.is_dir():
        return path / name
    if path.suffix == ".safetensors" or path.exists():
        return path
    try:
        return Path(hf_hub_download(str(source), name))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise AdapterError(
            f"There is no LoRA {source}: it is no file or folder here, and the hub did not give {name}.",
            "Check the spelling, or give weight_name.",
        ) from error


def _pixels(picture: Image.Image | np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]. Raises ConfigError."""
    pixels = np.asarray(picture.convert("RGB")) if isinstance(picture, Image.Image) else picture
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise ConfigError(
            f"A picture is {pixels.dtype} {list(pixels.shape)}, expected uint8 [height, width, 3].",
            "Give a PIL picture, or convert it.",
        )
    return pixels


def _clip(video: Pictures) -> np.ndarray:
    """uint8 [T, H, W, 3]. Raises ConfigError."""
    frames = [_pixels(frame) for frame in video]
    if not frames or any(frame.shape != frames[0].shape for frame in frames):
        raise ConfigError("The clip has no frames, or frames of several sizes.", "Give frames of one size.")
    return np.stack(frames)


def _as_output(frames: np.ndarray, kind: str) -> Any:
    if kind == "pil":
        return [Image.fromarray(frame) for frame in frames]
    floats = frames.astype(np.float32) / 255
    return floats if kind == "np" else torch.from_numpy(floats).permute(0, 3, 1, 2)
