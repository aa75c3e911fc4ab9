"""A checkpoint in the published layout, from a folder or from the hub, loaded once and checked tensor by tensor."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoTokenizer, Qwen2_5_VLForConditionalGeneration, UMT5EncoderModel
from transformers.modeling_utils import PreTrainedModel

from studio.core.assets import TINY, asset_path
from studio.core.config import Attention, ModelConfig, hub_id_of
from studio.core.errors import CheckpointError, DeviceError
from studio.core.geometry import Grid, GridSpec
from studio.core.model.attention import AttentionChoice, AttentionUsed, choose_attention
from studio.core.model.dit import PUBLISHED_BSA, LongCatVideoTransformer3DModel
from studio.core.model.loading_room import room_for_weights
from studio.core.model.memory import free_bytes, is_out_of_memory, memory_errors
from studio.core.model.placement import place
from studio.core.model.pointwise import choose_pointwise
from studio.core.model.processes import ALONE, Processes
from studio.core.model.sharding import shard
from studio.core.model.text import PromptEncoder
from studio.core.remedy import Change

PARTS = {
    "dit": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "tokenizer": "tokenizer_config.json",
    "scheduler": "scheduler_config.json",
}
"""Folders of a checkpoint, and the file that each must hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleDefaults:
    """How a checkpoint likes to be sampled: `sampling` in its `model_index.json`, else the published numbers."""

    height: int = 480
    width: int = 832
    num_frames: int = 93
    num_inference_steps: int = 40
    guidance_scale: float = 4.0
    fps: float = 15.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelBundle:
    """Everything of one checkpoint, in memory."""

    source: str
    dit: LongCatVideoTransformer3DModel
    vae: AutoencoderKLWan
    prompt_encoder: PromptEncoder
    scheduler: FlowMatchEulerDiscreteScheduler
    grid: GridSpec
    defaults: SampleDefaults
    attention: AttentionChoice
    device: torch.device
    dtype: torch.dtype
    notices: tuple[str, ...] = ()
    """What differs from what the configuration asked for, in sentences for whoever looks on."""
    processes: Processes = ALONE
    """Those that run it together."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Whoever runs the model holds it: a training step, or a whole sample."""
    kept: dict[str, Any] = field(default_factory=dict)
    """What is found out once about this model, by name, such as the colours of its latents."""

    def attention_of(self, num_frames: int, height: int, width: int) -> AttentionUsed:
        """The attention that a video of this size gets: that of its noise tokens, which follow one start latent."""
        return attention_of_video(self.attention, self.grid, num_frames, height, width)


def attention_of_video(
    choice: AttentionChoice, spec: GridSpec, num_frames: int, height: int, width: int
) -> AttentionUsed:
    """The attention of the noise tokens of a video of this size, which follow one start latent."""
    grid = spec.token_grid(num_frames, height, width)
    return choice.resolve(Grid(grid.t - 1, grid.h, grid.w), grid)


def load_bundle(config: ModelConfig, processes: Processes = ALONE) -> ModelBundle:
    """The checkpoint of `config`, in evaluation mode, without gradients; on each of `processes`, the transformer whole
    or as they are set to hold it.

    Weights go from disk to main memory, and from there to the device part by part: it never holds more than it keeps.

    Raises:
        CheckpointError: a part is missing, a tensor is missing, extra or of another shape, or the text encoder's
            width is not the transformer's.
        DeviceError: a device is not here, or cannot do what was asked.
        OutOfMemory: the device has too little memory; says the cheapest change that fits.
    """
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    folder = resolve_folder(config.source)

    def remedy() -> str | Change:
        return room_for_weights(read_shapes(folder / "dit"), config, device, free_bytes(device), dtype.itemsize)

    with memory_errors("The device ran out of memory while the model was loaded.", remedy):
        return _load(config, folder, device, dtype, processes)


def _load(
    config: ModelConfig, folder: Path, device: torch.device, dtype: torch.dtype, processes: Processes
) -> ModelBundle:
    dit: LongCatVideoTransformer3DModel = _load_checked(LongCatVideoTransformer3DModel, folder / "dit", dtype)
    vae: AutoencoderKLWan = _load_checked(AutoencoderKLWan, folder / "vae", dtype)
    encoder = _load_text_encoder(folder / "text_encoder", dtype, dit.config["caption_channels"])
    with _named(folder / "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    with _named(folder / "scheduler"):
        scheduler: Any = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    choice = resolve_attention(config.attention, dit, device, dtype)
    dit.set_attention(choice)
    ops, refusal = choose_pointwise(device, dtype)
    dit.set_pointwise(ops)
    for module in (dit, vae, encoder):
        module.requires_grad_(False).eval()
    if processes.is_sharded:
        notices = shard(dit, config, device, processes.count)
    else:
        _, notices = place(dit, config, device)
    if refusal is not None:
        notices += (f"The fused kernels do not run, so every step takes longer: {refusal}.",)
    nn.Module.to(vae, device)
    if config.vae_tiling:
        vae.enable_tiling()
    return ModelBundle(
        source=config.source,
        dit=dit,
        vae=vae,
        prompt_encoder=PromptEncoder(tokenizer, encoder, device),
        scheduler=scheduler,
        grid=GridSpec(
            temporal_stride=vae.config["scale_factor_temporal"],
            spatial_stride=vae.config["scale_factor_spatial"],
            patch=dit.patch[1],
            attention_block=choice.block,
        ),
        defaults=read_defaults(folder),
        attention=choice,
        device=device,
        dtype=dtype,
        notices=notices,
        processes=processes,
    )


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU. A CUDA device has its number. Raises DeviceError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError(f"The device {name} is not here: PyTorch sees no CUDA device.", "Use the device cpu.")
    # Some calls of torch.cuda take no device without a number.
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else torch.device(name)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bf16 on CUDA and fp32 on a CPU."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]


def resolve_attention(
    setting: Attention, dit: LongCatVideoTransformer3DModel, device: torch.device, dtype: torch.dtype
) -> AttentionChoice:
    """The attention choice, with block and sparsity from the checkpoint's `bsa_params`."""
    params = dit.config["bsa_params"] or PUBLISHED_BSA
    refusal = _refusal_of_parameters(params)
    if refusal is not None:
        if setting == "sparse":
            raise CheckpointError(f"Sparse attention was asked for, but {refusal}.", "Use auto or dense attention.")
        return AttentionChoice(setting=setting, refusal=refusal)
    time, height, width = params["chunk_3d_shape_q"]
    return choose_attention(
        setting,
        block=(time, height, width),
        sparsity=params["sparsity"],
        device=device,
        dtype=dtype,
        head_width=dit.config["hidden_size"] // dit.config["num_heads"],
    )


def resolve_folder(source: str) -> Path:
    """The local folder of a checkpoint: `tiny`, `final`, a folder, or a hub id (downloaded once).

    Raises CheckpointError, naming every part that is missing.
    """
    if source == TINY:
        folder = asset_path(TINY)
    elif Path(source).is_dir():
        folder = Path(source)
    else:
        folder = _download(hub_id_of(source))
    missing = [f"{part}/{name}" for part, name in PARTS.items() if not (folder / part / name).is_file()]
    if missing:
        raise CheckpointError(
            f"The checkpoint {source} lacks {', '.join(missing)}.",
            "A checkpoint folder holds dit, vae, text_encoder, tokenizer and scheduler: copy what is missing.",
        )
    return folder


def read_defaults(folder: Path) -> SampleDefaults:
    """The checkpoint's own sampling settings."""
    index = folder / "model_index.json"
    sampling = json.loads(index.read_text()).get("sampling", {}) if index.is_file() else {}
    return SampleDefaults(**{f.name: sampling[f.name] for f in fields(SampleDefaults) if f.name in sampling})


def _download(hub_id: str) -> Path:
    try:
        return Path(snapshot_download(hub_id, allow_patterns=[f"{part}/*" for part in PARTS] + ["*.json"]))
    except HFValidationError as error:
        raise CheckpointError(
            f"There is no checkpoint folder {hub_id}, and it is not a hub id either.",
            "Give an existing folder, a hub id such as meituan-longcat/LongCat-Video, or tiny.",
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"The checkpoint {hub_id} is not a folder here, and the hub did not give it.",
            "Check the spelling and the network, or use tiny, the small checkpoint that ships with the studio.",
        ) from error


def _load_checked(cls: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A diffusers model whose files hold exactly its tensors; weights go from disk into a meta-device skeleton."""
    with _named(folder), torch.device("meta"):
        skeleton = cls.from_config(cls.load_config(folder))
    expected = {name: tuple(t.shape) for name, t in skeleton.state_dict().items()}
    compare_tensors(read_shapes(folder), expected, folder.name)
    return cls.from_pretrained(folder, torch_dtype=dtype, use_safetensors=True, low_cpu_mem_usage=True)


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    """What a library says of a broken part becomes a CheckpointError that names the part."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"The checkpoint part {folder.name} cannot be loaded: {first}", "Copy that folder again."
        ) from error


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in the safetensors files that the folder's index names, or in its only file.

    Raises CheckpointError.
    """
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if indices:
        names = sorted(set(json.loads(indices[0].read_text())["weight_map"].values()))
        files = [folder / name for name in names]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(
            f"The checkpoint part {folder.name} has no safetensors file.", "Copy its weights into the folder."
        )
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in list(tensors.keys())}
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"The checkpoint file {folder.name}/{file.name} cannot be read: {error}.", "Copy it again."
            ) from error
    return shapes


def compare_tensors(found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]], part: str) -> None:
    """Raises CheckpointError that names the first missing, extra and misshapen tensors."""
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is not part of the model" for name in found if name not in expected]
    problems += [
        f"{name} is {list(found[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"The weights of {part} do not fit its config.json: {'; '.join(problems[:3])}{more}.",
            "Use the config and the weights of the same checkpoint.",
        )


def _load_text_encoder(folder: Path, dtype: torch.dtype, caption_width: int) -> PreTrainedModel:
    """The encoder that `config.json` declares: UMT5, or the language model of Qwen2.5-VL."""
    with _named(folder):
        config = AutoConfig.from_pretrained(folder)
    if config.model_type not in ("umt5", "qwen2_5_vl"):
        raise CheckpointError(
            f"The text encoder is of type {config.model_type}; known are umt5 and qwen2_5_vl.",
            "Use the text_encoder folder of the published checkpoint.",
        )
    is_umt5 = config.model_type == "umt5"
    width = config.d_model if is_umt5 else config.get_text_config().hidden_size
    if width != caption_width:
        raise CheckpointError(
            f"The text encoder ({config.model_type}) is {width} wide, but the transformer's caption_channels "
            f"is {caption_width}.",
            "Use the text encoder that the transformer was trained with (for LongCat-Video: its own UMT5-XXL).",
        )
    cls = UMT5EncoderModel if is_umt5 else Qwen2_5_VLForConditionalGeneration
    stored = read_shapes(folder)
    with _named(folder):
        loaded: Any = cls.from_pretrained(folder, dtype=dtype, use_safetensors=True, output_loading_info=True)
    model, report = loaded
    # One table under two names: a file may hold it under either.
    tied = {"shared.weight", "encoder.embed_tokens.weight"} if is_umt5 else {"lm_head.weight"}
    names = ["shared.weight"] if is_umt5 and not tied & stored.keys() else []
    names += sorted(set(report["missing_keys"]) - tied) + sorted(set(report["unexpected_keys"]) - tied)
    names += [str(key) for key in report["mismatched_keys"]]
    if names:
        raise CheckpointError(
            f"The weights of text_encoder do not fit its config.json: {', '.join(names[:3])}.",
            "Use the config and the weights of the same text encoder.",
        )
    if not is_umt5:
        return model.model.language_model
    # Some transformers releases leave the second name uninitialised.
    model.encoder.embed_tokens.weight = model.shared.weight
    return model


def _refusal_of_parameters(params: dict[str, Any]) -> str | None:
    """Why sparse attention cannot be what `bsa_params` ask for, a sentence without a full stop, or None."""
    of_queries, of_keys, sparsity = (params.get(key) for key in ("chunk_3d_shape_q", "chunk_3d_shape_k", "sparsity"))
    edges = of_queries if isinstance(of_queries, list | tuple) else ()
    if len(edges) != 3 or not all(isinstance(edge, int) and edge > 0 for edge in edges):
        wanted = "chunk_3d_shape_q is no three counts"
    elif of_keys not in (None, of_queries):
        wanted = "chunk_3d_shape_k differs from chunk_3d_shape_q"
    elif not isinstance(sparsity, int | float) or not 0 <= sparsity < 1:
        wanted = "sparsity is no share in [0, 1)"
    elif params.get("cdf_threshold") is not None:
        wanted = "cdf_threshold is set"
    else:
        return None
    return f"bsa_params in dit/config.json cannot be followed here: {wanted} ({params})"
