"""Writes a new folder that is a whole Space, ready to be pushed: `python assets/space/make.py FOLDER`.

Needs no package: what the Space installs is in requirements.txt, and the studio lies beside app.py as it is here.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LEFT_OUT = shutil.ignore_patterns("__pycache__", "_assets", "bench", "nb")


def make_space(folder: Path) -> None:
    """Writes the Space. Raises FileExistsError: there is something at `folder`."""
    folder.mkdir(parents=True)
    for name in ("app.py", "README.md", "requirements.txt"):
        shutil.copyfile(HERE / name, folder / name)
    shutil.copyfile(ROOT / "LICENSE", folder / "LICENSE")
    shutil.copytree(ROOT / "studio", folder / "studio", ignore=LEFT_OUT)
    shutil.copytree(ROOT / "kernels/torch-ext/video_bsa", folder / "video_bsa", ignore=LEFT_OUT)
    for name in ("tiny", "shapes"):
        shutil.copytree(ROOT / "assets" / name, folder / "studio/_assets" / name)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Give the folder to write: python assets/space/make.py FOLDER")
    try:
        make_space(Path(sys.argv[1]))
    except FileExistsError:
        sys.exit(f"{sys.argv[1]} exists already. Give another name; nothing is overwritten.")
    print(f"The Space is in {sys.argv[1]}")
