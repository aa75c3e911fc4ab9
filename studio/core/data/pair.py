"""Which start frame and which captions belong to which clip: one rule for preview, trainer and notebook."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from studio.core.config import DatasetConfig
from studio.core.data.captions import read_captions
from studio.core.data.scan import CAPTION_SUFFIX, Scan, loose_form, relative_name
from studio.core.errors import MediaError
from studio.core.types import Issue, IssueCode, Severity


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedFiles:
    """A clip with the files that its name leads to; nothing is decoded yet."""

    name: str
    """Relative path of the clip without extension, POSIX separators, Unicode NFC."""
    clip: Path
    start_frame: Path | None
    claimed: tuple[Path, ...]
    """Every image that the name leads to; more than one means that none was chosen."""
    captions: tuple[str, ...]
    issues: tuple[Issue, ...]


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A file that a clip may be paired with."""

    path: Path
    shown: str
    """Relative to its dataset."""
    stem: str
    """`shown` without extension, exactly as on disk."""


class _Index:
    """Candidates by stem: as written first, then by a form that ignores case and Unicode composition."""

    def __init__(self, candidates: Iterable[_Candidate], clip_stems: frozenset[str]) -> None:
        self._exact: dict[str, list[_Candidate]] = {}
        self._loose: dict[str, list[_Candidate]] = {}
        for candidate in candidates:
            self._exact.setdefault(candidate.stem, []).append(candidate)
            if candidate.stem not in clip_stems:  # one that is another clip's own is never lent
                self._loose.setdefault(loose_form(candidate.stem), []).append(candidate)

    def find(self, stem: str) -> list[_Candidate]:
        """The candidates of a clip: none, one, or several between which nobody can choose."""
        return self._exact.get(stem) or self._loose.get(loose_form(stem), [])


def pair_files(dataset: DatasetConfig, clips: Scan, frame_folders: Mapping[str, Scan]) -> tuple[PairedFiles, ...]:
    """One entry for each clip of a dataset, in the order of the scan.

    `frame_folders` are the scans in which start frames are looked for, by dataset id. The key is the relative
    path without extension: as written first; a match that ignores case or Unicode form is a warning.
    """
    stems = frozenset(_stem(path, clips.root) for path in clips.clips)
    frames = _Index((c for scan in frame_folders.values() for c in _candidates(scan, scan.images)), stems)
    captions = _Index(_candidates(clips, clips.captions), stems)
    twins = _by_stem(clips)
    return tuple(_pair(dataset, clip, clips.root, frames, captions, twins) for clip in clips.clips)


def orphan_frames(scan: Scan, used: frozenset[Path], dataset_id: str) -> tuple[Issue, ...]:
    """Warnings for the start frames of a folder that belong to no clip."""
    return tuple(
        Issue(
            code=IssueCode.START_FRAME_ORPHAN,
            severity=Severity.WARNING,
            subject=relative_name(image, scan.root),
            message=f"{relative_name(image, scan.root)} in {dataset_id} belongs to no clip; it is not used.",
            remedy="Name it like its clip, or delete it.",
        )
        for image in scan.images
        if image not in used
    )


def _pair(
    dataset: DatasetConfig,
    clip: Path,
    root: Path,
    frames: _Index,
    captions: _Index,
    twins: Mapping[str, Sequence[str]],
) -> PairedFiles:
    stem, shown = _stem(clip, root), relative_name(clip, root)
    issues: list[Issue] = []
    if len(twins[stem]) > 1:
        issues.append(_duplicate(shown, "clips", stem, twins[stem]))
    claimed: list[_Candidate] = []
    if dataset.is_i2v:
        place = f"in {' or '.join(dataset.conditioning_ids)}" if dataset.conditioning_ids else "beside the clip"
        claimed = _find_start_frame(shown, stem, frames, place, issues)
    return PairedFiles(
        name=unicodedata.normalize("NFC", stem),
        clip=clip,
        start_frame=claimed[0].path if len(claimed) == 1 else None,
        claimed=tuple(candidate.path for candidate in claimed),
        captions=_find_captions(dataset, shown, stem, captions, issues),
        issues=tuple(issues),
    )


def _find_start_frame(shown: str, stem: str, frames: _Index, place: str, issues: list[Issue]) -> list[_Candidate]:
    found = frames.find(stem)
    if len(found) > 1:
        issues.append(_duplicate(shown, "start frames", stem, [c.shown for c in found]))
    elif found:
        _say_if_loose(shown, stem, found[0], issues)
    else:
        issues.append(
            Issue(
                code=IssueCode.START_FRAME_MISSING,
                severity=Severity.ERROR,
                subject=shown,
                message=f"{shown} has no start frame: {stem}.png is expected {place}.",
                remedy="Extract the first frame of the clip as its start frame, or add the image.",
            )
        )
    return found


def _find_captions(
    dataset: DatasetConfig, shown: str, stem: str, captions: _Index, issues: list[Issue]
) -> tuple[str, ...]:
    """The captions under the dataset's strategy; without one, a single empty caption."""
    found = _bare_captions(dataset, shown, stem, captions, issues)
    if dataset.prepend_instance_prompt and dataset.caption_strategy in ("textfile", "filename"):
        return tuple(f"{dataset.instance_prompt} {caption}".strip() for caption in found)
    return found


def _bare_captions(
    dataset: DatasetConfig, shown: str, stem: str, captions: _Index, issues: list[Issue]
) -> tuple[str, ...]:
    if dataset.caption_strategy is None:
        return ("",)
    if dataset.caption_strategy == "instanceprompt":
        return (dataset.instance_prompt or "",)
    if dataset.caption_strategy == "filename":
        return (Path(stem).name.replace("_", " "),)
    found = captions.find(stem)
    if len(found) > 1:
        issues.append(_duplicate(shown, "caption files", stem, [c.shown for c in found]))
        return ()
    if not found:
        missing = stem + CAPTION_SUFFIX
        issues.append(_caption_issue(IssueCode.CAPTION_MISSING, missing, f"{missing} is missing."))
        return ()
    _say_if_loose(shown, stem, found[0], issues)
    try:
        lines = read_captions(found[0].path, split_lines=dataset.split_captions)
    except MediaError as error:
        unreadable = IssueCode.CAPTION_UNREADABLE
        issues.append(_caption_issue(unreadable, found[0].shown, error.message, error.remedy))
        return ()
    if not lines:
        issues.append(_caption_issue(IssueCode.CAPTION_MISSING, found[0].shown, f"{found[0].shown} is empty."))
    return lines


def _caption_issue(
    code: IssueCode, subject: str, message: str, remedy: str = "Write into it what happens in the clip."
) -> Issue:
    return Issue(code=code, severity=Severity.ERROR, subject=subject, message=message, remedy=remedy)


def _duplicate(subject: str, kind: str, stem: str, names: Sequence[str]) -> Issue:
    return Issue(
        code=IssueCode.STEM_DUPLICATE,
        severity=Severity.ERROR,
        subject=subject,
        message=f"There are {len(names)} {kind} for {stem}: {', '.join(names)}.",
        remedy="Keep one, and rename or delete the others.",
    )


def _say_if_loose(shown: str, stem: str, candidate: _Candidate, issues: list[Issue]) -> None:
    if candidate.stem == stem:
        return
    same_letters = unicodedata.normalize("NFC", stem) == unicodedata.normalize("NFC", candidate.stem)
    difference = "in their Unicode form" if same_letters else "in upper and lower case"
    issues.append(
        Issue(
            code=IssueCode.NAME_MATCHED_LOOSELY,
            severity=Severity.WARNING,
            subject=shown,
            message=f"{shown} is paired with {candidate.shown}, although the names differ {difference}.",
            remedy=f"Rename the file to {stem}{candidate.path.suffix} if they belong together.",
        )
    )


def _candidates(scan: Scan, paths: Iterable[Path]) -> Iterable[_Candidate]:
    return (_Candidate(path, relative_name(path, scan.root), _stem(path, scan.root)) for path in paths)


def _by_stem(scan: Scan) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for path in scan.clips:
        names.setdefault(_stem(path, scan.root), []).append(relative_name(path, scan.root))
    return names


def _stem(path: Path, root: Path) -> str:
    return relative_name(path.with_suffix(""), root)
