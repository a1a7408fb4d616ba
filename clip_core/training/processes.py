"""The processes of a run as torchrun started them: joining, agreeing on what to do, ending together.

Gradients and embeddings are exchanged by torch's own means in the step (ranks.py, DDP). What is here is of the host:
small messages over gloo, on whose answer every process does the same next. They may wait for hours, as while rank 0
evaluates; if a process dies, its connections close and the others end.
"""

import os
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from clip_core.errors import ClipError, TrainingError, UsageError
from clip_core.text import printable
from clip_core.training.device import choose_device
from clip_core.training.ranks import Rank

T = TypeVar("T")

START = "CLIP_TRAIN_START"  # environment variable: how often `--devices` has started its processes before
_OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_STEP_TIMEOUT = timedelta(minutes=20)  # of an exchange within a step
_WAIT_TIMEOUT = timedelta(days=30)  # of one between steps, where rank 0 may evaluate or pause
_LOST = ("gloo", "NCCL", "Connection closed", "Connection reset", "recvBytes", "TCPStore")


class EndedError(Exception):
    """Another process failed and says why; this one ends without a word.  args: (exit code,)"""


@dataclass(frozen=True)
class _Failure:
    """A message in place of an answer: the process ends."""

    sentence: str
    exit_code: int
    place: str


def under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return all(name in os.environ for name in _OF_TORCHRUN)


def restarted() -> bool:
    """Whether torchrun, or our own launcher, started this process in place of one that died."""
    return under_torchrun() and any(int(os.environ.get(n, "0")) > 0 for n in ("TORCHELASTIC_RESTART_COUNT", START))


class Processes:
    """All processes of a run; alone, every exchange answers at once.

    Attributes:
        rank: which one this is.
        local: its number on this machine.
    """

    def __init__(self, rank: Rank | None = None, local: int = 0, group: Any = None) -> None:
        self.rank, self.local, self._group = rank or Rank(), local, group
        self._parent = os.getppid()
        self.left = False

    @property
    def alone(self) -> bool:
        return self.rank.size == 1

    @property
    def orphaned(self) -> bool:
        """Whether torchrun, which would end the others if one died, is gone."""
        return not self.alone and os.getppid() != self._parent

    def device(self, of_run: str) -> str:
        """The device of this process: its own GPU, where the run is on GPUs."""
        return of_run if self.alone or torch.device(of_run).type != "cuda" else f"cuda:{self.local}"

    # ------------------------------------------------------------ exchanges, which every process makes in one order

    def exchange(self, own: T) -> list[T]:
        """What each process gives, by rank; waits for all.

        Raises:
            ClipError: on rank 0, if another process failed; with its sentence.
            EndedError: on the others, if one failed.
        """
        if self.alone:
            return [own]
        answers: list[Any] = [None] * self.rank.size
        torch.distributed.all_gather_object(answers, own, group=self._group)
        failed = next((answer for answer in answers if isinstance(answer, _Failure)), None)
        if failed is not None and not isinstance(own, _Failure):
            if not self.rank.writes:
                raise EndedError(failed.exit_code)
            error = ClipError(f"{failed.place}: {failed.sentence}")
            error.exit_code = failed.exit_code
            raise error
        return answers

    def of_first(self, value: T) -> T:
        """Rank 0's value; what the others give does not matter."""
        return self.exchange(value if self.rank.writes else None)[0]  # type: ignore[return-value]

    def most(self, *values: float) -> list[float]:
        """The largest of each value among all processes."""
        if self.alone:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX, group=self._group)
        largest: list[float] = tensor.tolist()
        return largest

    def sum_on_first(self, tensor: torch.Tensor) -> None:
        """Add the tensors of all processes, on the CPU, into that of rank 0; those of the others are then undefined."""
        if not self.alone:
            torch.distributed.reduce(tensor, 0, group=self._group)

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """The mean of each value over the processes, which all have the same names."""
        if self.alone:
            return dict(values)
        tensor = torch.tensor([values[name] for name in sorted(values)], dtype=torch.float64)
        torch.distributed.all_reduce(tensor, group=self._group)
        return dict(zip(sorted(values), (tensor / self.rank.size).tolist(), strict=True))

    @contextmanager
    def first_on_machine(self) -> Iterator[None]:
        """One process of each machine goes first, so that the others find in the cache what it decoded or loaded."""
        if self.local:
            self.exchange(None)
        yield
        if not self.local:
            self.exchange(None)

    # ------------------------------------------------------------ the end

    def leave(self) -> None:
        """Wait for no other process from here on; they end when the connections of this one close."""
        self.left = not self.alone

    def announce(self, error: BaseException) -> None:
        """Tell the others, at their next exchange, that this process ends, and why."""
        if self.alone:
            return
        code = error.exit_code if isinstance(error, ClipError) else 1
        place = printable(f"process {self.rank.rank} on {socket.gethostname()}")
        with suppress(RuntimeError, EndedError, ClipError):
            self.exchange(_Failure(printable(str(error)), code, place))

    def wait_for_first(self) -> None:
        """Until rank 0 has finished, or is gone: torchrun ends the others as soon as one has failed."""
        if self.left:
            return
        if not self.rank.writes:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a run that has ended, which rank 0 answers
        with suppress(RuntimeError, EndedError, ClipError):
            self.exchange(None)


def lost(error: BaseException) -> bool:
    """Whether an error says that another process is gone."""
    if not isinstance(error, RuntimeError):
        return False
    return isinstance(error, torch.distributed.DistError) or any(words in str(error) for words in _LOST)


def gone(step: int) -> TrainingError:
    """The sentence for a process that is gone."""
    return TrainingError(
        f"another process of this run ended after step {step}; resume the run from its last checkpoint with --resume."
    )


def join_processes(device: str | None) -> Processes:
    """All processes that torchrun started, connected: over nccl on GPUs, over gloo on CPUs, until clip-train ends.

    Raises:
        UsageError: if the device cannot be that of several processes.
    """
    if not under_torchrun() or int(os.environ["WORLD_SIZE"]) == 1:
        return Processes()
    chosen, local = choose_device(device), int(os.environ["LOCAL_RANK"])
    refuse_one_gpu(device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if chosen.type == "cuda":
        torch.cuda.set_device(local)
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    store, number, size = next(rendezvous("env://"))
    # A name of its own for each start: after a restart the store still has the addresses of the processes that died.
    store = PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    torch.distributed.init_process_group(backend, store=store, rank=number, world_size=size, timeout=_STEP_TIMEOUT)
    group = torch.distributed.new_group(backend="gloo", timeout=_WAIT_TIMEOUT)
    return Processes(Rank(number, size), local, group)


def refuse_one_gpu(device: str | None, processes: int) -> None:
    """Refuse a device that these processes of one machine cannot have one each of.

    Raises:
        UsageError: naming the flag.
    """
    chosen = choose_device(device)
    if chosen.type == "cuda" and torch.device(device or "cuda").index is not None:
        raise UsageError(f"--device {device} is one GPU; each process takes its own, so use --device cuda.")
    if chosen.type == "cuda" and processes > torch.cuda.device_count():
        raise UsageError(f"{processes} processes need as many GPUs, and this machine has {torch.cuda.device_count()}.")
    if chosen.type == "mps":
        raise UsageError("several processes cannot share an Apple GPU; use --device cpu, or one process.")


def same_on_all(tensors: Sequence[torch.Tensor], device: torch.device) -> None:
    """Replace these tensors by those of rank 0; exchanged on the device, where they need not be."""
    for tensor in tensors:
        exchanged = tensor.to(device)
        torch.distributed.broadcast(exchanged, 0)
        if exchanged is not tensor:
            tensor.copy_(exchanged)


def least(tensor: torch.Tensor) -> None:
    """Replace each value of this tensor by the least among the ranks."""
    torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MIN)


def average(tensors: Sequence[torch.Tensor], rank: Rank) -> None:
    """Replace these tensors by their means over the ranks."""
    works = [torch.distributed.all_reduce(tensor, async_op=True) for tensor in tensors]
    for work in works:
        if work is not None:
            work.wait()
    torch._foreach_div_(list(tensors), rank.size)
