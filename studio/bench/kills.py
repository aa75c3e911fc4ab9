"""A run that is killed again and again beside one that is not: they must end equal, bit for bit.

The process that trains is a fork of one that has imported everything and done nothing else, so that a start takes a
second and not ten; it runs `python -m studio train` from there on, and is ended by SIGKILL.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from studio.bench.drawn import write_project
from studio.core.data.digest import file_hash
from studio.core.events import StepDone
from studio.core.runlog import RunFolder, RunState, list_runs
from studio.view.terminal import write

STEPS_A_LIFE = 2
"""After at most so many steps the next kill is due."""
STEPS_A_KILL = 3
"""So many a kill the run is long: a kill may come late, and a run that is done cannot be killed."""

LOG = "log.txt"
"""In a project: what its processes print."""

_TOLD_EVERY = 10
"""Kills between two lines of progress."""

_TAIL = 2000
"""Characters of what a process printed last."""
_A_STEP, _A_FILE = 0.05, 0.005
"""Seconds between two looks for a step, which takes long, and for a file that is being written, which does not."""
_SECONDS = 120
"""So long a process may take to start, or to end, before it is said to hang; a step may take a tenth of it."""

_SERVE = "from studio.cli import main; from studio.bench.kills import serve_forks; serve_forks(main)"


@dataclass(frozen=True, kw_only=True, slots=True)
class KillReport:
    """What became of the run that was killed."""

    num_kills: int
    num_replayed: int
    """Steps that were done again."""
    num_half_written: int
    """Kills that left an unfinished checkpoint behind."""
    num_steps: int
    """Steps whose losses were compared."""
    are_losses_equal: bool
    is_lora_equal: bool | None
    """None here and below: the bench was ended before the run."""
    is_optimiser_equal: bool | None
    is_average_equal: bool | None
    seconds: float


def compare_kills(
    num_kills: int,
    folder: Path,
    *,
    seed: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
    on_kill: Callable[[int, int], None] = lambda kills, half_written: None,
) -> KillReport:
    """Trains twice in the new `folder`, killing one of the two; accumulation, EMA and both dropouts are on.

    `on_kill` is told how many kills there were, and how many of them left an unfinished checkpoint. Once `should_stop`
    says so, what there is by then is compared.

    Raises RuntimeError when a start fails or hangs.
    """
    started = time.monotonic()
    draw = random.Random(seed)
    num_steps = STEPS_A_KILL * num_kills
    settings: dict[str, Any] = {
        "gradient_accumulation_steps": 2, "lora_dropout": 0.1, "use_ema": True, "ema_decay": 0.9,
        "caption_dropout_probability": 0.3, "lr_scheduler": "cosine", "lr_warmup_steps": 2,
        "max_train_steps": num_steps, "checkpointing_steps": 2, "checkpoints_total_limit": 3,
    }  # fmt: skip
    calm, killed = (write_project(folder / name, **settings) for name in ("calm", "killed"))
    kills = half_written = 0
    with fork_server() as server:
        if server.train(calm).wait(num_steps) != 0:
            raise RuntimeError("The run that nobody kills did not finish.")
        while kills < num_kills and not should_stop():
            life = server.train(killed)
            before = _step(killed)
            is_saving = draw.random() < 0.5
            _await_progress(killed, before + draw.randint(1, STEPS_A_LIFE), is_saving=is_saving)
            if not is_saving:
                time.sleep(draw.uniform(0, 0.2))
            life.kill()
            kills += 1
            half_written += any(_run(killed).path.glob("checkpoints/.step-*.part"))
            on_kill(kills, half_written)
        is_whole = kills == num_kills
        if is_whole and server.train(killed).wait(num_steps) != 0:
            raise RuntimeError("The run that was killed did not finish.")
    first, second = _run(calm), _run(killed)
    steps = [event.step for _, event in second.events() if isinstance(event, StepDone)]
    replayed = len(steps) - len(set(steps))
    files = ("lora.safetensors", "optim.safetensors", "ema.safetensors")
    last = f"checkpoints/step-{num_steps:06d}"
    same = [is_whole and file_hash(first.path / last / n) == file_hash(second.path / last / n) for n in files]
    losses = second.snapshot().losses
    return KillReport(
        num_kills=kills,
        num_replayed=replayed,
        num_half_written=half_written,
        num_steps=len(losses),
        are_losses_equal=first.snapshot().losses[: None if is_whole else len(losses)] == losses,
        is_lora_equal=same[0] if is_whole else None,
        is_optimiser_equal=same[1] if is_whole else None,
        is_average_equal=same[2] if is_whole else None,
        seconds=time.monotonic() - started,
    )


def bench_kills(num_kills: int, should_stop: Callable[[], bool]) -> None:
    """Prints what became of a run that was killed so many times, or until `should_stop` said so."""
    started = time.monotonic()

    def tell(kills: int, half_written: int) -> None:
        if kills % _TOLD_EVERY == 0:
            write(f"{kills} kills in {time.monotonic() - started:.0f} s, {half_written} while a checkpoint was written")

    with tempfile.TemporaryDirectory() as folder:
        report = compare_kills(num_kills, Path(folder), should_stop=should_stop, on_kill=tell)
    write(f"\n{report.num_kills} kills in {report.seconds:.0f} s: {report.num_replayed} steps done again,")
    write(f"{report.num_half_written} half-written checkpoints left behind. Equal bit for bit to the calm run:")
    write(f"losses of {report.num_steps} steps {report.are_losses_equal}" + _weights(report))


def _weights(report: KillReport) -> str:
    if report.is_lora_equal is None:
        return "; the bench was ended before the run, so the weights are not compared"
    return (
        f", LoRA {report.is_lora_equal}, optimiser {report.is_optimiser_equal}, "
        f"moving average {report.is_average_equal}"
    )


class Life:
    """One process that trains."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self._server = server
        self._pid = pid

    def kill(self) -> None:
        """Ends it with SIGKILL. Raises RuntimeError when it had ended by itself, or does not end."""
        self.send(signal.SIGKILL)
        if (status := self.wait()) != -signal.SIGKILL:
            raise RuntimeError(f"The process ended by itself, with {status}.")

    def send(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        os.kill(self._pid, number)

    def wait(self, num_steps: int = 0) -> int:
        """Its exit code, once it has ended; minus the number of a signal that ended it. Only once.

        Raises RuntimeError when it takes longer than a start and so many steps may take.
        """
        return self._server.answer(_SECONDS + num_steps * _SECONDS / 10)


class ForkServer:
    """A process that forks one that trains, whenever it is told to."""

    def __init__(self, process: subprocess.Popen[bytes], said: IO[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._orders, self._answers = process.stdin, process.stdout
        self._said = said

    def train(self, config: Path) -> Life:
        """`python -m studio train --config config`, with `--resume` when a run was begun before."""
        resume = ["--resume"] if list_runs(config.parent / "runs") else []
        self._orders.write(json.dumps(["train", "--config", str(config), *resume]).encode() + b"\n")
        return Life(self, self.answer(_SECONDS))

    def answer(self, seconds: float) -> int:
        """The number that it prints next. Raises RuntimeError when that takes longer, or it has ended."""
        if not select.select([self._answers], [], [], seconds)[0]:
            raise RuntimeError(f"A process of the bench hangs: no answer within {seconds:.0f} s.")
        line = self._answers.readline()
        if not line:
            self._said.seek(0)
            raise RuntimeError(f"The process that forks has ended: {self._said.read()[-_TAIL:].decode()}")
        return int(line)


@contextmanager
def fork_server() -> Iterator[ForkServer]:
    """A server for as long as the block runs; then it is killed, and whatever it forked with it."""
    with tempfile.TemporaryFile() as said:
        # Without a buffer, select() sees each answer.
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVE], cwd=Path(__file__).parents[2], start_new_session=True, bufsize=0,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        try:
            yield ForkServer(process, said)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def serve_forks(main: Callable[[list[str]], int]) -> None:
    """Forks a process that runs `main`, the command line, for each line of arguments on the input; prints its number,
    and its exit code once it ended.

    Raises RuntimeError when another thread runs, of a library too: a fork could find it holding a lock.
    """
    from tqdm import tqdm

    from studio.core.config import ModelConfig
    from studio.core.data.check import check_project
    from studio.core.model.load import load_bundle
    from studio.core.train.job import run_inline

    tqdm.monitor_interval = 0  # no thread that watches the bars: a fork in which it holds their lock never draws one
    # Its own lock is a semaphore that all forks share: one that is killed while it draws would hold it for ever.
    tqdm.set_lock(threading.RLock())
    # Whatever they import late is imported now; each fork loads a model of its own.
    load_bundle(ModelConfig(source="tiny", device="cpu"))
    del check_project, run_inline
    tasks = Path("/proc/self/task")
    num_threads = len(list(tasks.iterdir())) if tasks.is_dir() else threading.active_count()
    if num_threads > 1:
        raise RuntimeError(f"Cannot fork beside {num_threads - 1} more threads: {threading.enumerate()}.")
    for line in sys.stdin:
        arguments = json.loads(line)
        pid = os.fork()
        if pid == 0:
            log = os.open(Path(arguments[2]).with_name(LOG), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os._exit(main(arguments))
        print(pid, flush=True)  # noqa: T201 the answer
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)  # noqa: T201 the answer


def _await_progress(config: Path, step: int, *, is_saving: bool) -> None:
    """Returns once `step` is done and, with `is_saving`, the next checkpoint is being written."""
    deadline = time.monotonic() + _SECONDS
    while not list_runs(config.parent / "runs") or _step(config) < step:
        _check(config, deadline)
        time.sleep(_A_STEP)
    while is_saving and not any(_run(config).path.glob("checkpoints/.step-*.part")):
        _check(config, deadline)
        time.sleep(_A_FILE)


def _check(config: Path, deadline: float) -> None:
    """Raises RuntimeError: the run is over, or shows nothing new by the deadline."""
    runs = list_runs(config.parent / "runs")
    state = runs[0].state() if runs else RunState.NEW
    is_over, is_late = state in (RunState.FINISHED, RunState.FAILED), time.monotonic() > deadline
    if is_over or is_late:
        said = config.with_name(LOG).read_text(encoding="utf-8", errors="replace")[-_TAIL:]
        what = "hangs" if is_late else f"is {state}"
        raise RuntimeError(f"The run {what} and could not be killed as planned. It said: {said}")


def _run(config: Path) -> RunFolder:
    return list_runs(config.parent / "runs")[0]


def _step(config: Path) -> int:
    """Steps that were done by anyone yet."""
    runs = list_runs(config.parent / "runs")
    steps = [event.step for _, event in runs[0].events() if isinstance(event, StepDone)] if runs else []
    return len(steps)
