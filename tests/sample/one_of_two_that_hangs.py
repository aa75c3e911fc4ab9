"""One of two processes of the command `sample`, given as arguments: the second one runs out of memory in the first
step, in which the first one hangs, as NCCL lets it.
"""

import os
import sys
import time
from functools import wraps

from studio.cli import main
from studio.core.model import load, processes
from tests.memory_that_runs_out import failing

LOAD = load.load_bundle


@wraps(LOAD)
def load_bundle(*how):
    bundle = LOAD(*how)
    block = bundle.dit.blocks[0]
    if os.environ["RANK"] == "1":
        bundle.kept["fails"] = failing(block)
        bundle.kept["fails"].__enter__()
    else:
        block.register_forward_pre_hook(lambda *_: time.sleep(600))
    return bundle


load.load_bundle = load_bundle
processes.GRACE_SECONDS = 1.0
sys.exit(main(sys.argv[1:]))
