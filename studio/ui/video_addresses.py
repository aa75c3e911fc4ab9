"""Where the browser gets a video of the gallery: a copy in the app's private folder, under an address of gradio's."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import gradio as gr

from studio.core.data.probe_cache import FileState, file_state


@dataclass(slots=True)
class VideoAddresses:
    """Addresses of files, relative to the page; each is copied once for each of its states."""

    held: dict[FileState, Path] = field(default_factory=dict)

    def of(self, block: gr.HTML, file: Path) -> str:
        """The address under which `block` may show the file."""
        state = file_state(file)
        # Copies that are a day old are swept.
        if state not in self.held or not self.held[state].exists():
            copy = block.move_resource_to_block_cache(file)
            assert copy is not None
            self.held[state] = Path(copy)
        return f"gradio_api/file={quote(str(self.held[state]))}"

    def forget(self, file: Path) -> None:
        """Deletes the copies of a file."""
        for state in [state for state in self.held if state[0] == file]:
            self.held.pop(state).unlink(missing_ok=True)
