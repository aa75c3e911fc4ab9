"""The size at which a clip is trained, and everything that this size does to it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from studio.core.config import DataConfig, DatasetConfig
from studio.core.data.frame_rate import converted_frames, is_same_rate, is_steady
from studio.core.data.treatment import treat
from studio.core.errors import MediaError
from studio.core.geometry import GridSpec, bucket_size, round_to_grid
from studio.core.types import Bucket, Clip, Issue, IssueCode, Pair, Severity, StartFrame

MIN_FRAMES = 5
"""Two latent frames: the held one and one to learn."""
MODEL_FPS = 15.0
"""Frames per second of the published model's base pass."""
_ASPECT_TOLERANCE = 0.02
"""Relative difference of aspect up to which a start frame fits its clip unseen."""
_MAX_ASPECT = 16.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """Where a clip is trained, and what has to be said about it."""

    bucket: Bucket | None
    """None when the clip is too short, too narrow or left out."""
    fps: float | None = None
    """As in `Pair`, with `frame_indices`."""
    frame_indices: tuple[int, ...] = ()
    issues: tuple[Issue, ...]

    @property
    def is_left_out(self) -> bool:
        """True when the configuration leaves the clip out; then that is the only issue."""
        return any(issue.code is IssueCode.CLIP_LEFT_OUT for issue in self.issues)


def assign_bucket(
    clip: Clip, subject: str, dataset: DatasetConfig, data: DataConfig, spec: GridSpec | None = None
) -> Assignment:
    """The bucket of a clip, the frames of it that are trained, and what happens to it on the way.

    `subject` is the clip's name in messages.
    """
    spec = spec or GridSpec()
    fps = data.framerate
    if fps and is_steady(clip) and is_same_rate(clip.fps, fps):
        fps = None
    try:
        converted = converted_frames(clip, fps) if fps else np.arange(clip.num_frames)
    except MediaError as error:
        issue = Issue(
            code=IssueCode.CLIP_UNREADABLE,
            severity=Severity.ERROR,
            subject=subject,
            message=error.message,
            remedy=error.remedy,
        )
        return Assignment(bucket=None, issues=(issue,))
    held = f"{clip.num_frames} frame{'s' * (clip.num_frames != 1)}"
    if fps:
        held += f", {len(converted)} at {fps:g} a second"
    reason = _reason_to_leave_out(clip, len(converted), held, dataset)
    if reason:
        return Assignment(bucket=None, issues=(left_out(subject, *reason),))
    num_frames, issues = _frames(len(converted), held, subject, dataset, spec)
    issues += _rate_issues(clip, subject, fps)
    aspect = clip.width / clip.height
    if not 1 / _MAX_ASPECT <= aspect <= _MAX_ASPECT:
        issues.append(
            Issue(
                code=IssueCode.SIZE_NOT_LEGAL,
                severity=Severity.ERROR,
                subject=subject,
                message=f"{subject} is {clip.height}x{clip.width}, too narrow for any bucket.",
                remedy="Crop it to an aspect that is nearer to a square.",
            )
        )
        return Assignment(bucket=None, issues=tuple(issues))
    height, width = bucket_size(
        clip.height,
        clip.width,
        resolution=dataset.resolution,
        resolution_type=dataset.resolution_type,
        alignment=data.aspect_bucket_alignment,
    )
    frames = tuple(converted[:num_frames].tolist()) if fps else ()
    # A clip that is too short still says what its size would become.
    sized = Bucket(num_frames=num_frames or MIN_FRAMES, height=height, width=width)
    issues += _sizes(clip, subject, sized, spec)
    return Assignment(
        bucket=sized if num_frames else None,
        fps=fps if num_frames else None,
        frame_indices=frames,
        issues=tuple(issues),
    )


def left_out(subject: str, key: str, why: str) -> Issue:
    """What is said of a clip that a key of the configuration leaves out."""
    return Issue(
        code=IssueCode.CLIP_LEFT_OUT,
        severity=Severity.NOTICE,
        subject=subject,
        message=f"{subject} is left out, it is not trained on: {why}.",
        remedy=f"Change {key} to train on it.",
    )


def _reason_to_leave_out(clip: Clip, num_frames: int, held: str, dataset: DatasetConfig) -> tuple[str, str] | None:
    """The key that leaves a clip out and why, or None; `held` are its `num_frames` in words.

    Source: SimpleTuner's data loader documentation; sizes are in the unit of `resolution_type`.
    """
    aspect, pixels = round(clip.width / clip.height, 2), clip.width * clip.height
    sizes = {"area": pixels / 1e6, "pixel_area": math.sqrt(pixels)}
    size = sizes.get(dataset.resolution_type, float(min(clip.width, clip.height)))
    unit = "megapixels" if dataset.resolution_type == "area" else "pixels"
    limits = (
        ("video.min_frames", dataset.min_frames, None, num_frames, f"it has {held}"),
        ("video.max_frames", None, dataset.max_frames, num_frames, f"it has {held}"),
        ("minimum_aspect_ratio", dataset.min_aspect, None, aspect, f"its width is {aspect:g} times its height"),
        ("maximum_aspect_ratio", None, dataset.max_aspect, aspect, f"its width is {aspect:g} times its height"),
        ("minimum_image_size", dataset.min_size, None, size, f"it measures {size:.4g} {unit}"),
    )
    for key, least, most, value, fact in limits:
        if least is not None and value < least:
            return key, f"{fact}, {key} is {least:g}"
        if most is not None and value > most:
            return key, f"{fact}, {key} is {most:g}"
    return None


def leave_out_surplus(pairs: Iterable[Pair], data: DataConfig) -> tuple[Pair, ...]:
    """The same pairs, those after the first `max_samples` of their dataset left out."""
    counts: Counter[str] = Counter()
    kept = []
    for pair in pairs:
        limit = data.by_id[pair.dataset_id].max_samples
        counts[pair.dataset_id] += not pair.is_left_out
        if limit is not None and counts[pair.dataset_id] > limit and not pair.is_left_out:
            why = f"max_num_samples is {limit}, and the first by name are taken"
            issue = left_out(pair.name + pair.clip_path.suffix, "max_num_samples", why)
            pair = replace(pair, bucket=None, fps=None, frame_indices=(), issues=(issue,))
        kept.append(pair)
    return tuple(kept)


def emptied_datasets(pairs: Iterable[Pair]) -> tuple[Issue, ...]:
    """Errors for datasets of which every clip is left out."""
    by_dataset: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_dataset.setdefault(pair.dataset_id, []).append(pair)
    return tuple(
        Issue(
            code=IssueCode.NO_CLIPS,
            severity=Severity.ERROR,
            subject=name,
            message=f"All clips of {name} ({len(members)}) are left out. The first: {members[0].issues[0].message}",
            remedy="Change the keys that leave them out.",
        )
        for name, members in by_dataset.items()
        if all(pair.is_left_out for pair in members)
    )


def _frames(available: int, held: str, subject: str, dataset: DatasetConfig, spec: GridSpec) -> tuple[int, list[Issue]]:
    """Frames to train on of those that are `available`, in words `held`; 0 when they are too few."""
    wanted = spec.floor_frame_count(dataset.num_frames)
    taken = min(wanted, spec.floor_frame_count(available))
    if taken < MIN_FRAMES:
        return 0, [
            Issue(
                code=IssueCode.CLIP_TOO_SHORT,
                severity=Severity.ERROR,
                subject=subject,
                message=f"{subject} has {held}; at least {MIN_FRAMES} are needed.",
                remedy="Replace it by a longer clip, or delete it.",
            )
        ]
    if taken == wanted:
        return taken, []
    lost = available - taken
    end = f"; its last {lost} {'is' if lost == 1 else 'are'} left out" if lost else ""
    return taken, [
        Issue(
            code=IssueCode.FRAMES_TRIMMED,
            severity=Severity.NOTICE,
            subject=subject,
            message=f"{subject} has {held}, fewer than {wanted}: {taken} are taken, the "
            f"most of the form {spec.temporal_stride}k+1{end}.",
        )
    ]


def _rate_issues(clip: Clip, subject: str, fps: float | None) -> list[Issue]:
    """What the frame rate does: `fps` is what the clip is converted to, None when its frames are taken as they are."""
    found = []
    played = fps or clip.fps
    if not is_same_rate(played, MODEL_FPS):
        taken = f"is read at {fps:g}" if fps else "its frames are taken as they are"
        message = f"{subject} has {clip.fps:g} frames a second, the model plays {MODEL_FPS:g}: {taken}, so it plays at "
        remedy = f"Set framerate to {MODEL_FPS:g} in config.json, or convert the clip, if the speed matters."
        found.append((f"{message}{MODEL_FPS / played:.2g} times its speed.", remedy))
    if fps and fps > clip.fps:
        message = f"{subject} has {clip.fps:g} frames a second and is read at {fps:g}: frames come more than once."
        found.append((message, f"Replace it by a clip of at least {fps:g} frames a second, or expect it to stutter."))
    return [
        Issue(
            code=IssueCode.FRAME_RATE_OTHER,
            severity=Severity.WARNING,
            subject=subject,
            message=message,
            remedy=remedy,
        )
        for message, remedy in found
    ]


def _sizes(clip: Clip, subject: str, bucket: Bucket, spec: GridSpec) -> list[Issue]:
    """Two facts about the clip's own size, shown apart: legal for the model, and on the grid."""
    treatment = treat(clip, bucket, spec=spec)
    share = f"{treatment.share_cropped:.0%} is" if treatment.share_cropped >= 0.005 else "nothing is"
    size, unit, grid = f"{clip.height}x{clip.width}", spec.pixel_multiple, spec.bucket_alignment
    target = f"{bucket.height}x{bucket.width}"
    fate = "it keeps its size" if size == target else f"it is resized to {target} and {share} cropped"
    issues = []
    if not treatment.is_legal:
        issues.append(
            Issue(
                code=IssueCode.SIZE_NOT_LEGAL,
                severity=Severity.WARNING,
                subject=subject,
                message=f"{subject} is {size} (height x width), not multiples of {unit}: {fate}.",
                remedy=f"Export it at {bucket.height}x{bucket.width} to choose the crop yourself.",
            )
        )
    if not treatment.is_on_grid:
        if bucket.height % grid or bucket.width % grid:
            fate += f"; its bucket {target} is not on that grid either, so attention blocks at its edges are partial"
        issues.append(
            Issue(
                code=IssueCode.SIZE_OFF_GRID,
                severity=Severity.NOTICE,
                subject=subject,
                message=f"{subject} is {size} (height x width), not on the {grid} px grid: {fate}.",
            )
        )
    return issues


def aspect_issue(clip: Clip, start_frame: StartFrame, subject: str) -> Issue | None:
    """A warning when the start frame is not of the clip's aspect, so that it is cropped otherwise."""
    ratio = (clip.width * start_frame.height) / (clip.height * start_frame.width)
    if abs(ratio - 1) <= _ASPECT_TOLERANCE:
        return None
    return Issue(
        code=IssueCode.ASPECT_MISMATCH,
        severity=Severity.WARNING,
        subject=subject,
        message=f"{subject} is {clip.height}x{clip.width}, but its start frame {start_frame.path.name} is "
        f"{start_frame.height}x{start_frame.width} (height x width): they are cropped differently.",
        remedy="Use the first frame of the clip, or crop the image to the clip's aspect.",
    )


def pairs_to_train(pairs: Iterable[Pair], data: DataConfig, eval_dataset_id: str | None) -> tuple[Pair, ...]:
    """The ready pairs, without those of validation datasets unless there is no other."""
    ready = tuple(pair for pair in pairs if pair.is_ready)
    held_out = {dataset.id for dataset in data.datasets if dataset.is_eval} | {eval_dataset_id}
    return tuple(pair for pair in ready if pair.dataset_id not in held_out) or ready


def small_buckets(pairs: Iterable[Pair], data: DataConfig, eval_dataset_id: str | None = None) -> tuple[Issue, ...]:
    """Warnings for buckets whose pairs to train, repeats counted, do not fill one batch."""
    counts: dict[Bucket, int] = {}
    for pair in pairs_to_train(pairs, data, eval_dataset_id):
        if pair.bucket:
            repeats = data.by_id[pair.dataset_id].repeats
            counts[pair.bucket] = counts.get(pair.bucket, 0) + 1 + repeats
    return tuple(
        Issue(
            code=IssueCode.BUCKET_TOO_SMALL,
            severity=Severity.WARNING,
            subject=str(bucket),
            message=f"Bucket {bucket} holds {count}, fewer than the batch size {data.train_batch_size}.",
            remedy=f"Set train_batch_size to {count}, add clips of this size, or raise repeats.",
        )
        for bucket, count in counts.items()
        if count < data.train_batch_size
    )


def smaller_buckets(bucket: Bucket, grid: GridSpec) -> Iterator[Bucket]:
    """Fewer frames, down to two latents; then all frames in smaller sizes of about the same shape."""
    for frames in range(bucket.num_frames - grid.temporal_stride, grid.temporal_stride, -grid.temporal_stride):
        yield replace(bucket, num_frames=frames)
    unit, short = grid.pixel_multiple, min(bucket.height, bucket.width)
    for edge in range(short - unit, 0, -unit):
        height, width = (round_to_grid(side * edge / short, unit) for side in (bucket.height, bucket.width))
        yield replace(bucket, height=height, width=width)
