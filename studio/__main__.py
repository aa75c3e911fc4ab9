"""`python -m studio`: the command line, and the app when nothing else is asked for."""

from __future__ import annotations

import sys

from studio.cli import main


def run() -> None:
    """Entry point of the command `longcat-studio`."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
