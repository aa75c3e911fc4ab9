"""What mends would change in a dataset: every clip that a mended copy will hold, before anything is written."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from studio.core.config import DataConfig, DatasetConfig
from studio.core.data.bucket import MIN_FRAMES, MODEL_FPS, assign_bucket
from studio.core.data.frame_rate import converted_frames, is_same_rate, is_steady
from studio.core.data.mend.names import FreeNames, check_template, filled_template
from studio.core.data.mend.types import RECODING, MendChoice, MendKind, MendPlan, PlannedClip, frame_rate
from studio.core.errors import ConfigError, DatasetError, MediaError
from studio.core.geometry import bucket_size
from studio.core.simpletuner import Project
from studio.core.types import Clip, DatasetReport, Issue, IssueCode, Pair, Severity

_WRONG_START_FRAME = {IssueCode.START_FRAME_DIFFERS, IssueCode.START_FRAME_BLANK, IssueCode.ASPECT_MISMATCH}
_MENDABLE = {
    IssueCode.START_FRAME_MISSING,
    IssueCode.IMAGE_UNREADABLE,
    IssueCode.CAPTION_MISSING,
    IssueCode.CAPTION_UNREADABLE,
    IssueCode.STEM_DUPLICATE,
}
"""Errors that are no reason to leave a clip out."""
_IMAGE_PIXEL_BYTES = 3
"""Of a PNG: what its pixels take before they are packed."""
_CLIP_PIXEL_BYTES = 0.25
"""Of an encoded clip, for each pixel of each frame."""
_SIZE_STEPS = 8
"""Sizes that are tried until one is its own bucket; two are enough for nearly all."""


def offered_mends(project: Project, report: DatasetReport) -> dict[MendKind, tuple[Pair, ...]]:
    """What each mend would change; those with nothing to do are left out."""
    everything = MendChoice(kinds=frozenset(MendKind))
    wanted = [(pair, _wanted(pair, project, everything)) for pair in report.pairs if not _unusable(pair)]
    offered = {kind: tuple(pair for pair, kinds in wanted if kind in kinds) for kind in MendKind}
    if _is_plain(project):
        offered[MendKind.CONFIG] = report.pairs
    return {kind: pairs for kind, pairs in offered.items() if pairs}


def plan_mends(project: Project, report: DatasetReport, choice: MendChoice) -> MendPlan:
    """Every clip of the mended dataset.

    Raises:
        ConfigError: nothing is chosen, or what cannot go together; a template or a rate that cannot be used.
        DatasetError: no clip needs what is chosen, or none is left.
    """
    _check_choice(project, choice)
    if choice.kinds == {MendKind.CONFIG}:
        return MendPlan(project=project, choice=choice, clips=(), left_out=(), num_bytes=0)
    clips: list[PlannedClip] = []
    left_out: list[tuple[Pair, str]] = []
    num_bytes = 0
    for pair in report.pairs:
        if reason := _unusable(pair):
            left_out.append((pair, reason))
            continue
        try:
            planned = list(_plan_pair(pair, project, choice, left_out))
            num_bytes += sum(_num_bytes(clip) for clip in planned)
            clips += planned
        except MediaError as error:
            left_out.append((pair, error.message))
    if not clips:
        raise DatasetError("No clip would be left after these mends.", "See why each one is left out, or mend less.")
    if not any(clip.changes for clip in clips) and not (MendKind.CONFIG in choice.kinds and _is_plain(project)):
        raise DatasetError("No clip needs the mends that are chosen.", "Choose what is offered for this dataset.")
    named = tuple(_with_free_names(clips))
    return MendPlan(
        project=project,
        choice=choice,
        clips=named,
        left_out=tuple(left_out),
        num_bytes=num_bytes,
    )


def _check_choice(project: Project, choice: MendChoice) -> None:
    if not choice.kinds:
        raise ConfigError("No mend is chosen.", "Choose at least one.")
    if {MendKind.CROP, MendKind.PAD} <= choice.kinds:
        raise ConfigError("Crop and pad cannot go together: both say how frames get their size.", "Choose one.")
    if choice.kinds == {MendKind.CONFIG} and not _is_plain(project):
        raise ConfigError("This dataset has its configuration already.", "Choose another mend.")
    if MendKind.CAPTIONS in choice.kinds:
        check_template(choice.caption_template)
    if MendKind.FRAME_RATE in choice.kinds and not 1 <= choice.frame_rate <= 240:
        raise ConfigError(
            f"{choice.frame_rate:g} is no frame rate that a clip is converted to.",
            f"Give 1 to 240 frames a second; the model plays {MODEL_FPS:g}.",
        )


def _is_plain(project: Project) -> bool:
    """True for a folder without any configuration."""
    return project.written.config is None and not project.written.datasets.items


def _unusable(pair: Pair) -> str:
    """Why a pair cannot be in a mended dataset; empty when it can."""
    return "" if pair.clip and pair.bucket else _reason(pair.name, pair.issues)


def _reason(name: str, issues: Sequence[Issue]) -> str:
    """Why a clip has no bucket: the first of its issues that says so."""
    blocking = (i for i in issues if i.severity is Severity.ERROR or i.code is IssueCode.CLIP_LEFT_OUT)
    return next((i.message for i in blocking if i.code not in _MENDABLE), f"{name} fits no bucket.")


def _dataset(pair: Pair, project: Project) -> DatasetConfig:
    return project.run.data.by_id[pair.dataset_id]


def _wanted(pair: Pair, project: Project, choice: MendChoice) -> frozenset[MendKind]:
    """The chosen mends that a usable pair needs, as it is now."""
    clip, bucket, dataset = pair.clip, pair.bucket, _dataset(pair, project)
    assert clip is not None
    assert bucket is not None
    trained = pair.frame_indices[-1] + 1 if pair.frame_indices else bucket.num_frames
    is_off_size = _bucket_size(clip, dataset, project.run.data) != (clip.height, clip.width)
    needs = {
        MendKind.START_FRAMES: dataset.is_i2v and pair.start_frame is None,
        MendKind.REPLACE_START_FRAMES: any(issue.code in _WRONG_START_FRAME for issue in pair.issues),
        MendKind.SPLIT_SCENES: bool(clip.cuts),
        MendKind.FRAME_RATE: _is_off_rate(clip, project, choice),
        MendKind.TRIM: trained < clip.num_frames,
        MendKind.CROP: is_off_size,
        MendKind.PAD: is_off_size,
        MendKind.CAPTIONS: not pair.captions,
    }
    return frozenset(kind for kind in choice.kinds if needs.get(kind))


def _is_off_rate(clip: Clip, project: Project, choice: MendChoice) -> bool:
    """True when the rate varies, or is another one than chosen.

    The latter does not count where config.json sets `framerate`: clips are converted when they are read.
    """
    read_at = project.run.data.framerate
    return not is_steady(clip) or not (read_at or is_same_rate(clip.fps, choice.frame_rate))


def _bucket_size(clip: Clip, dataset: DatasetConfig, data: DataConfig) -> tuple[int, int]:
    """(height, width) of a bucket that is also the bucket of clips of that very size.

    The size of a clip's bucket, except where rounding gives a clip of that size yet another bucket.
    """
    size = clip.height, clip.width
    for _ in range(_SIZE_STEPS):
        before = size
        size = bucket_size(
            *size, resolution=dataset.resolution, resolution_type=dataset.resolution_type,
            alignment=data.aspect_bucket_alignment,
        )  # fmt: skip
        if size == before:
            break
    return size


def _plan_pair(
    pair: Pair, project: Project, choice: MendChoice, left_out: list[tuple[Pair, str]]
) -> Iterator[PlannedClip]:
    """The clips that a usable pair becomes; scenes that cannot be trained are added to `left_out`."""
    clip = pair.clip
    assert clip is not None
    wanted = _wanted(pair, project, choice)
    fps, frames = clip.fps, range(clip.num_frames)
    if RECODING & wanted and not is_steady(clip):
        wanted |= {MendKind.FRAME_RATE}  # an encoded clip has one rate
    if MendKind.FRAME_RATE in wanted:
        if MendKind.FRAME_RATE in choice.kinds:
            fps = frame_rate(project, choice)
        frames = converted_frames(clip, fps).tolist()
    scenes = _scenes(clip, frames) if MendKind.SPLIT_SCENES in wanted else [frames]
    for number, scene in enumerate(scenes, start=1):
        is_whole = len(scenes) == 1
        subject = pair.name if is_whole else f"Scene {number} of {pair.name}"
        name = pair.name if is_whole else f"{pair.name}-{number}"
        found = _plan_scene(pair, subject, scene, fps, wanted, project, choice)
        if isinstance(found, str):
            left_out.append((pair, found))
        else:
            yield replace(found, name=name)


def _plan_scene(
    pair: Pair,
    subject: str,
    frames: Sequence[int],
    fps: float,
    wanted: frozenset[MendKind],
    project: Project,
    choice: MendChoice,
) -> PlannedClip | str:
    """The clip that these frames of a pair become at `fps`, or why they make none; `subject` names them."""
    clip, data, dataset = pair.clip, project.run.data, _dataset(pair, project)
    assert clip is not None
    if len(frames) < MIN_FRAMES:
        count = f"{len(frames)} frame{'s' * (len(frames) != 1)}"
        return f"{subject} has {count}; at least {MIN_FRAMES} are needed."
    taken = clip
    if RECODING & wanted - {MendKind.TRIM}:
        taken = replace(clip, num_frames=len(frames), fps=fps, slowest_fps=fps, fastest_fps=fps)
    assigned = assign_bucket(taken, subject, dataset, data)
    if assigned.bucket is None:
        return _reason(subject, assigned.issues)
    trained = assigned.frame_indices[-1] + 1 if assigned.frame_indices else assigned.bucket.num_frames
    changes = wanted - {MendKind.TRIM}
    if MendKind.TRIM in choice.kinds and trained < len(frames):
        frames, changes = frames[:trained], changes | {MendKind.TRIM}
    size = _new_size(clip, changes, dataset, data)
    if changes & RECODING:
        # A limit of the configuration may leave out the mended clip, though not the clip itself.
        mended = replace(taken, num_frames=len(frames), height=size[0], width=size[1])
        assigned = assign_bucket(mended, f"{subject}, once mended,", dataset, data)
        if assigned.bucket is None:
            return _reason(subject, assigned.issues)
    return PlannedClip(
        pair=pair,
        name=pair.name,
        frames=frames,
        fps=clip.fps,
        new_fps=fps,
        size=(clip.height, clip.width),
        new_size=size,
        start_frame=_start_frame(pair, frames[0], changes, dataset),
        captions=_captions(pair, changes, choice, dataset),
        changes=tuple(kind for kind in MendKind if kind in changes),
    )


def _scenes(clip: Clip, frames: Sequence[int]) -> list[Sequence[int]]:
    """`frames` apart at the cuts of the clip; a scene may have become empty."""
    bounds = (0, *clip.cuts, clip.num_frames)
    return [frames[bisect_left(frames, low) : bisect_left(frames, high)] for low, high in pairwise(bounds)]


def _new_size(clip: Clip, changes: frozenset[MendKind], dataset: DatasetConfig, data: DataConfig) -> tuple[int, int]:
    """(height, width) of the mended clip: the bucket's, or the clip's own, even where it is encoded as yuv420p."""
    if changes & {MendKind.CROP, MendKind.PAD}:
        return _bucket_size(clip, dataset, data)
    if changes & RECODING:
        return max(2, clip.height // 2 * 2), max(2, clip.width // 2 * 2)
    return clip.height, clip.width


def _start_frame(pair: Pair, first: int, changes: frozenset[MendKind], dataset: DatasetConfig) -> Path | int | None:
    if not dataset.is_i2v:
        return None
    if changes & {MendKind.START_FRAMES, MendKind.REPLACE_START_FRAMES, MendKind.SPLIT_SCENES}:
        return first
    return pair.start_frame.path if pair.start_frame else None


def _captions(pair: Pair, changes: frozenset[MendKind], choice: MendChoice, dataset: DatasetConfig) -> tuple[str, ...]:
    if MendKind.CAPTIONS not in changes:
        return pair.captions
    caption = filled_template(choice.caption_template, pair.name, dataset.directory.name)
    return (f"{dataset.instance_prompt} {caption}" if dataset.prepend_instance_prompt else caption,)


def _with_free_names(clips: Sequence[PlannedClip]) -> Iterator[PlannedClip]:
    """The clips under names that no two of a dataset share; those of whole clips go before those of scenes."""
    free: dict[str, FreeNames] = {}
    names: dict[int, str] = {}
    for index, clip in sorted(enumerate(clips), key=lambda item: MendKind.SPLIT_SCENES in item[1].changes):
        names[index] = free.setdefault(clip.pair.dataset_id, FreeNames()).take(clip.name)
    for index, clip in enumerate(clips):
        yield replace(clip, name=names[index])


def _num_bytes(clip: PlannedClip) -> int:
    """About what a clip and its start frame take on disk. Raises MediaError for a clip that is gone."""
    path = clip.pair.clip_path
    try:
        source = path.stat().st_size
    except OSError as error:
        raise MediaError(f"{path.name} cannot be read: {error.strerror}.", "Check the dataset again.") from error
    pixels = clip.new_size[0] * clip.new_size[1]
    image = _IMAGE_PIXEL_BYTES * pixels if clip.start_frame is not None else 0
    if clip.is_copied:
        return image + source
    return image + round(_CLIP_PIXEL_BYTES * pixels * clip.new_num_frames)
