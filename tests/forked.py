"""Commands that start in a tenth of a second: forked from one process that has imported PyTorch and their modules.

Each is a process of its own with its own session, signal handlers, working directory, environment, arguments, streams
and exit code, and runs its module as `python -m` does, to the interpreter's own end. Only its imports are not its own:
tests of a command's start, of what it imports and of a signal meanwhile take `subprocess`.

As a program: for each request on the socket, a JSON line with the streams attached, a child; or the state of one.
It never computes itself, so that a child has all its threads to start.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import IO, Any

# What to import before the fork for a module; the rest it imports itself.
PRELOADED = {
    "clip_core.cli.train": ["clip_core.training.session", "clip_core.cli.train_command"],
    "tests.second_device": ["clip_core.training.session", "clip_core.cli.train_command"],
    "export.cli": ["export.bundle", "torch.onnx._internal.exporter._core", "onnxscript"],
}


class Forked:
    """What `subprocess.Popen` is for other processes; its streams are files, complete once it has ended."""

    def __init__(self, pid: int, stdout: IO[str] | None, stderr: IO[str] | None) -> None:
        self.pid, self.stdout, self.stderr = pid, stdout, stderr
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = _ask({"state": self.pid})
        return self.returncode

    def wait(self, timeout: float = 600) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.01)
        return code

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        self.wait(timeout)
        return (self.stdout.read() if self.stdout else "", self.stderr.read() if self.stderr else "")

    def send_signal(self, number: int) -> None:
        """Its id stays taken until `poll` has seen its end, so that no other process is ever meant."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    module: str,
    *arguments: str,
    cwd: Path,
    environment: dict[str, str],
    out: int = subprocess.DEVNULL,
    err: int = subprocess.PIPE,
) -> Forked:
    """`python -m MODULE ARGUMENTS`; `out` and `err` are as those of Popen."""
    streams, readers = [], []
    for given in (out, err):
        reader = None
        if given == subprocess.PIPE:
            with tempfile.NamedTemporaryFile() as file:
                streams.append(os.open(file.name, os.O_WRONLY))
                reader = os.fdopen(os.open(file.name, os.O_RDONLY))
        else:
            streams.append(os.open(os.devnull, os.O_WRONLY) if given == subprocess.DEVNULL else os.dup(given))
        readers.append(reader)
    order = {"module": module, "arguments": arguments, "cwd": str(cwd), "environment": environment}
    try:
        return Forked(_ask(order, streams), *readers)
    finally:
        for stream in streams:
            os.close(stream)


@cache
def _server() -> tuple[socket.socket, IO[str]]:
    """The process that forks, started when a test first needs it; it ends with this one, and its children with it."""
    here, there = socket.socketpair()
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(there.fileno())],
        env=environment, stdin=subprocess.DEVNULL, pass_fds=[there.fileno()], start_new_session=True,
    )  # fmt: skip
    there.close()

    def end() -> None:
        here.shutdown(socket.SHUT_RDWR)
        process.wait(60)

    atexit.register(end)
    return here, here.makefile()


def _ask(order: dict[str, Any], streams: list[int] | None = None) -> Any:
    here, answers = _server()
    line = json.dumps(order).encode() + b"\n"
    sent = socket.send_fds(here, [line], streams or [])
    here.sendall(line[sent:])
    answer = answers.readline()
    assert answer, "the process that forks has ended"
    return json.loads(answer)


def serve(control: socket.socket) -> None:
    """Answers requests until their sender is gone; returns in each child as the module's end of the program."""
    children: set[int] = set()
    while (received := _receive(control)) is not None:
        order, streams = received
        if "state" in order:
            pid, status = os.waitpid(order["state"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
            children.discard(pid)
        else:
            for name in PRELOADED[order["module"]]:
                importlib.import_module(name)
            gc.freeze()  # a collection in a child would copy the pages of all that was imported
            answer = os.fork()
            if answer == 0:
                control.close()
                _become(order, streams)
                return
            children.add(answer)
            for stream in streams:
                os.close(stream)
        control.sendall(json.dumps(answer).encode() + b"\n")
    for child in children:
        os.kill(child, signal.SIGKILL)


def _receive(control: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    line, streams = b"", []
    while not line.endswith(b"\n"):
        block, more, _, _ = socket.recv_fds(control, 1 << 20, 2)
        if not block:
            return None
        line, streams = line + block, streams + more
    return json.loads(line), streams


def _become(order: dict[str, Any], streams: list[int]) -> None:
    os.setsid()
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.argv[:] = [order["module"], *order["arguments"]]
    runpy.run_module(order["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    atexit.register(gc.unfreeze)  # the last collection is of everything, or triton's bindings report leaks
    serve(socket.socket(fileno=int(sys.argv[1])))
