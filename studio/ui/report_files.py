"""The two files of a report, for download."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from studio.core.data.report import report_to_json
from studio.ui.workshop import Opened
from studio.view.report_page import report_html
from studio.view.words import Words


def write_reports(folder: Path, opened: Opened, w: Words) -> tuple[Path, Path]:
    """The report as a page and as JSON, in one folder under `folder` for each dataset and language.

    No name in it is given by a file of the user.
    """
    into = folder / f"report-{hashlib.sha256(bytes(opened.path.resolve())).hexdigest()[:16]}-{w.language}"
    into.mkdir(exist_ok=True)
    page, data = into / "check.html", into / "check.json"
    page.write_text(report_html(opened.path, opened.report, opened.project, w), encoding="utf-8")
    data.write_text(json.dumps(report_to_json(opened.report, opened.project), indent=2), encoding="utf-8")
    return page, data
