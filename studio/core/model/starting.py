"""Starts processes that run one model together, by torch's elastic agent."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch

from studio.core.errors import ProcessLost
from studio.core.model.processes import STARTED_BY, too_few_gpus
from studio.core.model.stop_wish import wishing

_KILL_SECONDS = 21
"""From SIGTERM until the agent kills what is not gone: a frozen process too ends within 30 s."""


def start_on_gpus(
    arguments: Sequence[str],
    count: int,
    *,
    is_sharded: bool = False,
    device: str = "auto",
    module: str = "studio",
    answer: Callable[[], None] | None = None,
) -> int:
    """`start_processes`, one for each of `count` GPUs, or as many on the CPU where that is the `device`.

    Raises DeviceError: there are fewer GPUs.
    """
    available = torch.cuda.device_count()
    if device != "cpu" and count > available:
        raise too_few_gpus(count, available)
    return start_processes(arguments, count, is_sharded=is_sharded, module=module, answer=answer)


def start_processes(
    arguments: Sequence[str],
    count: int,
    *,
    is_sharded: bool = False,
    module: str = "studio",
    answer: Callable[[], None] | None = None,
) -> int:
    """Runs `python -m` `module` with `arguments` in `count` processes on this machine, and returns its exit code when
    all have ended: when one fails or is killed, the others are ended.

    Ports are chosen by the system. A signal is passed on to all of them, which end within `processes.GRACE_SECONDS`;
    with an `answer` the first SIGINT or SIGTERM is a wish, as `stop_wish.wishing` says, and a step takes what it takes.

    Raises:
        ProcessLost: one was killed.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # What the agent logs of a failure is said by the process itself, or below.
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed.elastic")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # An agent that does not know it waits 30 s.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(_KILL_SECONDS))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    told = {STARTED_BY: str(os.getpid())}
    if is_sharded:
        told |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    os.environ |= told
    heard = ("SIGHUP", "SIGQUIT") if answer else ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")
    # What is ignored stays so: SIGHUP under nohup.
    heard = [number.name for number in signal.Signals if number.name in heard and not _is_ignored(number)]
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=count, run_id="studio", rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0", local_addr="127.0.0.1", max_restarts=0,
        signals_to_handle=",".join(heard),
        # Else each start leaves an empty folder among the temporary files.
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )  # fmt: skip
    came: list[int] = []
    try:
        with wishing(answer) if answer else nullcontext(came) as came:
            elastic_launch(config, sys.executable)("-m", module, *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            raise ProcessLost(
                f"Process {rank} of {count} was ended by {name}, and the others with it.",
                "If the machine ran out of main memory, use fewer GPUs.",
            ) from None
        return failure.exitcode
    except SignalException as ended:
        return 128 + int(came[-1] if came else ended.sigval)
    finally:
        for name in told:
            del os.environ[name]
    return 0


def _is_ignored(number: signal.Signals) -> bool:
    return signal.getsignal(number) == signal.SIG_IGN
