"""Judging: videos of the gallery side by side in synchronised players, and the comparison to take along."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from studio.core.errors import MediaError, StudioError
from studio.core.sample.gallery import find_videos
from studio.core.sample.judge import Comparison, compare_videos
from studio.ui import markup
from studio.ui.video_addresses import VideoAddresses
from studio.ui.workshop import Workshop
from studio.view.comparison_page import comparison_html, comparison_sheet
from studio.view.players import JUDGE_JS, difference_html, judge_html
from studio.view.run_rows import size_text
from studio.view.words import Words

START = """
const start = () => {
  const judge = element.querySelector('.judge');
  if (judge) startJudge(judge);
};
watch('value', start);
start();
"""


@dataclass(frozen=True, slots=True)
class JudgePanel:
    """The part that others use."""

    names: gr.State
    """Names of two to eight videos of the gallery; those that someone puts in here are shown."""


def build_judge_panel(workshop: Workshop, w: Words) -> JudgePanel:
    """Lays the panel out and connects it."""
    addresses = VideoAddresses()
    names = gr.State([])
    with gr.Column(elem_id="judge", elem_classes="judge-panel"):
        gr.HTML(f"<h2 class='heading'>{w('judge.title')}</h2>")
        message = gr.HTML(elem_id="judge-message")
        players = gr.HTML(
            _empty(w), js_on_load=JUDGE_JS.read_text(encoding="utf-8") + START, elem_id="judge-players"
        )  # fmt: skip
        differences = gr.HTML(elem_id="judge-differences")
        with gr.Row(visible=False, elem_classes="two-buttons") as keeping:
            sheet = gr.Button(w("judge.make_sheet"), size="sm", elem_id="judge-sheet")
            page = gr.Button(w("judge.make_page"), size="sm", elem_id="judge-page")
            close = gr.Button(w("judge.close"), size="sm", elem_id="judge-close")
        said = gr.HTML(elem_id="judge-said")
        files = gr.File(
            label=w("judge.download"), file_count="multiple", interactive=False, visible=False, elem_id="judge-files"
        )

    def compared(chosen: list[str]) -> Comparison:
        return compare_videos(find_videos(workshop.output_dir / "samples", chosen))

    def open_(chosen: list[str]) -> Iterator[list[Any]]:
        """Updates of message, players, differences, keeping, said, files."""
        nothing = [_empty(w), "", gr.update(visible=False), "", gr.update(value=None, visible=False)]
        if not chosen:
            yield ["", *nothing]
            return
        yield [markup.note(w("judge.reading")), *[gr.skip()] * len(nothing)]
        try:
            comparison = compared(chosen)
            sources = [addresses.of(players, video.path) for video in comparison.videos]
        except (StudioError, OSError) as error:
            yield [markup.failure(_told(error), w), *nothing]
            return
        shown = [judge_html(comparison, sources, w), difference_html(comparison, w), gr.update(visible=True)]
        yield ["", *shown, *nothing[3:]]

    def made(chosen: list[str], name: str, said_key: str, make: Any) -> Iterator[list[Any]]:
        """What was said of a new file, and the file; it lies in a new private folder."""
        yield [markup.note(w("judge.working")), gr.skip()]
        folder = Path(tempfile.mkdtemp(prefix="judge-", dir=workshop.folder))
        file = folder / name
        try:
            content: bytes = make(compared(chosen))
            file.write_bytes(content)
        except (StudioError, OSError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            yield [markup.failure(_told(error), w), gr.skip()]
            return
        said = markup.note(w(said_key, size=size_text(len(content), w)))
        yield [said, gr.update(value=[str(file)], visible=True)]

    def sheet_of(chosen: list[str]) -> Iterator[list[Any]]:
        yield from made(chosen, "comparison.png", "judge.sheet_said", lambda found: comparison_sheet(found, w))

    def page_of(chosen: list[str]) -> Iterator[list[Any]]:
        yield from made(chosen, "comparison.html", "judge.page_said", lambda found: comparison_html(found, w).encode())

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    names.change(open_, names, [message, players, differences, keeping, said, files], **quiet)
    # Through the queue, as all that changes the names: else nobody is told.
    close.click(lambda: [], None, names, **quiet)
    sheet.click(sheet_of, names, [said, files], **quiet)
    page.click(page_of, names, [said, files], **quiet)
    return JudgePanel(names=names)


def _empty(w: Words) -> str:
    return markup.empty_state(w("judge.empty"), (w("judge.empty_1"), w("judge.empty_2")))


def _told(error: StudioError | OSError) -> StudioError:
    if isinstance(error, StudioError):
        return error
    return MediaError(f"The comparison cannot be made: {error.strerror}.", "Check the disk, and open it again.")
