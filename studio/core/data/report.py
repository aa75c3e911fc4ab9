"""A report as JSON, for `check --json` and for whoever reads it later."""

from __future__ import annotations

from typing import Any

from studio.core.types import DatasetReport, Issue, Pair, Severity

SCHEMA = 1
"""Raised when a field changes its meaning or goes; fields may be added."""


def report_to_json(report: DatasetReport) -> dict[str, Any]:
    """The report as what `json.dumps` takes; paths as text, sizes in pixels, issues in the report's order."""
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
    }


def _pair_to_json(pair: Pair) -> dict[str, Any]:
    clip, start_frame, match, bucket = pair.clip, pair.start_frame, pair.match, pair.bucket
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
        "issues": [_issue_to_json(issue) for issue in pair.issues],
    }


def _issue_to_json(issue: Issue) -> dict[str, str]:
    return {
        "code": issue.code.value,
        "severity": issue.severity.value,
        "subject": issue.subject,
        "message": issue.message,
        "remedy": issue.remedy,
    }
