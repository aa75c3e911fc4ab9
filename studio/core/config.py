"""The typed configuration of a run; `simpletuner.py` reads the guide's files into it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from studio.core.errors import ConfigError
from studio.core.published_buckets import PUBLISHED_BUCKETS, RESOLUTIONS, UNITS

PUBLISHED_MODEL = "meituan-longcat/LongCat-Video"
"""Hub id of the flavour `final`."""

Attention = Literal["auto", "dense", "sparse"]
CaptionStrategy = Literal["textfile", "filename", "instanceprompt"]
ResolutionType = Literal["pixel", "area", "pixel_area", "published"]
BasePrecision = Literal["no_change", "int8-quanto", "fp8-torchao"]
LearningRateSchedule = Literal[
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
]
LoraStart = Literal["default", "gaussian"]
Tracker = Literal["tensorboard", "trackio"]


def hub_id_of(source: str) -> str:
    """The hub id of a checkpoint that is no folder: `final` is the published one."""
    return PUBLISHED_MODEL if source == "final" else source


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Which checkpoint, and where it runs."""

    source: str = PUBLISHED_MODEL
    """A folder in the published layout, or a hub id."""
    device: str = "auto"
    """`auto` takes CUDA when it is there."""
    dtype: str = "auto"
    """`auto`: bf16 on CUDA, fp32 on a CPU."""
    attention: Attention = "auto"
    base_precision: BasePrecision = "no_change"
    """How the large linears of the transformer are kept; a LoRA on top stays in full precision."""
    gradient_checkpointing: bool = True
    keep_attention: bool | None = None
    """With gradient checkpointing: keep attention outputs for the backward pass instead of computing them twice.
    None: where the memory of the card allows."""
    blocks_to_swap: int = 0
    """This many of the last transformer blocks wait on `block_swap_device` and visit the model's device in turn."""
    block_swap_device: str = "cpu"
    group_offload: bool = False
    """Every layer waits in main memory and visits the device for its own call (diffusers): least memory, slow."""
    vae_tiling: bool = False
    """Videos above 256 px are decoded in overlapping tiles: less memory, seams blended."""

    def __post_init__(self) -> None:
        if self.blocks_to_swap < 0:
            raise ConfigError(f"musubi_blocks_to_swap is {self.blocks_to_swap}.", "Use 0 or more.")
        if self.group_offload and self.blocks_to_swap:
            raise ConfigError(
                f"enable_group_offload and musubi_blocks_to_swap {self.blocks_to_swap} cannot go together: both say "
                "where weights wait.",
                "Keep musubi_blocks_to_swap, which is faster, or enable_group_offload, which takes less memory.",
            )
        if self.group_offload and self.base_precision == "int8-quanto":
            raise ConfigError(
                "enable_group_offload and base_model_precision int8-quanto cannot go together: diffusers does not "
                "move the weights of optimum-quanto.",
                "Use musubi_blocks_to_swap in place of the offload, or fp8-torchao.",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetConfig:
    """One entry of `multidatabackend.json`."""

    id: str
    kind: Literal["video", "conditioning"]
    directory: Path
    is_i2v: bool = True
    conditioning_ids: tuple[str, ...] = ()
    """Datasets that hold the start frames; empty: start frames lie beside the clips."""
    caption_strategy: CaptionStrategy | None = "textfile"
    instance_prompt: str | None = None
    resolution: float = 480.0
    """Edge in pixels, or megapixels for `area`; 480 or 720 for `published`."""
    resolution_type: ResolutionType = "pixel_area"
    num_frames: int = 93
    min_frames: int | None = None
    """Clips with fewer frames are left out, with `max_frames` those with more; counted at the rate they are read at."""
    max_frames: int | None = None
    min_aspect: float | None = None
    """Width / height below which clips are left out, with `max_aspect` above which."""
    max_aspect: float | None = None
    min_size: float | None = None
    """Smaller clips are left out; in the unit of `resolution_type`."""
    max_samples: int | None = None
    """Clips after so many, in order of their names, are left out."""
    split_captions: bool = True
    """Each line of a caption file is a caption; False: the file is one."""
    prepend_instance_prompt: bool = False
    """Captions from files and names begin with `instance_prompt`."""
    repeats: int = 0
    """Extra passes over the dataset in an epoch."""
    cache_dir: Path | None = None
    """Where latents are cached; None: in the run's output folder."""
    is_eval: bool = False
    """Held out: not trained on while there are other clips."""

    def __post_init__(self) -> None:
        if self.caption_strategy == "instanceprompt" and not self.instance_prompt:
            raise ConfigError(
                f"Dataset {self.id}: caption_strategy is instanceprompt, but instance_prompt is empty.",
                "Write the prompt into instance_prompt.",
            )
        if self.prepend_instance_prompt and not self.instance_prompt:
            raise ConfigError(
                f"Dataset {self.id}: prepend_instance_prompt is set, but instance_prompt is empty.",
                "Write the prompt into instance_prompt.",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """All datasets of a run."""

    datasets: tuple[DatasetConfig, ...]
    aspect_bucket_alignment: int = 64
    """Pixels; buckets are multiples of it."""
    train_batch_size: int = 1
    framerate: float | None = None
    """Frames per second that clips are converted to; None: their frames as they are."""

    def __post_init__(self) -> None:
        for dataset in self.datasets:
            if dataset.kind != "video" or dataset.resolution_type != "published":
                continue
            if (dataset.resolution, self.aspect_bucket_alignment) not in PUBLISHED_BUCKETS:
                raise ConfigError(
                    f"Dataset {dataset.id}: there is no published bucket table for resolution {dataset.resolution:g} "
                    f"and aspect_bucket_alignment {self.aspect_bucket_alignment}.",
                    f"Use resolution {' or '.join(map(str, RESOLUTIONS))}, and as alignment one of "
                    f"{', '.join(map(str, UNITS))}.",
                )

    @property
    def by_id(self) -> dict[str, DatasetConfig]:
        """Datasets by their id."""
        return {d.id: d for d in self.datasets}


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraSettings:
    """Shape of the adapter."""

    rank: int = 8
    alpha: float | None = None
    """None: equal to the rank, so that the scale is 1."""
    dropout: float = 0.0
    start: LoraStart = "default"
    """How A begins, in peft's words; B begins at zero."""
    init_from: Path | None = None
    """A LoRA file to begin with; rank and alpha are then its own."""

    @property
    def resolved_alpha(self) -> float:
        """Alpha, with the default applied."""
        return float(self.rank) if self.alpha is None else self.alpha


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """AdamW and its schedule."""

    learning_rate: float = 1e-4
    max_train_steps: int | None = None
    """None: obey `num_train_epochs`."""
    num_train_epochs: int = 1
    lr_scheduler: LearningRateSchedule = "constant_with_warmup"
    lr_warmup_steps: int = 0
    lr_end: float = 0.0
    """Where a rate that falls ends."""
    lr_power: float = 1.0
    """Of the schedule `polynomial`."""
    lr_num_cycles: int = 1
    """Of the schedule `cosine_with_restarts`."""
    gradient_accumulation_steps: int = 1
    """Batches of one optimiser step."""
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    weight_decay: float = 0.01
    """torch's default for AdamW; SimpleTuner's too."""
    max_grad_norm: float = 2.0
    caption_dropout: float = 0.0
    """Share of the clips that are shown with an empty caption."""
    use_ema: bool = False
    """Samples and the LoRA are a moving average of the weights under training."""
    ema_decay: float = 0.995
    checkpoint_step_interval: int = 500
    checkpoints_total_limit: int = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseConfig:
    """Which noise levels are trained at."""

    shift: float | None = None
    """None: the checkpoint's own (published: 12)."""
    sigmoid_scale: float | None = None
    """None: levels are uniform before the shift, as published; else the sigmoid of a normal draw times this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationConfig:
    """Samples rendered while training."""

    eval_dataset_id: str | None = None
    using_datasets: bool = True
    """Samples are rendered from the clips that are trained on when there is no `eval_dataset_id`; False: from no
    others than those of `eval_dataset_id`."""
    num_pairs: int = 1
    """How many of its pairs are rendered."""
    step_interval: int = 100
    eval_step_interval: int | None = None
    """Steps between two looks at the held-out loss; None: `step_interval`."""
    eval_loss_disabled: bool = False
    resolution: tuple[int, int] | None = None
    """(height, width) in pixels, landscape or square; turned when the start frame is portrait. None: the
    checkpoint's own."""
    num_frames: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    """None in any of these: the checkpoint's own default."""
    negative_prompt: str = ""
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class SharingConfig:
    """Who else is told of a run, and where its LoRA goes."""

    report_to: tuple[Tracker, ...] = ()
    """Trackers that are given the losses as they come."""
    push_to_hub: bool = False
    """The LoRA is uploaded when the run has finished."""
    hub_model_id: str | None = None
    """`name` or `owner/name` on the hub; None: named after the run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Everything a run needs to be repeated."""

    model: ModelConfig
    data: DataConfig
    lora: LoraSettings
    optim: OptimConfig
    validation: ValidationConfig
    output_dir: Path
    """Runs are folders in it."""
    noise: NoiseConfig = NoiseConfig()
    sharing: SharingConfig = SharingConfig()
    seed: int = 42
    num_processes: int = 1
    """How many processes share a step: it has `train_batch_size` clips for each. Not changed when the run goes on with
    fewer: what a step learns from stays the same."""
    is_sharded: bool = False
    """Each of several processes holds a part of the frozen transformer (FSDP2)."""
