"""The configuration of a mended dataset: the user's own keys, with the new folders in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from studio.core.assets import TINY
from studio.core.config import PUBLISHED_MODEL, DataConfig, DatasetConfig
from studio.core.data.bucket import MODEL_FPS
from studio.core.data.frame_rate import is_same_rate
from studio.core.data.mend.names import FreeNames
from studio.core.data.mend.types import MendKind, MendPlan
from studio.core.jsonc import JsonValue
from studio.core.simpletuner import CONFIG_NAME, DATASETS_NAME, Project
from studio.core.simpletuner_datasets import resolve_path
from studio.core.simpletuner_keys import ALIASES, CONFIG_KEYS, DATASET_KEYS, VIDEO_KEYS

RECORD_NAME = "mends.json"

_PLACES = ("output_dir",)
_PLACES_OF_DATASETS = ("instance_data_dir", "cache_dir_vae", "cache_dir")
_MAY_BE_PLACES = (
    "pretrained_model_name_or_path", "init_lora", "cache_dir", "user_prompt_library", "webhook_config",
)  # fmt: skip
"""Keys of config.json that hold a path, or the name of something elsewhere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Home:
    """Where the clips of a dataset and their start frames go."""

    clips: str
    """Relative to the new folder, or the absolute path of clips that stay where they are."""
    start_frames_id: str | None
    """The dataset of the start frames; None where there are none. No two datasets of clips share one."""
    start_frames: str
    has_text_captions: bool
    """True when captions are text files beside the clips."""
    prompt: str
    """What the configuration puts before the captions, so that it is not written into their files."""


def homes(plan: MendPlan) -> dict[str, Home]:
    """The home of every dataset of clips that has any in the plan, by its id."""
    data = plan.project.run.data
    folders, ids = FreeNames(CONFIG_NAME, DATASETS_NAME, RECORD_NAME), FreeNames(*data.by_id)
    planned = {clip.pair.dataset_id for clip in plan.clips}
    found: dict[str, Home] = {}
    given: set[str | None] = set()
    for dataset in data.datasets:
        if dataset.kind != "video" or (plan.clips and dataset.id not in planned):
            continue
        images = next((name for name in dataset.conditioning_ids if name not in given), None)
        place = data.by_id[images].directory if images else dataset.directory
        if images is None and dataset.is_i2v:
            images = ids.take(f"{dataset.id}-start-frames")
        given.add(images)
        found[dataset.id] = Home(
            clips=folders.take(dataset.id.replace("/", "_")) if plan.clips else str(dataset.directory),
            start_frames_id=images,
            start_frames=(folders.take(images.replace("/", "_")) if plan.clips else str(place)) if images else "",
            has_text_captions=dataset.caption_strategy == "textfile" or _loses_its_captions(dataset, plan),
            prompt=_prompt(dataset),
        )
    return found


def _prompt(dataset: DatasetConfig) -> str:
    return f"{dataset.instance_prompt} " if dataset.prepend_instance_prompt else ""


def _loses_its_captions(dataset: DatasetConfig, plan: MendPlan) -> bool:
    """True when captions that are made from file names would be others under the new names."""
    return dataset.caption_strategy == "filename" and any(
        clip.captions != (_prompt(dataset) + clip.name.split("/")[-1].replace("_", " "),)
        for clip in plan.clips
        if clip.pair.dataset_id == dataset.id
    )


def new_config(plan: MendPlan) -> dict[str, JsonValue]:
    """config.json: the known keys of the user's own, or for a project without one what a run of it takes.

    Whoever chose another rate than the model's means it: `framerate` keeps it, also for clips that come later.
    """
    data, choice = plan.project.run.data, plan.choice
    config = _config(plan.project)
    if MendKind.FRAME_RATE in choice.kinds and not data.framerate and not is_same_rate(choice.frame_rate, MODEL_FPS):
        config["framerate"] = choice.frame_rate
    return config


def _config(project: Project) -> dict[str, JsonValue]:
    written, run = project.written, project.run
    if written.config is None:
        return {
            "model_family": "longcat_video",
            **({"model_flavour": "final"} if run.model.source == PUBLISHED_MODEL else {}),
            "model_type": "lora",
            "data_backend_config": DATASETS_NAME,
            "output_dir": str(run.output_dir),
            "aspect_bucket_alignment": run.data.aspect_bucket_alignment,
            "train_batch_size": run.data.train_batch_size,
            "gradient_checkpointing": run.model.gradient_checkpointing,
            "lora_rank": run.lora.rank,
            "learning_rate": run.optim.learning_rate,
            "lr_scheduler": run.optim.lr_scheduler,
            "max_train_steps": run.optim.max_train_steps or 0,
            "num_train_epochs": run.optim.num_train_epochs,
            "seed": run.seed,
        }
    config = _known(written.config, CONFIG_KEYS)
    for key in _PLACES:
        config |= _absolute(config, key, written.folder)
    for key in _MAY_BE_PLACES:
        value = config.get(key)
        if isinstance(value, str) and value not in ("", TINY) and resolve_path(value, written.folder).exists():
            config |= _absolute(config, key, written.folder)
    return config | {"data_backend_config": DATASETS_NAME}


def new_datasets(plan: MendPlan, where: Mapping[str, Home]) -> list[JsonValue]:
    """multidatabackend.json: the user's list with the new folders; datasets that lost all clips are disabled."""
    found, datasets = plan.project.written.datasets, plan.project.run.data.datasets
    owners = {home.start_frames_id: home for home in where.values()}
    if found.items:
        by_position = dict(zip(found.positions, datasets, strict=True))
        entries = [(by_position.get(i), _own_item(item, found.folder)) for i, item in enumerate(found.items)]
    else:
        entries = [(dataset, _fresh_item(dataset)) for dataset in datasets]
    items: list[JsonValue] = []
    for dataset, item in entries:
        if dataset is None:
            items += [item] if item else []
        elif dataset.kind == "conditioning":
            home = owners.get(dataset.id)
            items += [item | {"id": dataset.id, "instance_data_dir": home.start_frames}] if home else []
        elif dataset.id in where:
            items += _items_of_clips(item, dataset, where[dataset.id], plan.project.run.data)
        else:
            items.append(item | {"disabled": True})
    return items


def _items_of_clips(
    item: dict[str, JsonValue], dataset: DatasetConfig, home: Home, data: DataConfig
) -> list[JsonValue]:
    """A dataset of clips, with one of start frames behind it where it had none of its own."""
    item = item | {"id": dataset.id, "instance_data_dir": home.clips}
    item.pop("conditioning_data", None)
    if home.has_text_captions:
        item["caption_strategy"] = "textfile"
    if home.start_frames_id is None:
        return [item]
    item["conditioning_data"] = [home.start_frames_id]
    if home.start_frames_id in data.by_id:
        return [item]
    images: dict[str, JsonValue] = {
        "id": home.start_frames_id,
        "type": "local",
        "dataset_type": "conditioning",
        "instance_data_dir": home.start_frames,
        "caption_strategy": None,
        "resolution": dataset.resolution,
        "resolution_type": dataset.resolution_type,
    }
    return [item, images]


def _fresh_item(dataset: DatasetConfig) -> dict[str, JsonValue]:
    """The dataset of a plain folder as an entry; folders and start frames are filled in later."""
    item: dict[str, JsonValue] = {"id": dataset.id, "type": "local", "dataset_type": dataset.kind}
    item |= {"caption_strategy": dataset.caption_strategy}
    item |= {"resolution": dataset.resolution, "resolution_type": dataset.resolution_type}
    if dataset.kind == "video":
        item["video"] = {"num_frames": dataset.num_frames, "is_i2v": dataset.is_i2v}
    return item


def _own_item(written: JsonValue, folder: Path) -> dict[str, JsonValue]:
    """The known keys of an entry, paths made absolute; empty for what is no entry."""
    if not isinstance(written, dict):
        return {}
    item = _known(written, {**DATASET_KEYS, **VIDEO_KEYS, "video": None})
    video = item.get("video")
    if isinstance(video, dict):
        item["video"] = _known(video, VIDEO_KEYS)
    for key in _PLACES_OF_DATASETS:
        item |= _absolute(item, key, folder)
    return item


def _known(members: Mapping[str, JsonValue], table: Mapping[str, object]) -> dict[str, JsonValue]:
    """The members that a table knows, each once, without dashes before their names."""
    found: dict[str, tuple[str, JsonValue]] = {}
    for written, value in members.items():
        bare = written.lstrip("-")
        if ALIASES.get(bare, bare) in table:
            found.setdefault(ALIASES.get(bare, bare), (bare, value))
    return dict(found.values())


def _absolute(members: Mapping[str, JsonValue], key: str, folder: Path) -> dict[str, JsonValue]:
    """The member `key` as an absolute path; nothing where there is none."""
    value = members.get(key)
    if not isinstance(value, str) or not value.strip() or "://" in value:
        return {}
    return {key: str(resolve_path(value, folder).absolute())}
