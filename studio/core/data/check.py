"""The check of a dataset: every clip, start frame, caption and problem in one pass; nothing is written to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from studio.core.config import DataConfig, DatasetConfig
from studio.core.data.bucket import (
    Assignment,
    aspect_issue,
    assign_bucket,
    emptied_datasets,
    leave_out_surplus,
    small_buckets,
)
from studio.core.data.findings import clip_issues, name_duplicates, start_frame_issues
from studio.core.data.pair import PairedFiles, orphan_frames, pair_files
from studio.core.data.probes import Findings, Probes, Progress, probe_all
from studio.core.data.scan import Scan, relative_name, scan_folder
from studio.core.errors import DamagedClipError, MediaError
from studio.core.geometry import GridSpec
from studio.core.simpletuner import Project, read_project
from studio.core.simpletuner_values import off_stride_note
from studio.core.types import DatasetReport, Issue, IssueCode, Pair, Severity

ShouldStop = Callable[[], bool]
"""Asked a few times a second whether to give up."""


def check_project(
    path: Path,
    *,
    progress: Progress | None = None,
    probes: Probes | None = None,
    should_stop: ShouldStop | None = None,
) -> tuple[Project, DatasetReport]:
    """The project at a path, and the check of its data, with the configuration's issues first in the report.

    Raises:
        ConfigError: as `read_project`.
        CheckStopped: as `check_dataset`.
    """
    project = read_project(path)
    report = check_dataset(
        project.run.data,
        eval_dataset_id=project.run.validation.eval_dataset_id,
        progress=progress,
        probes=probes,
        should_stop=should_stop,
    )
    return project, replace(report, issues=project.issues + report.issues)


def check_dataset(
    data: DataConfig,
    *,
    eval_dataset_id: str | None = None,
    progress: Progress | None = None,
    probes: Probes | None = None,
    should_stop: ShouldStop | None = None,
) -> DatasetReport:
    """Every clip of the `video` datasets with its start frame, captions, bucket and problems.

    Decodes each clip once, and again only to find the frame that a start frame fits; `probes` from an earlier check
    saves that for files that have not changed. `eval_dataset_id` names a dataset that is not trained on.

    Raises:
        CheckStopped: `should_stop` said so; what was found until then is kept, so that the next check goes on.
    """
    probes = probes or Probes()
    issues: list[Issue] = _check_alignment(data) + _check_references(data)
    scans = _scan_all(data, issues)
    todo: list[tuple[DatasetConfig, PairedFiles, Scan]] = []
    used: set[Path] = set()
    for dataset in data.datasets:
        if dataset.kind == "video" and dataset.id in scans:
            issues += _check_frame_count(dataset)
            found = pair_files(dataset, scans[dataset.id], _frame_folders(dataset, scans))
            todo += [(dataset, files, scans[dataset.id]) for files in found]
            used.update(path for files in found for path in files.claimed)
    try:
        seen = probe_all([(files.clip, files.start_frame) for _, files, _ in todo], probes, progress, should_stop)
    finally:
        probes.disk.drop_old()
    pairs = [
        _check_pair(dataset, files, scan, data, seen[files.clip, files.start_frame]) for dataset, files, scan in todo
    ]
    kept = name_duplicates(leave_out_surplus(pairs, data))
    issues += _orphans(data, scans, frozenset(used))
    issues += small_buckets(kept, data, eval_dataset_id) + emptied_datasets(kept)
    return DatasetReport(pairs=kept, issues=tuple(issues))


def _check_alignment(data: DataConfig) -> list[Issue]:
    unit, alignment = GridSpec().pixel_multiple, data.aspect_bucket_alignment
    if alignment > 0 and alignment % unit == 0:
        return []
    return [
        Issue(
            code=IssueCode.SIZE_NOT_LEGAL,
            severity=Severity.ERROR,
            subject="aspect_bucket_alignment",
            message=f"Buckets on a {alignment} px grid are not legal; the model takes multiples of {unit}.",
            remedy=f"Set aspect_bucket_alignment to {GridSpec().bucket_alignment}.",
        )
    ]


def _check_references(data: DataConfig) -> list[Issue]:
    """Start frame datasets that are named but not there; a configuration from a file names none of them."""
    return [
        Issue(
            code=IssueCode.DATASET_UNKNOWN,
            severity=Severity.ERROR,
            subject=f"{dataset.id}.conditioning_data",
            message=f"{dataset.id} names {name}, which is not defined. Datasets: {', '.join(data.by_id)}.",
            remedy="Name the dataset that holds the start frames.",
        )
        for dataset in data.datasets
        for name in dataset.conditioning_ids
        if name not in data.by_id
    ]


def _check_frame_count(dataset: DatasetConfig) -> list[Issue]:
    """A count that is not 4k+1; a configuration that was read from a file has been floored before."""
    if GridSpec().is_legal_frame_count(dataset.num_frames):
        return []
    note = off_stride_note(dataset.num_frames)
    subject = f"{dataset.id}.video.num_frames"
    return [Issue(code=note.code, severity=note.severity, subject=subject, message=note.message, remedy=note.remedy)]


def _scan_all(data: DataConfig, issues: list[Issue]) -> dict[str, Scan]:
    """Scans of the datasets that take part, by id; a folder that is not there is an issue."""
    named = {name for dataset in data.datasets for name in dataset.conditioning_ids}
    scans: dict[str, Scan] = {}
    for dataset in data.datasets:
        if dataset.kind == "conditioning" and dataset.id not in named:
            continue
        try:
            scan = scan_folder(dataset.directory)
        except OSError as error:
            issues.append(
                Issue(
                    code=IssueCode.FOLDER_MISSING,
                    severity=Severity.ERROR,
                    subject=dataset.id,
                    message=f"{dataset.directory}, the folder of {dataset.id}: {error.strerror}.",
                    remedy="Correct instance_data_dir, or create the folder.",
                )
            )
            continue
        scans[dataset.id] = scan
        issues += _scan_issues(dataset, scan)
    if not any(dataset.kind == "video" for dataset in data.datasets):
        issues.append(_no_clips("datasets", "There is no dataset of clips."))
    return scans


def _scan_issues(dataset: DatasetConfig, scan: Scan) -> list[Issue]:
    """What a scan passed over, and a folder of clips that holds none."""
    issues = [
        Issue(
            code=IssueCode.FILE_SKIPPED,
            severity=Severity.WARNING,
            subject=skipped.name,
            message=f"{skipped.name} in {dataset.id} is left out: {skipped.reason}.",
            remedy=skipped.remedy,
        )
        for skipped in scan.skipped
    ]
    if dataset.kind == "video" and not scan.clips:
        issues.append(_no_clips(dataset.id, f"{dataset.directory} holds no clips (mp4, mov, m4v, mkv, webm)."))
    return issues


def _no_clips(subject: str, message: str) -> Issue:
    return Issue(
        code=IssueCode.NO_CLIPS,
        severity=Severity.ERROR,
        subject=subject,
        message=message,
        remedy="Put clips into the folder, or name another folder.",
    )


def _frame_folders(dataset: DatasetConfig, scans: dict[str, Scan]) -> dict[str, Scan]:
    """Scans in which a dataset's start frames lie: those it names, or its own."""
    if not dataset.conditioning_ids:
        return {dataset.id: scans[dataset.id]}
    return {name: scans[name] for name in dataset.conditioning_ids if name in scans}


def _check_pair(dataset: DatasetConfig, files: PairedFiles, scan: Scan, data: DataConfig, seen: Findings) -> Pair:
    shown = relative_name(files.clip, scan.root)
    issues = list(files.issues)
    clip, start_frame = seen.clip, seen.start_frame
    if isinstance(clip, MediaError):
        damaged = isinstance(clip, DamagedClipError)
        code = IssueCode.CLIP_DAMAGED if damaged else IssueCode.CLIP_UNREADABLE
        issues.append(_media_issue(code, shown, clip))
        clip = None
    if isinstance(start_frame, MediaError):
        name = files.start_frame.name if files.start_frame else shown
        issues.append(_media_issue(IssueCode.IMAGE_UNREADABLE, name, start_frame))
        start_frame = None
    assignment = Assignment(bucket=None, issues=())
    if clip and data.aspect_bucket_alignment > 0:
        assignment = assign_bucket(clip, shown, dataset, data)
        if assignment.is_left_out:
            issues = []  # nothing of a clip that is not trained has to be mended
        issues += assignment.issues
        mismatch = aspect_issue(clip, start_frame, shown) if start_frame and not assignment.is_left_out else None
        issues += [mismatch] if mismatch else []
    match = None if assignment.is_left_out else seen.match
    if isinstance(match, MediaError):
        issues.append(_media_issue(IssueCode.CLIP_DAMAGED, shown, match))
        match = None
    if clip and not assignment.is_left_out:
        issues += clip_issues(clip, shown, assignment)
    if match and start_frame:
        issues += start_frame_issues(match, shown, start_frame.path.name)
    return Pair(
        dataset_id=dataset.id,
        name=files.name,
        clip=clip,
        clip_path=files.clip,
        start_frame=start_frame,
        match=match,
        captions=files.captions,
        bucket=assignment.bucket,
        fps=assignment.fps,
        frame_indices=assignment.frame_indices,
        issues=tuple(issues),
    )


def _media_issue(code: IssueCode, subject: str, error: MediaError) -> Issue:
    return Issue(code=code, severity=Severity.ERROR, subject=subject, message=error.message, remedy=error.remedy)


def _orphans(data: DataConfig, scans: dict[str, Scan], used: frozenset[Path]) -> list[Issue]:
    """Start frames that no clip of any dataset claims."""
    searched = {
        name
        for dataset in data.datasets
        if dataset.kind == "video" and dataset.is_i2v and dataset.id in scans
        for name in dataset.conditioning_ids or (dataset.id,)
    }
    return [issue for name in scans if name in searched for issue in orphan_frames(scans[name], used, name)]
