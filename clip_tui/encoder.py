"""Client of the inference servers: one child process per backend, started at the first query, JSON lines."""

import asyncio
import itertools
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from clip_core.errors import BackendError
from clip_core.inference.bundle import Precision
from clip_core.run.paths import RunPaths

Backend = Literal["torch", "onnx"]
BACKENDS: tuple[Backend, Backend] = ("torch", "onnx")

SERVER = "clip_core.inference.server"
LINE_LIMIT = 64 * 1024 * 1024  # bytes of one answer
START_SECONDS = 120.0
STOP_SECONDS = 1.0


def other(backend: Backend) -> Backend:
    return "onnx" if backend == "torch" else "torch"


@dataclass(frozen=True)
class Answer:
    """A result, the model that it came from, and the time it took (seconds, without starting the process)."""

    result: dict[str, Any]
    backend: Backend
    source: str
    seconds: float


class EncoderClient:
    """One server process for one model and one backend; `precision`: of a bundle's variant, None for its default."""

    def __init__(self, model: Path, backend: Backend, log: Path, precision: Precision | None = None) -> None:
        self.model, self.backend, self.log, self.precision = model, backend, log, precision
        self.source = ""
        self._process: asyncio.subprocess.Process | None = None
        self._stderr: IO[bytes] | None = None
        self._ids = itertools.count(1)
        self._lock = asyncio.Lock()
        self._ending: asyncio.Task[None] | None = None

    async def ask(self, op: str, **values: Any) -> Answer:
        """Send one query and wait for its answer; queries are answered in turn.

        Raises:
            BackendError: the server's error, or why it did not answer.
        """
        async with self._lock:
            if self._process is None or self._process.returncode is not None:
                await self._start()
            started = time.perf_counter()
            number = next(self._ids)
            await self._send({"id": number, "op": op, **values})
            while (reply := await self._receive()).get("id") != number:
                continue  # the answer to a query that was dropped
            return Answer(_result(reply), self.backend, self.source, time.perf_counter() - started)

    async def close(self) -> None:
        """End the process. If the caller is cancelled the process still ends, and a later close waits for it."""
        ending = self._ending = self._ending or asyncio.create_task(self._end())
        await asyncio.shield(ending)
        if self._ending is ending:
            self._ending = None

    async def _end(self) -> None:
        """The process exits at the end of its input; otherwise it is killed."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            if process.stdin is not None:
                process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), STOP_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()
        if self._stderr is not None:
            self._stderr.close()
            self._stderr = None

    async def _start(self) -> None:
        await self.close()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._stderr = self.log.open("wb")
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", SERVER, str(self.model), "--backend", self.backend,
            *(["--precision", self.precision] if self.precision else []),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._stderr,
            limit=LINE_LIMIT,
            start_new_session=True,  # so that Ctrl-C in the terminal reaches the app only
        )  # fmt: skip
        try:
            hello = _result(await asyncio.wait_for(self._receive(), START_SECONDS))
        except TimeoutError:
            await self.close()
            raise BackendError(
                f"the {self.backend} encoder did not start within {START_SECONDS:.0f} s; see {self.log}."
            ) from None
        except (BackendError, asyncio.CancelledError):
            await self.close()
            raise
        self.source = str(hello.get("source", self.model))

    async def _send(self, query: dict[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(query).encode() + b"\n")
            await self._process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            raise self._gone() from None

    async def _receive(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            line = await self._process.stdout.readline()
            reply = json.loads(line) if line else None
        except ValueError:
            raise BackendError(f"the {self.backend} encoder sent invalid JSON.") from None
        if not isinstance(reply, dict):
            raise self._gone()
        return reply

    def _gone(self) -> BackendError:
        lines = [line for line in self.log.read_text("utf-8", "replace").splitlines() if line.strip()]
        why = f": {lines[-1].strip()}" if lines else "."
        return BackendError(f"the {self.backend} encoder for {self.model} has ended{why}")


def _result(reply: dict[str, Any]) -> dict[str, Any]:
    if not reply.get("ok"):
        raise BackendError(str(reply.get("error", "the encoder failed without a message.")))
    result = reply.get("result")
    return result if isinstance(result, dict) else {}


class Encoders:
    """The encoder of each backend for the open run, restarted for a new checkpoint or bundle.

    `precision`: of the bundle's variant that answers for ONNX; None: the bundle's default. It may be set at any time.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self.precision: Precision | None = None
        self._clients: dict[Backend, tuple[str, EncoderClient]] = {}
        self._retired: set[EncoderClient] = set()

    async def ask(self, run: Path, backend: Backend, op: str, **values: Any) -> Answer:
        """Raises: BackendError."""
        precision = self.precision if backend == "onnx" else None
        identity = f"{await asyncio.to_thread(_identity, run, backend)}:{precision}"
        known = self._clients.get(backend)
        if known is None or known[0] != identity:
            client = EncoderClient(run, backend, self._logs / f"encoder-{backend}.log", precision)
            self._clients[backend] = (identity, client)
            if known is not None:
                self._retired.add(known[1])
                await known[1].close()
                self._retired.discard(known[1])
        return await self._clients[backend][1].ask(op, **values)

    async def close(self) -> None:
        clients = [*self._retired, *(client for _, client in self._clients.values())]
        self._clients.clear()
        await asyncio.gather(*(client.close() for client in clients))


def _identity(run: Path, backend: Backend) -> str:
    """Changes with the best checkpoint, or with the bundle."""
    paths = RunPaths(run)
    files = [paths.bundle_manifest] if backend == "onnx" else [paths.best, paths.latest]
    path = next((file for file in files if file.exists()), None)
    return f"{run}:{path}:{path.stat().st_mtime_ns if path else 0}"
