"""Every key that a user of the guide or of SimpleTuner writes is honoured, noticed or refused; none is unknown."""

import json
import re
from pathlib import Path

import pytest

from studio.core.simpletuner import read_project
from studio.core.simpletuner_keys import ALIASES, CONFIG_KEYS, DATASET_KEYS, VIDEO_KEYS, Refused, Unused
from studio.core.types import IssueCode, Severity

HERE = Path(__file__).parent

CONFIG = """
model_family model_flavour model_type train_batch_size gradient_checkpointing lora_rank learning_rate
validation_resolution validation_num_video_frames validation_num_inference_steps validation_guidance
validation_using_datasets eval_dataset_id aspect_bucket_alignment attention_implementation attention_mechanism
output_dir data_backend_config musubi_blocks_to_swap musubi_block_swap_device base_model_precision
validation_steps validation_step_interval checkpointing_steps checkpoint_step_interval lora_alpha lora_dropout
lora_init_type lora_type lora_format peft_lora_target_modules init_lora max_train_steps num_train_epochs
checkpoint_epoch_interval checkpoints_total_limit checkpointing_rolling_steps resume_from_checkpoint
validation_on_startup disable_benchmark validation_prompt validation_prompt_library user_prompt_library
validation_input validation_negative_prompt validation_seed validation_randomize validation_strength
validation_disable_unconditional validation_noise_scheduler validation_preview num_eval_images eval_steps_interval
evaluation_type eval_loss_disable mixed_precision base_model_default_dtype quantize_via optimizer lr_scheduler
lr_warmup_steps lr_end gradient_accumulation_steps max_grad_norm seed use_ema ema_decay ema_device
caption_dropout_probability caption_strategy gradient_checkpointing_backend gradient_checkpointing_interval
gradient_checkpointing_segment_stride gradient_checkpointing_offload_attention enable_group_offload
group_offload_type group_offload_blocks_per_group group_offload_use_stream group_offload_to_disk_path
group_offload_text_encoder group_offload_vae ramtorch ramtorch_target_modules model_cpu_offload
flow_schedule_shift flow_schedule_auto_shift flow_sigmoid_scale flow_use_uniform_schedule flow_use_beta_schedule
flow_custom_timesteps resolution resolution_type minimum_image_size aspect_bucket_rounding framerate vae_dtype
vae_batch_size vae_enable_tiling vae_enable_slicing vae_cache_ondemand vae_cache_disable keep_vae_loaded
offload_during_startup report_to push_to_hub hub_model_id push_checkpoints_to_hub tracker_project_name
tracker_run_name allow_dataset_oversubscription
"""
DATASET = """
id type dataset_type disabled disable instance_data_dir conditioning_data conditioning_type conditioning
source_dataset_id caption_strategy instance_prompt prepend_instance_prompt only_instance_prompt caption_shuffle
resolution resolution_type minimum_image_size maximum_image_size target_downsample_size minimum_aspect_ratio
maximum_aspect_ratio crop crop_style crop_aspect crop_aspect_buckets max_upscale_threshold cache_dir_vae cache_dir
repeats probability start_epoch end_epoch start_step end_step max_num_samples train_batch_size disable_validation
is_regularisation_data slider_strength timestep_sampling_offset vae_cache_clear_each_epoch vae_cache_ondemand
vae_cache_disable skip_file_discovery metadata_backend preserve_data_backend_cache disable_vae_cache text_embeds
image_embeds disable_multiline_split default
"""
VIDEO = "num_frames min_frames max_frames bucket_strategy frame_interval is_i2v"
"""The keys of config.json, of a dataset in multidatabackend.json and of its `video` block.

Source: SimpleTuner's documentation of its options and of its data loader, as of 2026-08-22 (bc8e6ab7738c).
"""


@pytest.mark.parametrize(
    ("keys", "table"), [(CONFIG, CONFIG_KEYS), (DATASET, DATASET_KEYS), (VIDEO, VIDEO_KEYS)], ids=lambda _: ""
)
def test_no_key_is_unknown(keys, table):
    assert [key for key in keys.split() if ALIASES.get(key, key) not in table] == []


def test_every_key_of_the_guides_files_is_in_the_lists_above():
    config = (HERE / "guide_config.jsonc").read_text()
    datasets = (HERE / "guide_multidatabackend.jsonc").read_text()
    assert set(re.findall(r'"(\w+)"\s*:', config)) <= set(CONFIG.split())
    assert set(re.findall(r'"(\w+)"\s*:', datasets)) <= {*DATASET.split(), *VIDEO.split()}


def test_all_keys_at_once_are_each_said_in_words_of_their_own(tmp_path):
    """The value 1 suits some keys and not others: whatever it is, nothing is unknown and nothing is passed over."""
    clips = {key: 1 for key in DATASET.split() if key not in ("disable", "disabled")}
    clips |= {"id": "clips", "type": "local", "dataset_type": "video", "instance_data_dir": ".", "video": {}}
    clips["video"] = dict.fromkeys(VIDEO.split(), 1)
    (tmp_path / "multidatabackend.json").write_text(json.dumps([clips]))
    (tmp_path / "config.json").write_text(json.dumps(dict.fromkeys(CONFIG.split(), 1)))
    project = read_project(tmp_path)
    assert not [issue for issue in project.issues if issue.code is IssueCode.KEY_UNKNOWN]
    said = {issue.subject for issue in project.issues}
    for prefix, keys, table in (("", CONFIG, CONFIG_KEYS), ("clips.", DATASET, DATASET_KEYS)):
        for key in keys.split():
            rule = table[ALIASES.get(key, key)]
            if isinstance(rule, Unused | Refused) and 1 not in rule.harmless:
                assert prefix + ALIASES.get(key, key) in said


@pytest.mark.parametrize(
    ("written", "meant"),
    [("framrate", "framerate"), ("checkpoint_steps", "checkpointing_steps"), ("resolution_typ", "resolution_type")],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(tmp_path, written, meant):
    (tmp_path / "config.json").write_text(json.dumps({written: 1}))
    (tmp_path / "multidatabackend.json").write_text("[]")
    (issue,) = (issue for issue in read_project(tmp_path).issues if issue.code is IssueCode.KEY_UNKNOWN)
    assert (issue.subject, issue.severity) == (written, Severity.WARNING)
    assert issue.remedy == f"Did you mean {meant}?"
