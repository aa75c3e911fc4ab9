"""From SimpleTuner's files, or a plain folder, to the configuration of a run; assumptions are said aloud."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from studio.core.assets import TINY
from studio.core.config import (
    PUBLISHED_MODEL,
    DataConfig,
    DatasetConfig,
    LoraSettings,
    ModelConfig,
    NoiseConfig,
    OptimConfig,
    RunConfig,
    SharingConfig,
    ValidationConfig,
)
from studio.core.config_json import with_absolute_paths
from studio.core.errors import ConfigError
from studio.core.jsonc import Document, JsonPath, JsonValue, parse_jsonc, read_jsonc
from studio.core.remedy import CONFIG_NAME, DATASETS_NAME
from studio.core.simpletuner_datasets import Datasets, read_datasets, resolve_path
from studio.core.simpletuner_keys import CONFIG_KEYS
from studio.core.simpletuner_reading import Reading, Sections
from studio.core.types import Issue, IssueCode, Severity

CLIPS_FOLDER = "clips"
START_FRAMES_FOLDER = "start_frames"
DEFAULT_OUTPUT = Path("runs")
"""In the working directory: a project's own folder may be read-only."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What stands in the files of a project, for whoever writes them anew."""

    folder: Path
    """What relative paths in `config` start from: the folder of config.json, or the plain one."""
    config: Mapping[str, JsonValue] | None
    """config.json; None where there is none."""
    datasets: Datasets
    """multidatabackend.json; without items where there is none."""
    text: str = ""
    """config.json as it is written."""


@dataclass(frozen=True, slots=True)
class Project:
    """A configuration, and what its owner should know about how it was read."""

    run: RunConfig
    issues: tuple[Issue, ...]
    written: Written


def read_project(path: Path) -> Project:
    """The project at a config.json, a multidatabackend.json or a plain folder.

    A folder with config.json or multidatabackend.json is read through it (config.json first). Values that
    cannot be used are issues of severity error, all of them collected; the default stands in for each. Paths in
    the run are absolute, so that a report on its data and a run of it name files alike.

    Raises:
        ConfigError: there is nothing at the path, another kind of file, or JSON that is not readable.
    """
    try:
        project = _read_path(path)
        return replace(project, run=with_absolute_paths(project.run))
    except OSError as error:
        raise ConfigError(
            f"{error.filename or path} cannot be looked at: {error.strerror}.", "Check its permissions."
        ) from error


def _read_path(path: Path) -> Project:
    if path.is_file() and path.suffix.lower() not in (".json", ".jsonc"):
        raise ConfigError(
            f"{path.name} is neither a folder nor a configuration.",
            f"Give the folder of the dataset, its {CONFIG_NAME} or its {DATASETS_NAME}.",
        )
    if not path.is_dir():
        return _read_document(read_jsonc(path), path.parent)
    for name in (CONFIG_NAME, DATASETS_NAME):
        if (path / name).is_file():
            return _read_document(read_jsonc(path / name), path)
    return _read_folder(path)


def _read_document(document: Document, folder: Path) -> Project:
    """A list is a multidatabackend.json, an object a config.json."""
    if isinstance(document.value, dict):
        return _read_config(document, document.value, folder)
    if not isinstance(document.value, list):
        raise ConfigError(
            f"{document.name} holds neither an object (config.json) nor a list (multidatabackend.json).",
            "Check that this is the right file.",
        )
    data = DataConfig(datasets=())
    found = read_datasets(document, folder=folder, defaults={}, alignment=data.aspect_bucket_alignment)
    reading = Reading(Document(name=document.name, value=None))
    run = _assemble(reading, {}, found, folder)
    written = Written(folder=folder, config=None, datasets=found)
    return Project(run, found.issues + tuple(reading.issues), written)


def _read_config(document: Document, members: dict[str, JsonValue], folder: Path) -> Project:
    reading = Reading(document)
    sections = reading.object(members, (), CONFIG_KEYS)
    alignment = sections.get("data", {}).get("aspect_bucket_alignment", DataConfig(datasets=()).aspect_bucket_alignment)
    found = _find_datasets(reading, sections, folder, alignment)
    run = _assemble(reading, sections, found, folder)
    written = Written(folder=folder, config=members, datasets=found, text=document.text)
    return Project(run, tuple(reading.issues) + found.issues, written)


def read_texts(config: str, datasets: str, beside: Written) -> Project:
    """The project that these texts of config.json and multidatabackend.json make in place of the files of `beside`.

    Nothing is read from files, and `data_backend_config` names nothing. A text that is not JSON is an issue, as is
    everything else that is wrong.
    """
    issues: list[Issue] = []
    members = _parsed(config, CONFIG_NAME, {}, issues)
    reading = Reading(members)
    sections = reading.object(members.value, (), CONFIG_KEYS)
    sections.get("reader", {}).pop("data_backend_config", None)
    alignment = sections.get("data", {}).get("aspect_bucket_alignment", DataConfig(datasets=()).aspect_bucket_alignment)
    found = read_datasets(
        _parsed(datasets, DATASETS_NAME, [], issues),
        folder=beside.datasets.folder if beside.datasets.items else beside.folder,
        defaults=sections.get("defaults", {}),
        alignment=alignment,
    )
    run = with_absolute_paths(_assemble(reading, sections, found, beside.folder))
    written = Written(
        folder=beside.folder,
        config=members.value if isinstance(members.value, dict) else {},
        datasets=found,
        text=config,
    )
    # Of a text that is not JSON there is no more to say.
    is_read = all(issue.subject != DATASETS_NAME for issue in issues)
    return Project(run, (*issues, *reading.issues, *(found.issues if is_read else ())), written)


def _parsed(text: str, name: str, instead: JsonValue, issues: list[Issue]) -> Document:
    """The document of a text; of one that is not JSON an issue, and `instead` in its place."""
    try:
        return parse_jsonc(text, name=name)
    except ConfigError as error:
        issues.append(
            Issue(
                code=IssueCode.VALUE_INVALID,
                severity=Severity.ERROR,
                subject=name,
                message=error.message,
                remedy=error.remedy,
            )
        )
        return Document(name=name, value=instead)


def _find_datasets(reading: Reading, sections: Sections, folder: Path, alignment: int) -> Datasets:
    """The datasets that config.json names, or those in the file beside it."""
    nothing = Datasets(datasets=(), eval_ids=(), issues=())
    key, written = "data_backend_config", sections.get("reader", {}).get("data_backend_config")
    place = folder / DATASETS_NAME if written is None else resolve_path(written, folder)
    if not place.is_file() and (folder / place.name).is_file():
        place = folder / place.name
        reading.notice((key,), key, f"{written} is not there; the {place.name} beside this file is taken.")
    elif written is None and place.is_file():
        reading.notice((), key, f"{key} is not set; the {DATASETS_NAME} beside this file is taken.")
    elif not place.is_file():
        what = f"{key} is not set." if written is None else f"{key} is {written}, which is not a file."
        reading.error(() if written is None else (key,), key, what, f"Write the path of your {DATASETS_NAME}.")
        return nothing
    try:
        document = read_jsonc(place)
    except ConfigError as error:
        reading.error((key,), key, error.message, error.remedy)
        return nothing
    defaults = sections.get("defaults", {})
    return read_datasets(document, folder=place.parent, defaults=defaults, alignment=alignment)


def _assemble(reading: Reading, sections: Sections, found: Datasets, folder: Path) -> RunConfig:
    """The run; what was not written keeps the defaults of `config.py`."""
    run = sections.get("run", {})
    output = run.get("output_dir")
    if output is None:
        reading.notice((), "output_dir", f"output_dir is not set: runs are folders in ./{DEFAULT_OUTPUT}.")
    return RunConfig(
        model=_model(reading, sections, folder),
        data=DataConfig(datasets=_held_out(sections, found), **sections.get("data", {})),
        lora=_lora(sections, folder),
        optim=_optim(reading, sections.get("optim", {})),
        validation=_validation(reading, sections, found),
        noise=NoiseConfig(**sections.get("noise", {})),
        sharing=_sharing(reading, sections.get("sharing", {})),
        output_dir=DEFAULT_OUTPUT if output is None else resolve_path(output, folder),
        **{field: value for field, value in run.items() if field != "output_dir"},
    )


def _model(reading: Reading, sections: Sections, folder: Path) -> ModelConfig:
    """The model; of memory settings that exclude one another, the group offload is left out."""
    source, fields = _model_source(reading, sections, folder), sections.get("model", {})
    moves = fields.get("blocks_to_swap") or fields.get("group_offload")
    if fields.get("keep_attention") and not moves and not fields.get("gradient_checkpointing", True):
        key = "gradient_checkpointing_keep_attention"
        reading.notice((key,), key, f"{key} does nothing without gradient_checkpointing: all is kept anyway.")
    if "block_swap_device" in fields and not fields.get("blocks_to_swap"):
        key = "musubi_block_swap_device"
        reading.notice((key,), key, f"{key} does nothing without musubi_blocks_to_swap.")
    try:
        return ModelConfig(source=source, **fields)
    except ConfigError as error:
        key = "enable_group_offload"
        reading.error((key,), key, error.message, error.remedy)
        return ModelConfig(source=source, **{**fields, "group_offload": False})


def _model_source(reading: Reading, sections: Sections, folder: Path) -> str:
    """`tiny`, a hub id, or the absolute or config-relative path of a folder."""
    settings = sections.get("reader", {})
    written = settings.get("model")
    if written is None or written == TINY:
        return written or settings.get("flavour", PUBLISHED_MODEL)
    beside = resolve_path(written, folder)
    if beside.is_dir() or (_HUB_ID.fullmatch(written) and not written.startswith(".")):
        return str(beside) if beside.is_dir() else written
    key = "pretrained_model_name_or_path"
    what = f"{key} is {written}, which is neither a folder here nor a hub id."
    reading.error((key,), key, what, f'Write a checkpoint\'s folder, "{PUBLISHED_MODEL}" or "{TINY}".')
    return str(beside)


def _lora(sections: Sections, folder: Path) -> LoraSettings:
    """The adapter; a LoRA to begin with is looked for beside the configuration."""
    written = sections.get("reader", {}).get("init_lora")
    init_from = None if written is None else resolve_path(written, folder)
    return LoraSettings(init_from=init_from, **sections.get("lora", {}))


def _optim(reading: Reading, fields: Mapping[str, Any]) -> OptimConfig:
    """Steps and epochs sorted out: 0 steps means to obey the epochs, and steps win over epochs."""
    steps, epochs = fields.get("max_train_steps") or None, fields.get("num_train_epochs")
    if steps and epochs:
        what = f"max_train_steps {steps} and num_train_epochs {epochs} are both set; the steps win."
        reading.notice(("max_train_steps",), "max_train_steps", what)
    if steps is None and epochs == 0:
        what = "max_train_steps and num_train_epochs are both 0, so there is nothing to do."
        reading.error(("num_train_epochs",), "num_train_epochs", what, "Set one of the two above 0.")
    schedule = fields.get("lr_scheduler", OptimConfig().lr_scheduler)
    idle = {
        "lr_end": schedule.startswith("constant"),
        "lr_power": schedule != "polynomial",
        "lr_num_cycles": schedule != "cosine_with_restarts",
        "lr_warmup_steps": schedule == "constant" and fields.get("lr_warmup_steps", 0) > 0,
        "ema_decay": not fields.get("use_ema", False),
    }
    for key, does_nothing in idle.items():
        if key in fields and does_nothing:
            wanting = "without use_ema" if key == "ema_decay" else f"with lr_scheduler {schedule}"
            reading.notice((key,), key, f"{key} does nothing {wanting}.")
    return OptimConfig(**{**fields, "max_train_steps": steps, "num_train_epochs": epochs or 1})


def _sharing(reading: Reading, fields: Mapping[str, Any]) -> SharingConfig:
    key = "hub_model_id"
    if key in fields and not fields.get("push_to_hub"):
        reading.notice((key,), key, f"{key} does nothing by itself without push_to_hub.")
    return SharingConfig(**fields)


def _held_out(sections: Sections, found: Datasets) -> tuple[DatasetConfig, ...]:
    """The datasets, all of those for validation marked, though samples are rendered from one of them."""
    named = {*found.eval_ids, *sections.get("reader", {}).get("eval_dataset_ids", ())}
    return tuple(replace(d, is_eval=d.kind == "video" and d.id in named) for d in found.datasets)


def _validation(reading: Reading, sections: Sections, found: Datasets) -> ValidationConfig:
    """The validation, with an `eval_dataset_id` that exists, or none."""
    key = "eval_dataset_id"
    written = sections.get("reader", {}).get("eval_dataset_ids", ())
    clips = [dataset.id for dataset in found.datasets if dataset.kind == "video"]
    place: JsonPath = (key,)
    for name in written:
        if name in clips:
            continue
        fault = "is not defined" if name not in [d.id for d in found.datasets] else "holds no clips"
        reading.error(
            place,
            key,
            f"{key} names {name}, which {fault}. Datasets of clips: {', '.join(clips) or 'none'}.",
            f"Add a dataset with the id {name}, or name one of these.",
            code=IssueCode.DATASET_UNKNOWN,
            severity=Severity.WARNING,
        )
    known = [name for name in written if name in clips] or list(found.eval_ids)
    if known and not written:
        reading.notice((), key, f"{key} is not set: {known[0]} is taken, because it is of dataset_type eval.")
    if len(known) > 1:
        what = f"Of several validation datasets samples are rendered from the first, {known[0]}; all are held out."
        reading.notice(place, key, what)
    if known and {*clips} == {*known, *found.eval_ids}:
        what = f"there are no clips but those of {', '.join(clips)}, so samples are rendered from what is trained on."
        reading.notice(place, key, what)
    fields = sections.get("validation", {})
    if not known and not fields.get("using_datasets", True):
        key = "validation_using_datasets"
        reading.notice((key,), key, f"{key} is false and there is no validation dataset: no samples are rendered.")
    return ValidationConfig(eval_dataset_id=known[0] if known else None, **fields)


def _read_folder(folder: Path) -> Project:
    """A folder without configuration: `clips/` and `start_frames/`, or everything side by side."""
    clips, start_frames = folder / CLIPS_FOLDER, folder / START_FRAMES_FOLDER
    if clips.is_dir() and start_frames.is_dir():
        datasets = (
            DatasetConfig(id=CLIPS_FOLDER, kind="video", directory=clips, conditioning_ids=(START_FRAMES_FOLDER,)),
            DatasetConfig(id=START_FRAMES_FOLDER, kind="conditioning", directory=start_frames, caption_strategy=None),
        )
        layout = f"clips and captions are in {CLIPS_FOLDER}/, start frames in {START_FRAMES_FOLDER}/"
    else:
        directory = clips if clips.is_dir() else folder
        datasets = (DatasetConfig(id=folder.resolve().name or "clips", kind="video", directory=directory),)
        layout = "clips, start frames and captions are told apart by their endings and paired by name"
    first = datasets[0]
    message = (
        f"{folder.resolve().name} has no {CONFIG_NAME}: {layout}. Defaults: resolution {first.resolution:g}, "
        f"{first.num_frames} frames, or for shorter clips the most of the form 4k+1 that they hold."
    )
    issue = Issue(code=IssueCode.KEY_NORMALISED, severity=Severity.NOTICE, subject=CONFIG_NAME, message=message)
    reading = Reading(Document(name=folder.name, value=None))
    found = Datasets(datasets=datasets, eval_ids=(), issues=())
    run = _assemble(reading, {}, found, folder)
    return Project(run, (issue, *reading.issues), Written(folder=folder, config=None, datasets=found))
