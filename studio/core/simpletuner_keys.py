"""SimpleTuner's vocabulary, key by key: what each one sets here, or why it sets nothing.

Every key is `Honoured` (it fills a field of `RunConfig`), `Unused` (known, accepted, without effect here) or
`Refused`. Keys that appear in no table are unknown, which is a warning.
Source: SimpleTuner's options and data loader documentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from studio.core.config import PUBLISHED_MODEL
from studio.core.jsonc import JsonValue
from studio.core.simpletuner_values import (
    Reader,
    boolean,
    bucket_alignment,
    choice,
    crop,
    device,
    flow_shift,
    frame_count,
    hub_name,
    integer,
    location,
    name,
    names,
    number,
    text,
    trackers,
    validation_size,
)


@dataclass(frozen=True, slots=True)
class Honoured:
    """A key that fills a field."""

    field: str
    """Section and field of `RunConfig`; section `reader` is for values that the reader itself uses."""
    read: Reader
    accepts_null: bool = False
    """Elsewhere a null means that the key is not there."""


@dataclass(frozen=True, slots=True)
class Unused:
    """A key that is known and does nothing here."""

    why: str = ""
    changes_training: bool = False
    """True when leaving it out changes the result: then it is a warning, otherwise a notice."""
    harmless: tuple[JsonValue, ...] = ()
    """Values that ask for what happens anyway: nothing is said about them."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A key that would mean something else than what happens here."""

    why: str
    harmless: tuple[JsonValue, ...] = (False, "", 0)


Rule = Honoured | Unused | Refused

ALIASES: Mapping[str, str] = {
    "validation_steps": "validation_step_interval",
    "checkpointing_steps": "checkpoint_step_interval",
    "attention_implementation": "attention_mechanism",
    "disable": "disabled",
}
"""Other name -> the name used here. `attention_implementation` is the guide's word."""

_DENSE_KERNELS = """
sdpa xformers native cudnn native-efficient native-flash native-math native-npu native-xla flex flash-attn
flash-attn-hub flash-attn-2 flash-attn-varlen-hub flash-attn-3 flash-attn-3-hub flash-attn-3-varlen
flash-attn-3-varlen-hub flash-attn-4-hub sageattention metal-flash-attention
"""
"""SimpleTuner's attention mechanisms that compute exact attention."""
_SILENT_CONFIG_KEYS = """
allow_dataset_oversubscription ramtorch_target_modules
aspect_bucket_rounding base_model_default_dtype cache_dir checkpoint_epoch_interval
checkpointing_rolling_steps disable_benchmark ema_device evaluation_type gradient_checkpointing_backend
gradient_checkpointing_interval gradient_checkpointing_offload_attention gradient_checkpointing_segment_stride
group_offload_blocks_per_group group_offload_text_encoder group_offload_to_disk_path group_offload_vae
keep_vae_loaded offload_during_startup push_checkpoints_to_hub quantize_via
tracker_project_name tracker_run_name user_prompt_library vae_batch_size vae_cache_disable vae_cache_ondemand
vae_dtype vae_enable_slicing validation_disable_unconditional validation_input validation_noise_scheduler
validation_on_startup validation_preview validation_prompt validation_prompt_library validation_randomize
validation_strength write_batch_size dataloader_prefetch delete_problematic_images disable_bucket_pruning
image_processing_batch_size max_workers read_batch_size weight_dtype validation_guidance_rescale
validation_torch_compile webhook_config
"""
_SILENT_DATASET_KEYS = """
caption_shuffle crop_aspect_buckets max_upscale_threshold start_epoch end_epoch start_step
end_step disable_validation is_regularisation_data slider_strength timestep_sampling_offset
vae_cache_clear_each_epoch vae_cache_ondemand vae_cache_disable skip_file_discovery metadata_backend
preserve_data_backend_cache text_embeds image_embeds cache_dir default cache_file_suffix hash_filenames
vae_cache_disk
"""
"""Known keys about which there is no more to say than that they are not used."""

_attention = choice(
    {"auto": "auto", "dense": "dense", "sparse": "sparse", "diffusers": "auto", "block_sparse": "sparse"}
    | dict.fromkeys(_DENSE_KERNELS.split(), "dense"),
    says='"{written}" is taken as {taken} attention; the run says which kernel it then uses.',
)
_precision = choice(
    {"bf16": "bf16", "no": "fp32", "fp32": "fp32", "auto": "auto"}, says='"{written}" is taken as {taken}.'
)
_base_precision = choice(
    {"no_change": "no_change", "bf16": "no_change", "int8-quanto": "int8-quanto", "fp8-torchao": "fp8-torchao"},
    says='"{written}" is taken as {taken}: the base model keeps the dtype of mixed_precision.',
)
_captions = choice({"textfile": "textfile", "filename": "filename", "instanceprompt": "instanceprompt"})
_SCHEDULES = "constant constant_with_warmup linear cosine cosine_with_restarts polynomial"
_schedule = choice({name: name for name in _SCHEDULES.split()})
_lora_start = choice({"default": "default", "gaussian": "gaussian"})
_resolution_type = choice({name: name for name in ("pixel", "area", "pixel_area", "published")})
_bucket_strategy = choice(
    {"resolution_frames": "resolution_frames", "aspect_ratio": "resolution_frames"},
    says='"{written}" is taken as {taken}: the number of frames separates buckets too.',
)

_HONOURED: dict[str, Rule] = {
    # model
    "model_family": Honoured("reader.family", choice({"longcat_video": "longcat_video"})),
    "model_flavour": Honoured("reader.flavour", choice({"final": PUBLISHED_MODEL})),
    "model_type": Honoured("reader.model_type", choice({"lora": "lora"})),
    "pretrained_model_name_or_path": Honoured("reader.model", location),
    "attention_mechanism": Honoured("model.attention", _attention),
    "gradient_checkpointing": Honoured("model.gradient_checkpointing", boolean),
    "gradient_checkpointing_keep_attention": Honoured("model.keep_attention", boolean),
    "base_model_precision": Honoured("model.base_precision", _base_precision),
    "musubi_blocks_to_swap": Honoured("model.blocks_to_swap", integer()),
    "musubi_block_swap_device": Honoured("model.block_swap_device", device),
    "enable_group_offload": Honoured("model.group_offload", boolean),
    "vae_enable_tiling": Honoured("model.vae_tiling", boolean),
    "mixed_precision": Honoured("model.dtype", _precision),
    # data
    "data_backend_config": Honoured("reader.data_backend_config", location),
    "aspect_bucket_alignment": Honoured("data.aspect_bucket_alignment", bucket_alignment),
    "train_batch_size": Honoured("data.train_batch_size", integer(at_least=1)),
    "framerate": Honoured("data.framerate", number(above=0, below=1000)),
    "resolution": Honoured("defaults.resolution", number(above=0, below=1e6)),
    "resolution_type": Honoured("defaults.resolution_type", _resolution_type),
    "caption_strategy": Honoured("defaults.caption_strategy", _captions),
    "instance_prompt": Honoured("defaults.instance_prompt", text),
    "minimum_image_size": Honoured("defaults.min_size", number(at_least=0)),
    # adapter and optimiser
    "lora_rank": Honoured("lora.rank", integer(at_least=1)),
    "lora_alpha": Honoured("lora.alpha", number(above=0)),
    "lora_dropout": Honoured("lora.dropout", number(at_least=0, below=1)),
    "lora_init_type": Honoured("lora.start", _lora_start),
    "init_lora": Honoured("reader.init_lora", location),
    "learning_rate": Honoured("optim.learning_rate", number(above=0)),
    "max_train_steps": Honoured("optim.max_train_steps", integer()),
    "num_train_epochs": Honoured("optim.num_train_epochs", integer()),
    "lr_scheduler": Honoured("optim.lr_scheduler", _schedule),
    "lr_warmup_steps": Honoured("optim.lr_warmup_steps", integer()),
    "lr_end": Honoured("optim.lr_end", number(at_least=0)),
    "lr_power": Honoured("optim.lr_power", number(above=0)),
    "lr_num_cycles": Honoured("optim.lr_num_cycles", integer(at_least=1)),
    "gradient_accumulation_steps": Honoured("optim.gradient_accumulation_steps", integer(at_least=1)),
    "adam_beta1": Honoured("optim.adam_beta1", number(at_least=0, below=1)),
    "adam_beta2": Honoured("optim.adam_beta2", number(at_least=0, below=1)),
    "adam_epsilon": Honoured("optim.adam_epsilon", number(above=0)),
    "adam_weight_decay": Honoured("optim.weight_decay", number(at_least=0)),
    "caption_dropout_probability": Honoured("optim.caption_dropout", number(at_least=0, below=1)),
    "use_ema": Honoured("optim.use_ema", boolean),
    "ema_decay": Honoured("optim.ema_decay", number(at_least=0, below=1)),
    "flow_schedule_shift": Honoured("noise.shift", flow_shift),
    "flow_sigmoid_scale": Honoured("noise.sigmoid_scale", number(above=0)),
    "max_grad_norm": Honoured("optim.max_grad_norm", number(above=0)),
    "checkpoint_step_interval": Honoured("optim.checkpoint_step_interval", integer(at_least=1)),
    "checkpoints_total_limit": Honoured("optim.checkpoints_total_limit", integer(at_least=1)),
    # validation
    "eval_dataset_id": Honoured("reader.eval_dataset_ids", names),
    "validation_using_datasets": Honoured("validation.using_datasets", boolean),
    "num_eval_images": Honoured("validation.num_pairs", integer(at_least=1)),
    "validation_step_interval": Honoured("validation.step_interval", integer(at_least=1)),
    "eval_steps_interval": Honoured("validation.eval_step_interval", integer(at_least=1)),
    "eval_loss_disable": Honoured("validation.eval_loss_disabled", boolean),
    "validation_resolution": Honoured("validation.resolution", validation_size),
    "validation_num_video_frames": Honoured("validation.num_frames", frame_count),
    "validation_num_inference_steps": Honoured("validation.num_inference_steps", integer(at_least=1)),
    "validation_guidance": Honoured("validation.guidance_scale", number(at_least=0)),
    "validation_negative_prompt": Honoured("validation.negative_prompt", text),
    "validation_seed": Honoured("validation.seed", integer()),
    # run
    "output_dir": Honoured("run.output_dir", location),
    "seed": Honoured("run.seed", integer()),
    # sharing
    "report_to": Honoured("sharing.report_to", trackers),
    "push_to_hub": Honoured("sharing.push_to_hub", boolean),
    "hub_model_id": Honoured("sharing.hub_model_id", hub_name),
}

_UNUSED: dict[str, Rule] = {
    "optimizer": Unused("AdamW is used", True, ("adamw", "adamw_bf16", "torch-adamw")),
    "peft_lora_target_modules": Unused("the default layers get the LoRA", True),
    "flow_schedule_auto_shift": Unused("the shift is the same for all sizes", True, (False,)),
    "flow_use_uniform_schedule": Unused("noise levels are uniform unless flow_sigmoid_scale is set", True, (True,)),
    "flow_use_beta_schedule": Unused("noise levels are uniform, or sigmoid with flow_sigmoid_scale", True, (False,)),
    "flow_custom_timesteps": Unused("noise levels are drawn, not listed", True, ("",)),
    "resume_from_checkpoint": Unused("a run is continued on purpose, never by itself", False, ("",)),
    "group_offload_type": Unused(
        "layers are offloaded one by one, so that those of the LoRA stay on the device", False, ("leaf_level",)
    ),
    "group_offload_use_stream": Unused("layers are fetched one at a time, without streams", False, (False,)),
    "lora_format": Unused("LoRAs are saved in the format of diffusers", False, ("diffusers",)),
}
_UNUSED |= dict.fromkeys(
    _SILENT_CONFIG_KEYS.split(),
    Unused(harmless=(False, "")),
)

_REFUSED: dict[str, Rule] = {
    "lora_type": Refused("LoRAs are made with PEFT only", ("standard",)),
    "ramtorch": Refused("weights are not streamed from main memory here"),
    "model_cpu_offload": Refused("weights wait in main memory through musubi_blocks_to_swap or enable_group_offload"),
    "controlnet": Refused("ControlNets are not trained here"),
}

CONFIG_KEYS: Mapping[str, Rule] = _HONOURED | _UNUSED | _REFUSED
"""Keys of config.json."""

VIDEO_KEYS: Mapping[str, Rule] = {
    "num_frames": Honoured("dataset.num_frames", frame_count),
    "is_i2v": Honoured("dataset.is_i2v", boolean),
    "min_frames": Honoured("dataset.min_frames", integer(at_least=1)),
    "max_frames": Honoured("dataset.max_frames", integer(at_least=1)),
    "bucket_strategy": Honoured("reader.bucket_strategy", _bucket_strategy),
    "frame_interval": Unused("frame counts are floored to 4k+1"),
}
"""Keys of the `video` block of a dataset."""

DATASET_KEYS: Mapping[str, Rule] = {
    "id": Honoured("reader.id", name),
    "type": Honoured("reader.type", choice({"local": "local"})),
    "dataset_type": Honoured("reader.dataset_type", name),
    "disabled": Honoured("reader.disabled", boolean),
    "instance_data_dir": Honoured("reader.directory", location),
    "conditioning_data": Honoured("dataset.conditioning_ids", names),
    "caption_strategy": Honoured("dataset.caption_strategy", _captions, accepts_null=True),
    "instance_prompt": Honoured("dataset.instance_prompt", text),
    "resolution": Honoured("dataset.resolution", number(above=0, below=1e6)),
    "resolution_type": Honoured("dataset.resolution_type", _resolution_type),
    "repeats": Honoured("dataset.repeats", integer()),
    "cache_dir_vae": Honoured("reader.cache_dir", location),
    "crop": Honoured("reader.crop", crop),
    "crop_style": Unused("the crop is always in the centre", True, ("center", "centre")),
    "crop_aspect": Unused("buckets keep the aspect of their clips", True, ("preserve",)),
    "conditioning": Unused("nothing is generated; start frames can be taken from the clips when checking"),
    "conditioning_type": Unused("a conditioning dataset always holds start frames"),
    "source_dataset_id": Unused("clips name their start frames through conditioning_data"),
    "only_instance_prompt": Honoured("reader.only_instance_prompt", boolean),
    "prepend_instance_prompt": Honoured("dataset.prepend_instance_prompt", boolean),
    "probability": Unused("every dataset is used in full", True, (1,)),
    "max_num_samples": Honoured("dataset.max_samples", integer(at_least=1)),
    "train_batch_size": Unused("the batch size is the same for all datasets", True),
    "disable_multiline_split": Honoured("reader.whole_captions", boolean),
    "minimum_aspect_ratio": Honoured("dataset.min_aspect", number(above=0)),
    "maximum_aspect_ratio": Honoured("dataset.max_aspect", number(above=0)),
    "minimum_image_size": Honoured("dataset.min_size", number(at_least=0)),
    "maximum_image_size": Unused("clips are resized to their bucket"),
    "target_downsample_size": Unused("clips are resized to their bucket"),
    "disable_vae_cache": Refused("SimpleTuner has removed this key"),
} | dict.fromkeys(
    _SILENT_DATASET_KEYS.split(),
    Unused(harmless=(False, "")),
)
"""Keys of a dataset in multidatabackend.json, the `video` block aside."""

SKIPPED_DATASET_TYPES = frozenset({"text_embeds", "image_embeds", "conditioning_image_embeds", "distillation_cache"})
"""Kinds of dataset that only name SimpleTuner's caches."""
