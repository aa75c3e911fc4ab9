"""What each setting means, in a line, with its default and its value in a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from studio.core import config as settings
from studio.core.config import DatasetConfig, RunConfig
from studio.core.remedy import CONFIG_NAME, DATASETS_NAME, shown
from studio.core.simpletuner_keys import ALIASES, CONFIG_KEYS, DATASET_KEYS, VIDEO_KEYS, Honoured, Rule

_SECTIONS: Mapping[str, Any] = {
    "model": settings.ModelConfig,
    "data": settings.DataConfig,
    "lora": settings.LoraSettings,
    "optim": settings.OptimConfig,
    "noise": settings.NoiseConfig,
    "validation": settings.ValidationConfig,
    "sharing": settings.SharingConfig,
    "run": RunConfig,
    "dataset": DatasetConfig,
    "defaults": DatasetConfig,
}

MEANINGS: Mapping[str, str] = {
    "model_family": "Always longcat_video.",
    "model_flavour": "final: the published checkpoint.",
    "model_type": "Always lora.",
    "pretrained_model_name_or_path": "The checkpoint: its folder, a hub id, or tiny.",
    "attention_mechanism": "auto, dense or sparse; auto takes sparse where that is faster.",
    "gradient_checkpointing": "Computes blocks twice in place of keeping them: much less memory, a third more time.",
    "gradient_checkpointing_keep_attention": "Keeps attention from being computed twice; left out, where it fits.",
    "base_model_precision": "no_change, int8-quanto or fp8-torchao: weights of one byte.",
    "musubi_blocks_to_swap": "So many blocks wait in main memory: less memory on the GPU.",
    "musubi_block_swap_device": "Where swapped blocks wait.",
    "enable_group_offload": "Every layer waits in main memory: least memory, slow.",
    "vae_enable_tiling": "Samples are decoded in tiles: less memory.",
    "mixed_precision": "bf16, no (fp32) or auto.",
    "data_backend_config": "The file that lists the datasets.",
    "aspect_bucket_alignment": "Pixels that sizes are multiples of.",
    "train_batch_size": "Clips of one batch.",
    "framerate": "Frames a second that clips are converted to; left out, their frames as they are.",
    "resolution": "Edge in pixels, or megapixels with resolution_type area.",
    "resolution_type": "pixel, area, pixel_area or published: how resolution gives a size.",
    "caption_strategy": "textfile, filename or instanceprompt: where captions come from.",
    "instance_prompt": "The caption for instanceprompt, or what goes before captions.",
    "minimum_image_size": "Smaller clips are left out.",
    "lora_rank": "How much the LoRA can hold.",
    "lora_alpha": "Strength of the LoRA is this over the rank; left out, 1.",
    "lora_dropout": "Share of the LoRA's inputs that is dropped.",
    "lora_init_type": "default or gaussian: how the LoRA begins.",
    "init_lora": "A LoRA to begin with.",
    "learning_rate": "How far one step goes.",
    "max_train_steps": "How many steps; 0 obeys num_train_epochs.",
    "num_train_epochs": "How often all clips are seen, where max_train_steps is 0.",
    "lr_scheduler": "How the learning rate goes: constant, constant_with_warmup, linear, cosine, "
    "cosine_with_restarts or polynomial.",
    "lr_warmup_steps": "Steps until the learning rate is reached.",
    "lr_end": "Where a falling learning rate ends.",
    "lr_power": "Of the schedule polynomial.",
    "lr_num_cycles": "Of the schedule cosine_with_restarts.",
    "gradient_accumulation_steps": "Batches of one step.",
    "adam_beta1": "Memory of AdamW for the gradient.",
    "adam_beta2": "Memory of AdamW for its square.",
    "adam_epsilon": "Keeps AdamW from dividing by zero.",
    "adam_weight_decay": "Pulls the LoRA towards zero.",
    "caption_dropout_probability": "Share of clips shown with an empty caption.",
    "use_ema": "Samples and LoRA are a moving average of the weights.",
    "ema_decay": "How slowly that average moves.",
    "flow_schedule_shift": "Moves training to noisier levels; left out, the checkpoint's own.",
    "flow_sigmoid_scale": "Noise levels around the middle in place of uniform ones.",
    "max_grad_norm": "Longer gradients are shortened to this.",
    "checkpoint_step_interval": "Steps between two checkpoints.",
    "checkpoints_total_limit": "How many checkpoints are kept.",
    "eval_dataset_id": "The dataset that is held out, for samples and held-out loss.",
    "validation_using_datasets": "Samples come from the clips that are trained on where none are held out.",
    "num_eval_images": "Samples at a time.",
    "validation_step_interval": "Steps between two samples.",
    "eval_steps_interval": "Steps between two looks at the held-out loss; left out, as for samples.",
    "eval_loss_disable": "No held-out loss.",
    "validation_resolution": "Size of samples, 480x832; left out, the checkpoint's own.",
    "validation_num_video_frames": "Frames of samples, 4k+1.",
    "validation_num_inference_steps": "Denoising steps of samples.",
    "validation_guidance": "How closely samples follow their caption.",
    "validation_negative_prompt": "What samples should not show.",
    "validation_seed": "Noise of samples.",
    "output_dir": "Where runs are written.",
    "seed": "The same seed repeats a run.",
    "report_to": "tensorboard or trackio: who else is given the losses.",
    "push_to_hub": "Uploads the LoRA when the run has finished.",
    "hub_model_id": "Name of that upload.",
    "num_frames": "Most frames of a clip, 4k+1.",
    "is_i2v": "Clips are trained with a start frame.",
    "min_frames": "Clips with fewer frames are left out.",
    "max_frames": "Clips with more frames are left out.",
    "bucket_strategy": "Always resolution_frames: clips of one size and length go together.",
    "id": "Name of the dataset.",
    "type": "Always local.",
    "dataset_type": "video for clips, conditioning for start frames, eval for clips held out.",
    "disabled": "Leaves the dataset out.",
    "instance_data_dir": "Folder of the files.",
    "conditioning_data": "The dataset of the start frames.",
    "repeats": "Extra passes over this dataset in an epoch.",
    "cache_dir_vae": "Where latents are kept; left out, beside the runs.",
    "crop": "Read, and said how clips are cropped.",
    "only_instance_prompt": "The same as caption_strategy instanceprompt.",
    "prepend_instance_prompt": "Captions begin with instance_prompt.",
    "max_num_samples": "Clips after so many are left out.",
    "disable_multiline_split": "A caption file is one caption, not one a line.",
    "minimum_aspect_ratio": "Narrower clips are left out.",
    "maximum_aspect_ratio": "Wider clips are left out.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyHelp:
    """A key of one of the two files."""

    file: str
    key: str
    """As it is written; `video.num_frames` for one of the block `video`."""
    rule: Rule
    meaning: str
    """Empty for one that has no effect."""
    default: str
    """As one types it; empty where there is none."""
    value: str
    """In this run, of several datasets each once; empty where nothing is set."""


def help_of(run: RunConfig) -> tuple[KeyHelp, ...]:
    """Every known key, those that have an effect first, with its value in `run`."""
    tables = ((CONFIG_NAME, "", CONFIG_KEYS), (DATASETS_NAME, "", DATASET_KEYS), (DATASETS_NAME, "video.", VIDEO_KEYS))
    found = [
        KeyHelp(
            file=file,
            key=f"{prefix}{key}",
            rule=rule,
            meaning=MEANINGS.get(key, "") if isinstance(rule, Honoured) else "",
            default=_default(rule),
            value=_value(rule, run),
        )
        for file, prefix, table in tables
        for key, rule in table.items()
    ]
    return tuple(sorted(found, key=lambda key: not isinstance(key.rule, Honoured)))


def matching(keys: Sequence[KeyHelp], words: str) -> Iterator[KeyHelp]:
    """Those with every one of the words in name, other names or meaning."""
    others: dict[str, str] = {}
    for alias, name in ALIASES.items():
        others[name] = f"{others.get(name, '')} {alias}"
    wanted = words.lower().replace('"', "").split()
    for key in keys:
        text = f"{key.key} {others.get(key.key, '')} {key.meaning} {getattr(key.rule, 'why', '')}".lower()
        if all(word in text for word in wanted):
            yield key


def _default(rule: Rule) -> str:
    section, _, name = rule.field.partition(".") if isinstance(rule, Honoured) else ("", "", "")
    field = (
        next((field for field in fields(_SECTIONS[section]) if field.name == name), None)
        if section in _SECTIONS
        else None
    )
    return "" if field is None or field.default is MISSING else _text(field.default)


def _value(rule: Rule, run: RunConfig) -> str:
    section, _, name = rule.field.partition(".") if isinstance(rule, Honoured) else ("", "", "")
    if section == "dataset":
        values = [_text(getattr(dataset, name)) for dataset in run.data.datasets if dataset.kind == "video"]
        return ", ".join(dict.fromkeys(filter(None, values)))
    if section == "reader":
        known = {
            "model": run.model.source,
            "init_lora": run.lora.init_from,
            "eval_dataset_ids": run.validation.eval_dataset_id,
        }
        return _text(known.get(name))
    of = run if section == "run" else getattr(run, section, None)
    return "" if of is None or section == "defaults" else _text(getattr(of, name))


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ("x" if all(isinstance(item, int) for item in value) else ", ").join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if isinstance(value, Path) else shown(value)
