"""Start the processes of `--devices N` on this machine, by torchrun's own launcher."""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from clip_core.errors import MISTAKE, RunBusyError
from clip_core.run.writer import LAUNCHER
from clip_core.training.processes import START, refuse_one_gpu

_COMMAND = "clip_core.cli.train"


def launch(devices: int, device: str | None, flags: Sequence[str], *, restarts: int = 0) -> int:
    """Train with so many processes; their output is that of this one. Returns the exit code.

    SIGINT and SIGTERM are passed on to all of them, once; when one dies, the others are ended.

    Args:
        restarts: times that all are started again where one has died; they resume the run. A mistake that a sentence
            was said about is not repeated.
    Raises:
        UsageError: if the machine does not have so many devices.
    """
    refuse_one_gpu(device, devices)
    logging.disable(logging.CRITICAL)  # the processes speak for themselves, not the launcher
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # training outlives the terminal
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(cores // devices, 1)))
    os.environ[LAUNCHER] = str(os.getpid())
    for start in range(restarts + 1):
        os.environ[START] = str(start)
        try:
            elastic_launch(_config(devices), sys.executable)("-u", "-m", _COMMAND, *flags)
        except SignalException as ended:
            return 128 + int(ended.sigval)
        except ChildFailedError as failed:
            code, mistake = _exit_code(failed)
            if mistake or start == restarts:
                return code
            print(f"clip-train: all processes are started again ({start + 1} of {restarts}).", file=sys.stderr)
        else:
            return 0
    raise AssertionError("unreachable")


def _config(devices: int) -> LaunchConfig:
    """Of one start; torchrun's own restarts would repeat a user's mistake."""
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        signals_to_handle="SIGTERM,SIGINT",
    )


def _exit_code(failed: ChildFailedError) -> tuple[int, bool]:
    """Rank 0's, which has said why, or a sentence about a process that was killed; and whether it is a mistake."""
    codes = {rank: failure.exitcode for rank, failure in failed.failures.items()}
    for rank, code in sorted(codes.items()):
        if code < 0 and code not in (-signal.SIGTERM, -signal.SIGINT):
            name = signal.Signals(-code).name
            print(f"clip-train: process {rank} was ended by {name}; the others were stopped.", file=sys.stderr)
    said = {code: code - MISTAKE for code in codes.values() if MISTAKE < code <= MISTAKE + RunBusyError.exit_code}
    first = next((code for _, code in sorted(codes.items()) if code > 0), 1)
    return said.get(first, first), bool(said)
