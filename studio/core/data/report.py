"""A report as JSON, for `check --json` and for whoever reads it later."""

from __future__ import annotations

from typing import Any

from studio.core.data.mend import offered_mends
from studio.core.data.treatment import Treatment, treatment_of
from studio.core.geometry import Grid
from studio.core.simpletuner import Project
from studio.core.types import DatasetReport, Issue, Pair, Severity

SCHEMA = 1
"""Raised when a field changes its meaning or goes; fields may be added."""


def report_to_json(report: DatasetReport, project: Project | None = None) -> dict[str, Any]:
    """The report as what `json.dumps` takes; paths as text, sizes in pixels, issues in the report's order.

    `mends`, how many pairs each mend would change, needs the project that was checked.
    """
    mends = {kind.value: len(pairs) for kind, pairs in offered_mends(project, report).items()} if project else None
    return {
        "schema": SCHEMA,
        "ok": report.is_ok,
        "counts": {
            "pairs": len(report.pairs),
            "ready": sum(pair.is_ready for pair in report.pairs),
            **{f"{s.value}s": sum(i.severity is s for i in report.all_issues) for s in Severity},
        },
        "buckets": [
            {
                "num_frames": bucket.num_frames,
                "height": bucket.height,
                "width": bucket.width,
                "pairs": [{"dataset": pair.dataset_id, "name": pair.name} for pair in pairs],
            }
            for bucket, pairs in report.by_bucket.items()
        ],
        "pairs": [_pair_to_json(pair) for pair in report.pairs],
        "issues": [_issue_to_json(issue) for issue in report.issues],
        **({} if mends is None else {"mends": mends}),
    }


def _pair_to_json(pair: Pair) -> dict[str, Any]:
    clip, start_frame, match, bucket = pair.clip, pair.start_frame, pair.match, pair.bucket
    treatment = treatment_of(pair)
    return {
        "dataset": pair.dataset_id,
        "name": pair.name,
        "ready": pair.is_ready,
        "clip_path": str(pair.clip_path),
        "clip": clip
        and {
            "num_frames": clip.num_frames,
            "fps": clip.fps,
            "height": clip.height,
            "width": clip.width,
            "reader": clip.reader,
            "reader_reason": clip.reader_reason,
            "codec": clip.codec,
            "rotation": clip.rotation,
            "slowest_fps": clip.slowest_fps,
            "fastest_fps": clip.fastest_fps,
            "cuts": list(clip.cuts),
            "motion": clip.motion,
        },
        "start_frame": start_frame
        and {"path": str(start_frame.path), "height": start_frame.height, "width": start_frame.width},
        "match": match
        and {
            "psnr": match.psnr,
            "ssim": match.ssim,
            "best_frame": match.best_frame,
            "best_psnr": match.best_psnr,
            "contrast": match.contrast,
        },
        "captions": list(pair.captions),
        "bucket": bucket and {"num_frames": bucket.num_frames, "height": bucket.height, "width": bucket.width},
        "treatment": treatment and _treatment_to_json(treatment, pair),
        "issues": [_issue_to_json(issue) for issue in pair.issues],
    }


def _treatment_to_json(treatment: Treatment, pair: Pair) -> dict[str, Any]:
    """As `Treatment`; of the frames that are trained, the indices in the clip of the first and of the last."""
    first, last = (
        (pair.frame_indices[0], pair.frame_indices[-1]) if pair.frame_indices else (0, treatment.num_frames - 1)
    )
    return {
        "fps": treatment.fps,
        "frames": {"first": first, "last": last, "count": treatment.num_frames},
        "num_source_frames": treatment.num_source_frames,
        "num_frames_lost": treatment.num_frames_lost,
        "seconds_lost": treatment.seconds_lost,
        "crop_box": list(treatment.crop_box),
        "share_cropped": treatment.share_cropped,
        "latents": _grid_to_json(treatment.latents),
        "tokens": _grid_to_json(treatment.tokens),
        "attention_blocks": treatment.num_blocks,
        "ragged_attention_blocks": treatment.num_ragged_blocks,
        "fills_attention_blocks": treatment.fills_blocks,
        "legal": treatment.is_legal,
        "on_grid": treatment.is_on_grid,
    }


def _grid_to_json(grid: Grid) -> dict[str, int]:
    return {"t": grid.t, "h": grid.h, "w": grid.w}


def _issue_to_json(issue: Issue) -> dict[str, str]:
    return {
        "code": issue.code.value,
        "severity": issue.severity.value,
        "subject": issue.subject,
        "message": issue.message,
        "remedy": issue.remedy,
    }
