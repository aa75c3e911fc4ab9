"""Two processes on the CPU that work as one (gloo), for the tests of several GPUs."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECONDS = 120
"""A deadline, not a time that is asked for: two cores that others use too."""


def environment(**more):
    """Of a process that the tests start; it may import them."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels/torch-ext")])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def run_two(program, *arguments):
    """Runs the file `program`, which calls `as_two`; returns what both processes said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    everyone = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    first = subprocess.Popen(
        [sys.executable, program, *map(str, arguments)], env=environment(**everyone),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = first.communicate(timeout=SECONDS)
    finally:
        if first.poll() is None:
            os.killpg(first.pid, signal.SIGKILL)
            first.communicate()
    assert first.returncode == 0, said
    return said


def as_two(work):
    """Calls `work` in this process and in a copy of it, which know of each other; what both import is read once."""
    copy = os.fork()
    os.environ["RANK"] = os.environ["LOCAL_RANK"] = "0" if copy else "1"
    try:
        work()
    except BaseException:
        if copy:
            os.kill(copy, signal.SIGKILL)
        raise
    finally:
        code = os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1]) if copy else 0
    assert code == 0, f"process 1 ended with {code}"
