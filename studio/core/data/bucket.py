"""The size at which a clip is trained, and everything that this size does to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from studio.core.config import DataConfig, DatasetConfig
from studio.core.data.decode import cover_box
from studio.core.geometry import GridSpec, bucket_size, round_to_grid
from studio.core.types import Bucket, Clip, Issue, IssueCode, Pair, Severity, StartFrame

MIN_FRAMES = 5
"""Two latent frames: the held one and one to learn."""
MODEL_FPS = 15.0
"""Frames per second of the published model's base pass."""
_FPS_TOLERANCE = 0.01
"""Relative; 14.985 (NTSC) counts as 15."""
_ASPECT_TOLERANCE = 0.02
"""Relative difference of aspect up to which a start frame fits its clip unseen."""
_MAX_ASPECT = 16.0


def assign_bucket(
    clip: Clip, subject: str, dataset: DatasetConfig, alignment: int, spec: GridSpec | None = None
) -> tuple[Bucket | None, tuple[Issue, ...]]:
    """The bucket of a clip (None when it is too short or too narrow), and what happens to the clip in it.

    `subject` is the clip's name in messages; `alignment` the multiple, in pixels, that buckets lie on.
    """
    spec = spec or GridSpec()
    num_frames, issues = _frames(clip, subject, dataset, spec)
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
        return None, tuple(issues)
    height, width = bucket_size(
        clip.height,
        clip.width,
        resolution=dataset.resolution,
        resolution_type=dataset.resolution_type,
        alignment=alignment,
    )
    issues += _sizes(clip, subject, height, width, spec)
    if abs(clip.fps / MODEL_FPS - 1) > _FPS_TOLERANCE:
        issues.append(
            Issue(
                code=IssueCode.FRAME_RATE_OTHER,
                severity=Severity.WARNING,
                subject=subject,
                message=f"{subject} has {clip.fps:g} frames a second, the model plays {MODEL_FPS:g}: "
                f"frames are taken as they are, so it plays at {MODEL_FPS / clip.fps:.2g} times its speed.",
                remedy=f"Export it at {MODEL_FPS:g} frames a second if the speed matters.",
            )
        )
    bucket = Bucket(num_frames=num_frames, height=height, width=width) if num_frames else None
    return bucket, tuple(issues)


def _frames(clip: Clip, subject: str, dataset: DatasetConfig, spec: GridSpec) -> tuple[int, list[Issue]]:
    """Frames to train on, 0 when the clip is too short."""
    wanted = spec.floor_frame_count(dataset.num_frames)
    taken = min(wanted, spec.floor_frame_count(clip.num_frames))
    if taken < MIN_FRAMES:
        return 0, [
            Issue(
                code=IssueCode.CLIP_TOO_SHORT,
                severity=Severity.ERROR,
                subject=subject,
                message=f"{subject} has {clip.num_frames} frame{'s' * (clip.num_frames > 1)}; at least "
                f"{MIN_FRAMES} are needed.",
                remedy="Replace it by a longer clip, or delete it.",
            )
        ]
    if taken == wanted:
        return taken, []
    lost = clip.num_frames - taken
    end = f"; its last {lost} {'is' if lost == 1 else 'are'} left out" if lost else ""
    return taken, [
        Issue(
            code=IssueCode.FRAMES_TRIMMED,
            severity=Severity.NOTICE,
            subject=subject,
            message=f"{subject} has {clip.num_frames} frames, fewer than {wanted}: {taken} are taken, the "
            f"most of the form {spec.temporal_stride}k+1{end}.",
        )
    ]


def _sizes(clip: Clip, subject: str, height: int, width: int, spec: GridSpec) -> list[Issue]:
    """Two facts about the clip's own size, shown apart: legal for the model, and on the grid."""
    left, top, right, bottom = cover_box(clip.height, clip.width, height, width)
    cropped = 1 - (right - left) * (bottom - top) / (clip.width * clip.height)
    share = f"{cropped:.0%} is" if cropped >= 0.005 else "nothing is"
    fate = f"it is resized to {height}x{width} and {share} cropped"
    size, unit, grid = f"{clip.height}x{clip.width}", spec.pixel_multiple, spec.bucket_alignment
    issues = []
    if not spec.is_legal_size(clip.height, clip.width):
        issues.append(
            Issue(
                code=IssueCode.SIZE_NOT_LEGAL,
                severity=Severity.WARNING,
                subject=subject,
                message=f"{subject} is {size} (height x width), not multiples of {unit}: {fate}.",
                remedy=f"Export it at {height}x{width} to choose the crop yourself.",
            )
        )
    if clip.height % grid or clip.width % grid:
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


def small_buckets(pairs: Iterable[Pair], data: DataConfig) -> tuple[Issue, ...]:
    """Warnings for buckets whose ready pairs, repeats counted, do not fill one batch."""
    counts: dict[Bucket, int] = {}
    for pair in pairs:
        if pair.is_ready and pair.bucket:
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
