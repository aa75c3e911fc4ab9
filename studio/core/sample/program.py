"""What waits for several GPUs, rendered by a program of its own: one process a GPU, and one that starts them.

`python -m studio.core.sample.program GALLERY GPUS DEVICE` is `render_queue` on so many processes. All that others need
to know of it is in the files of the queue; a cancelled sample is one whose entry says so. The processes end when their
stdin does, that is with whoever started them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from studio.core.errors import ConfigError, DeviceError, StudioError
from studio.core.filelock import FileLock
from studio.core.model.processes import is_one_of_many
from studio.core.model.starting import start_on_gpus
from studio.core.train.launch import last_sentence

LOG = ".processes.log"
_MODULE = "studio.core.sample.program"
_LOOK_SECONDS = 0.1
_END_SECONDS = 30.0
"""From the end of their stdin until the processes are gone, or the one that started them is killed."""


def render_on_gpus(gallery: Path, gpus: int, device: str, lock: FileLock, stop: threading.Event) -> StudioError:
    """Starts the program for what runs in the queue, and waits until it ends, or ends it at a `stop`.

    Returns what to say of a sample that is not done then. The program too holds the `lock` of the queue, until its last
    process is gone, even where this one is killed.

    Raises:
        ConfigError: it cannot be started.
    """
    if sys.platform == "win32":
        return DeviceError("Several GPUs share the work of a sample on Linux alone.", "Ask for one.")
    assert lock.descriptor is not None
    log = gallery / "queue" / LOG
    command = [sys.executable, "-m", _MODULE, str(gallery), str(gpus), device]
    try:
        with log.open("wb") as said:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True,
                pass_fds=(lock.descriptor,),
            )  # fmt: skip
    except OSError as error:
        raise ConfigError(
            f"The processes of the sample cannot be started: {error.strerror}.", "Free some space."
        ) from error
    assert process.stdin is not None
    try:
        while process.poll() is None and not stop.wait(_LOOK_SECONDS):
            pass
    finally:
        process.stdin.close()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    code = process.returncode
    if code < 0:
        ended = f"The process that started the {gpus} others was ended by {signal.Signals(-code).name}."
    else:
        ended = last_sentence(log) or f"The {gpus} processes ended before the sample was done."
    return StudioError(ended, "")


def main(arguments: Sequence[str]) -> int:
    """What the program does, in the process that starts the others and in each of these. Returns its exit code."""
    gallery, gpus, device = arguments
    try:
        if not is_one_of_many():
            return start_on_gpus(arguments, int(gpus), device=device, module=_MODULE)
        threading.Thread(target=_end_with_stdin, name="ends with stdin", daemon=True).start()
        # The process that starts the others has no need of it.
        from studio.core.sample.parallel import render_queue

        render_queue(Path(gallery), device)
    except StudioError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _end_with_stdin() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
