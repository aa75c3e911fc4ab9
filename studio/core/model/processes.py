"""Several processes that run one model together: how they find each other, agree, and end together.

They are started by `accelerate launch`, by `torchrun` or by `starting.py`, one for each GPU, and all run the same
program with the same arguments. The first one, rank 0, writes and speaks for all.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import PartialState

from studio.core.errors import ConfigError, DeviceError, OutOfMemory, ProcessLost, StudioError

Value = TypeVar("Value")

GRACE_SECONDS = 18.0
"""From SIGTERM, or from the loss of the process that started these, until a process that hangs ends itself."""
WAIT = timedelta(hours=2)
"""How long one process waits for another that lives: while a dataset is checked, or a checkpoint written."""
_LOOK_SECONDS = 0.5
_SPEAK_SECONDS = 2.0
"""Before another process ends of itself: the launcher then ends the first one, which may have something to say."""
STARTED_BY = "LONGCAT_STUDIO_STARTED_BY"
"""The variable that names the process that starts these; it may be gone before they look."""
_FAILED = "studio/failed"
_LOST_PEER = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL", "Broken pipe")


@dataclass(frozen=True, kw_only=True, slots=True)
class Processes:
    """The processes of a run as one of them sees them. What is agreed on must be asked by all, in the same order."""

    rank: int = 0
    count: int = 1
    is_sharded: bool = False
    """True where each holds a part of the frozen transformer, and lends it to the others (FSDP2)."""
    control: dist.ProcessGroup | None = None
    """For small tensors in main memory (gloo); None for a process alone."""
    tellers: list[Callable[[StudioError], None]] = field(default_factory=list)
    """Who is told, from another thread, why this process is about to be ended."""
    failed: threading.Event = field(default_factory=threading.Event)
    """Set when what they do together was broken off, so that this one must not wait for the others."""

    @property
    def is_main(self) -> bool:
        """True for the one that writes."""
        return self.rank == 0

    def agree(self, answer: bool) -> bool:
        """The first process's answer, on all. Raises ProcessLost."""
        if self.count == 1:
            return answer
        told = torch.tensor([int(answer)])
        self._run(lambda: dist.broadcast(told, src=0, group=self.control))
        return bool(told.item())

    def tell(self, value: Value) -> Value:
        """The first process's value, on all; what the others give is left aside. Raises ProcessLost."""
        box = [value]
        if self.count > 1:
            self._run(lambda: dist.broadcast_object_list(box, src=0, group=self.control))
        return box[0]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in main memory, of tensors of one shape. Raises ProcessLost."""
        if self.count == 1:
            return tensor
        total = tensor.detach().to("cpu", copy=True)
        self._run(lambda: dist.all_reduce(total, group=self.control))
        return total

    def all_agree(self, answer: bool) -> bool:
        """True where the answer of every process is. Raises ProcessLost."""
        return int(self.sum(torch.tensor(int(answer)))) == self.count

    def require_same(self, what: str, value: str) -> None:
        """Raises ConfigError on all processes when one has another `value` than the first."""
        if self.count == 1:
            return
        own = torch.tensor(list(hashlib.sha256(value.encode()).digest()), dtype=torch.uint8)
        all_of_them = [torch.empty_like(own) for _ in range(self.count)]
        self._run(lambda: dist.all_gather(all_of_them, own, group=self.control))
        others = [str(rank) for rank, digest in enumerate(all_of_them) if not torch.equal(digest, all_of_them[0])]
        if others:
            raise ConfigError(
                f"Process {others[0]} of {self.count} has another {what} than process 0.",
                "Give all processes the same files, and start them again.",
            )

    def fail(self, error: StudioError) -> None:
        """Leaves word of why this process ends, for the first one to tell."""
        if self.count == 1:
            return
        self.failed.set()
        if not isinstance(error, ProcessLost):
            with suppress(RuntimeError):
                settings = error.settings if isinstance(error, OutOfMemory) else ()
                _store().set(_FAILED, json.dumps([error.message, error.remedy, settings]))

    def explained(self, error: Exception) -> Exception:
        """The error itself, or `lost()` where it only says that another process is gone."""
        if self.count == 1 or not is_lost_peer(error):
            return error
        return self.lost()

    def lost(self, otherwise: str | None = None) -> StudioError:
        """What the process that ended first left word of, OutOfMemory where settings would mend it, or `otherwise`."""
        with suppress(RuntimeError, ValueError):
            if _store().check([_FAILED]):
                message, remedy, settings = json.loads(_store().get(_FAILED))
                error = OutOfMemory(message, remedy) if settings else ProcessLost(message, remedy)
                if isinstance(error, OutOfMemory):
                    error.settings = tuple((file, key, value) for file, key, value in settings)
                return error
        said = otherwise or f"One of the {self.count} processes was lost, so all have ended."
        return ProcessLost(said, "If the machine ran out of main memory, use fewer processes.")

    @contextmanager
    def telling(self, teller: Callable[[StudioError], None]) -> Iterator[None]:
        """Inside, `teller` is one of `tellers`."""
        self.tellers.append(teller)
        try:
            yield
        finally:
            self.tellers.remove(teller)

    def outlast_sigterm(self) -> None:
        """In the main thread: SIGTERM alone does not end the first of several, whose tellers are to say why before."""
        if self.count > 1 and self.is_main:
            signal.signal(signal.SIGTERM, lambda *_: None)

    def _run(self, collective: Callable[[], object]) -> None:
        try:
            collective()
        except RuntimeError as error:
            raise self.explained(error) from error


ALONE = Processes()


def is_lost_peer(error: BaseException) -> bool:
    """True for what torch raises when another process of the group has ended."""
    is_known = isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in _LOST_PEER)
    )
    return is_known and not isinstance(error, torch.OutOfMemoryError)


def is_one_of_many() -> bool:
    """True in a process that a launcher started beside others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined(device: str = "auto") -> Iterator[Processes]:
    """Inside, this process is one of those that a launcher started, or `ALONE` when none did.

    Whatever one of them raises ends all. One that is told to end (SIGTERM, SIGINT) and hangs, as NCCL lets it when
    another one is gone, is ended after `GRACE_SECONDS`, when its `tellers` have been told why.

    Raises:
        ConfigError: accelerate is set to something that is not used here.
        DeviceError: there are fewer GPUs than processes, or they do not find each other.
        ProcessLost: another one has ended.
    """
    if not is_one_of_many():
        yield ALONE
        return
    processes = Processes(rank=int(os.environ.get("RANK", "0")))
    try:
        with _ended_together(processes):
            processes = _join(device, processes.tellers)
            yield processes
            if not processes.failed.is_set():
                PartialState().destroy_process_group()
    except (StudioError, RuntimeError) as error:
        explained = processes.explained(error)
        if not isinstance(explained, StudioError):
            raise
        processes.fail(explained)
        if processes.is_main:
            raise explained from None
        time.sleep(_SPEAK_SECONDS)
        raise SystemExit(1) from error
    finally:
        _abort()


def _abort() -> None:
    """Ends the process group without the other processes, where it is still there: they may be gone, or hang."""
    if dist.is_initialized():
        # gloo knows no abort, and needs none.
        with suppress(RuntimeError):
            cast(dist.ProcessGroup, dist.group.WORLD).abort()


def _join(device: str, tellers: list[Callable[[StudioError], None]]) -> Processes:
    is_sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if is_sharded and os.environ.get("FSDP_VERSION", "1") != "2":
        raise ConfigError(
            "accelerate is set to FSDP version 1, which shards the LoRA with the transformer.",
            "Set fsdp_version to 2, or give --fsdp_version 2.",
        )
    for name in ("DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            raise ConfigError(f"accelerate is set to {name}, which is not used here.", "Use MULTI_GPU, or FSDP.")
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    if ":" in device:
        raise ConfigError(f"The device is {device}, and there are several processes.", "Use the device auto.")
    local, available = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])), torch.cuda.device_count()
    if not on_cpu and local > available:
        raise too_few_gpus(local, available)
    try:
        state = PartialState(cpu=on_cpu, timeout=WAIT)
        control = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=WAIT))
    except (RuntimeError, OSError, ValueError) as error:
        PartialState._reset_state()
        address = f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}"
        if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
            raise DeviceError(f"The port {address} is in use.", "Give another --main_process_port.") from error
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DeviceError(
            f"The processes did not find each other at {address}: {first}", "Start them again."
        ) from error
    return Processes(
        rank=state.process_index, count=state.num_processes, is_sharded=is_sharded, control=control, tellers=tellers
    )  # fmt: skip


def too_few_gpus(asked: int, available: int) -> DeviceError:
    """The sentence for it."""
    there = "is 1" if available == 1 else f"are {available}"
    remedy = f"Ask for {available}." if available else "Use a machine with GPUs, or one process."
    return DeviceError(f"{asked} GPUs were asked for, and there {there} here.", remedy)


def _store() -> dist.Store:
    return dist.distributed_c10d._get_default_store()


@contextmanager
def _ended_together(processes: Processes) -> Iterator[None]:
    """Inside, this process does not outlive those that it works with, whatever its main thread hangs in."""
    ended = threading.Event()
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_watch, args=(processes, reader, ended), name="ends together", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(before)
        thread.join(2 * _LOOK_SECONDS)
        reader.close()
        writer.close()


def _watch(processes: Processes, reader: socket.socket, ended: threading.Event) -> None:
    parent, deadline = int(os.environ.get(STARTED_BY, os.getppid())), None
    hangs = f"It was told to end, or another process was lost, and its step was not done in {GRACE_SECONDS:g} s."
    while not ended.is_set():
        is_told = False
        if select.select([reader], [], [], _LOOK_SECONDS)[0]:
            is_told = bool({signal.SIGTERM, signal.SIGINT} & set(reader.recv(64)))
        if os.getppid() != parent:
            # Who started us is gone: end as if it had said so.
            parent = os.getppid()
            os.kill(os.getpid(), signal.SIGTERM)
        if is_told and deadline is None:
            deadline = time.monotonic() + GRACE_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            try:
                why = processes.lost(hangs)
                for teller in processes.tellers:
                    teller(why)
            finally:
                os._exit(128 + signal.SIGTERM)
