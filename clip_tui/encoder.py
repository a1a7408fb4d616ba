"""Client of the inference servers: one child process per model and backend, started at the first query, JSON lines."""

import asyncio
import itertools
import json
import os
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from clip_core.errors import BackendError
from clip_core.run.paths import MANIFEST, RunPaths

Backend = Literal["torch", "onnx"]

SERVER = "clip_core.inference.server"
LINE_LIMIT = 64 * 1024 * 1024  # bytes of one answer
START_SECONDS = 120.0
STOP_SECONDS = 1.0
KEPT = 2  # processes; each holds a model in memory
_STDERR_BYTES = 4096  # of its end are read

Progress = Callable[[str], None]  # what the encoder does: `starting`, `embedding 120 of 5,000 images`


def other(backend: Backend) -> Backend:
    return "onnx" if backend == "torch" else "torch"


@dataclass(frozen=True)
class Model:
    """A model as a server loads it.

    Attributes:
        path: a run, a checkpoint folder or a bundle.
        name: what the interface calls it: `torch`, `onnx`, `int8`, `step_0000180`.
        precision: a variant of a bundle; None is the bundle's first.
    """

    path: Path
    backend: Backend
    name: str
    precision: str | None = None


def model_of(run: Path, backend: Backend) -> Model:
    """The run's best checkpoint, or its bundle."""
    return Model(run, backend, backend)


@dataclass(frozen=True)
class Answer:
    """A result, the model that it came from, and the time it took (seconds, without starting the process).

    `note`: what happened on the way: `the torch encoder had ended (Killed); it was restarted`.
    """

    result: dict[str, Any]
    backend: Backend
    source: str
    seconds: float
    note: str | None = None

    @property
    def milliseconds(self) -> float:
        """Of the query alone on a warm model where the server measured it, else of the round trip."""
        measured = self.result.get("milliseconds")
        return float(measured) if isinstance(measured, int | float) else 1000 * self.seconds


class _EndedError(BackendError):
    """The process is gone."""


class EncoderClient:
    """One server process for one model."""

    def __init__(self, model: Model) -> None:
        self.model, self.backend = model, model.backend
        self.source = ""
        self._process: asyncio.subprocess.Process | None = None
        self._stderr: IO[bytes] | None = None
        self._ids = itertools.count(1)
        self._lock = asyncio.Lock()
        self._begun: asyncio.Task[None] | None = None  # the start of the process, which no query owns
        self._ending: asyncio.Task[None] | None = None
        self._note: str | None = None  # of a restart that no answer has mentioned yet
        self.retired = False  # closed for good: it is not started again for a query that was on its way

    async def ask(self, op: str, progress: Progress = lambda text: None, **values: Any) -> Answer:
        """Send one query and wait for its answer; queries are answered in turn.

        A process that ended since the last query, or during this one, is started again, once.

        Raises:
            BackendError: the server's error, or why it did not answer.
        """
        async with self._lock:
            if self._process is not None and self._process.returncode is not None:
                self._note = self._restarted()
            await self._ready(progress)
            started = time.perf_counter()
            try:
                reply = await self._query(op, progress, values)
            except _EndedError:
                if self.retired:
                    raise
                self._note = self._restarted()
                await self._end_process()  # it may not have been waited for yet
                await self._ready(progress)
                started = time.perf_counter()
                reply = await self._query(op, progress, values)
            result, seconds = _result(reply), time.perf_counter() - started
            note, self._note = self._note, None
            return Answer(result, self.backend, self.source, seconds, note)

    async def _ready(self, progress: Progress) -> None:
        """The process, started where none runs. A query that is dropped meanwhile leaves the start to the next one."""
        if self._begun is None or self._begun.done():
            if self._process is not None and self._process.returncode is None:
                return
            self._begun = asyncio.create_task(self._start())
            self._begun.add_done_callback(lambda task: task.cancelled() or task.exception())  # it may have no reader
        progress(self._starting())
        try:
            await asyncio.shield(self._begun)
        except asyncio.CancelledError:
            if not self._begun.cancelled():
                raise
            raise BackendError(f"the {self.model.name} encoder was closed while it started.") from None

    async def _query(self, op: str, progress: Progress, values: dict[str, Any]) -> dict[str, Any]:
        number = next(self._ids)
        progress("asking")
        await self._send({"id": number, "op": op, **values})
        while True:
            reply = await self._receive()
            if reply.get("id") != number:
                continue  # the answer to a query that was dropped
            if "progress" not in reply:
                return reply
            progress(_embedding(reply["progress"]))

    def _restarted(self) -> str:
        return f"the {self.model.name} encoder had ended{self._why()}; it was restarted"

    def _starting(self) -> str:
        return "its process had ended, starting again" if self._note else "starting"

    async def close(self) -> None:
        """End the process. If the caller is cancelled the process still ends, and a later close waits for it."""
        ending = self._ending = self._ending or asyncio.create_task(self._end())
        await asyncio.shield(ending)
        if self._ending is ending:
            self._ending = None

    async def _end(self) -> None:
        """The process exits at the end of its input; otherwise it is killed. One that starts is not waited for."""
        if self._begun is not None and not self._begun.done():
            self._begun.cancel()
            await asyncio.wait([self._begun])
        await self._end_process()

    async def _end_process(self) -> None:
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
        await self._end_process()  # of which only the files are left
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - without a name, so that a killed app leaves nothing
        precision = ["--precision", self.model.precision] if self.model.precision else []
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", SERVER, str(self.model.path), "--backend", self.backend, *precision,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._stderr,
            limit=LINE_LIMIT,
            start_new_session=True,  # so that Ctrl-C in the terminal reaches the app only
        )  # fmt: skip
        try:
            hello = _result(await asyncio.wait_for(self._receive(), START_SECONDS))
        except TimeoutError:
            why = self._why()
            await self._end_process()
            raise BackendError(
                f"the {self.model.name} encoder did not start within {START_SECONDS:.0f} s{why}; ask again, "
                f"or try clip-infer on {self.model.path}."
            ) from None
        except (BackendError, asyncio.CancelledError):
            await self._end_process()
            raise
        self.source = _source(hello, self.model.path)

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
            raise BackendError(f"the {self.model.name} encoder sent invalid JSON.") from None
        if not isinstance(reply, dict):
            raise self._gone()
        return reply

    def _gone(self) -> BackendError:
        return _EndedError(f"the {self.model.name} encoder for {self.model.path} has ended{self._why()}")

    def _why(self) -> str:
        """The last line of what it printed, in parentheses."""
        if self._stderr is None:
            return ""
        number = self._stderr.fileno()  # its offset is the process's too, so it is read without seeking
        said = os.pread(number, _STDERR_BYTES, max(0, os.fstat(number).st_size - _STDERR_BYTES))
        lines = [line for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
        return f" ({lines[-1].strip()})" if lines else ""


def _embedding(counts: Any) -> str:
    try:
        done, total = (int(count) for count in counts)
    except (TypeError, ValueError):
        return "asking"
    return f"embedding {done:,} of {total:,} images"


def _result(reply: dict[str, Any]) -> dict[str, Any]:
    if not reply.get("ok"):
        raise BackendError(str(reply.get("error", "the encoder failed without a message.")))
    result = reply.get("result")
    return result if isinstance(result, dict) else {}


def _source(hello: dict[str, Any], path: Path) -> str:
    """`step 606 of runs/demo`: a run that trains gets new checkpoints; published weights have no step."""
    source = str(hello.get("source", path))
    step = hello.get("step")
    return f"step {step:,} of {source}" if hello.get("checkpoint") and isinstance(step, int) else source


class Encoders:
    """The encoders in use, at most KEPT of them; restarted for a new checkpoint or bundle."""

    def __init__(self) -> None:
        self._clients: OrderedDict[Model, tuple[str, EncoderClient]] = OrderedDict()
        self._retired: set[EncoderClient] = set()

    async def ask(self, model: Model, op: str, progress: Progress = lambda text: None, **values: Any) -> Answer:
        """Raises: BackendError."""
        identity = await asyncio.to_thread(_identity, model)
        known = self._clients.get(model)
        if known is None or known[0] != identity:
            self._clients[model] = (identity, EncoderClient(model))
            if known is not None:
                await self._retire(known[1])
        self._clients.move_to_end(model)
        client = self._clients[model][1]
        while len(self._clients) > KEPT:
            _, (_, oldest) = self._clients.popitem(last=False)
            await self._retire(oldest)
        return await client.ask(op, progress, **values)

    async def _retire(self, client: EncoderClient) -> None:
        client.retired = True
        self._retired.add(client)
        await client.close()
        self._retired.discard(client)

    async def close(self) -> None:
        clients = [*self._retired, *(client for _, client in self._clients.values())]
        self._clients.clear()
        for client in clients:
            client.retired = True
        await asyncio.gather(*(client.close() for client in clients))


def _identity(model: Model) -> str:
    """Changes with the best checkpoint, or with the bundle."""
    paths = RunPaths(model.path)
    bundle = (paths.bundle_manifest, model.path / MANIFEST)
    files = bundle if model.backend == "onnx" else (paths.best, paths.latest)
    path = next((file for file in files if file.exists()), None)
    return f"{path}:{path.stat().st_mtime_ns if path else 0}"
