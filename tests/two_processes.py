"""Two processes on the CPU that work as one (gloo), for the tests of several GPUs."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECONDS = 120
"""A deadline, not a time that is asked for: two cores that others use too."""


def environment(**more):
    """Of a process that the tests start; it may import them."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels/torch-ext")])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def run_two(program, *arguments):
    """Runs the file `program` in two processes that know of each other; returns what both said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    everyone = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    children = [
        subprocess.Popen(
            [sys.executable, program, *map(str, arguments)],
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **everyone),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    deadline, said = time.monotonic() + SECONDS, []
    try:
        for child in children:
            said.append(child.communicate(timeout=max(1.0, deadline - time.monotonic()))[0])
    finally:
        for child in children:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.communicate()
    assert [child.returncode for child in children] == [0, 0], "\n".join(said)
    return said
