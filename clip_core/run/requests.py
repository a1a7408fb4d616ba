"""Requests to a trainer: a queue of small files in RUN/requests, each acknowledged by an event with its outcome."""

import itertools
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from clip_core.files import open_regular, write_json

RequestKind = Literal["pause", "resume", "stop", "checkpoint", "evaluate", "learning_rate"]
REQUESTS: tuple[RequestKind, ...] = get_args(RequestKind)
Outcome = Literal["done", "refused", "invalid", "expired"]

_LONGEST = 4096  # bytes of a request
_counter = itertools.count()


@dataclass(frozen=True)
class Request:
    """One request; `id` sorts by the time at which it was made."""

    id: str
    kind: RequestKind
    time: float  # seconds since 1970
    value: float | None = None  # the learning rate that is requested


@dataclass(frozen=True)
class Malformed:
    """An entry of the queue that is not a request, and why."""

    id: str  # its file name
    why: str


def submit(folder: Path, kind: RequestKind, value: float | None = None) -> Request:
    """Append a request to the queue; it stays there until it is acknowledged.

    Args:
        value: the learning rate, for `learning_rate`.
    """
    request = Request(f"{time.time_ns():020d}-{os.getpid()}-{next(_counter):06d}", kind, time.time(), value)
    folder.mkdir(parents=True, exist_ok=True)
    fields: dict[str, object] = {"id": request.id, "request": kind, "time": request.time}
    write_json(folder / f"{request.id}.json", fields if value is None else fields | {"value": value})
    return request


def pending(folder: Path) -> Iterator[Request | Malformed]:
    """The entries of the queue, oldest first; names that begin with a dot are files being written."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    except OSError:
        return
    for name in names:
        found = _read(folder / name)
        if found is not None:
            yield found


def remove(folder: Path, request: Request | Malformed) -> bool:
    """Take an entry out of the queue, after it was acknowledged; returns whether it is gone.

    A folder, which no request is, is renamed to a name with a dot; nothing in it is deleted.
    """
    path = folder / (f"{request.id}.json" if isinstance(request, Request) else request.id)
    try:
        path.unlink(missing_ok=True)
    except OSError:
        with suppress(OSError):
            path.rename(folder / f".rejected-{time.time_ns()}")
    return not os.path.lexists(path)


def _read(path: Path) -> Request | Malformed | None:
    """The request in a file; None where another process removed it meanwhile."""
    name = path.name
    if path.suffix != ".json":
        return Malformed(name, "its name does not end in .json")
    try:
        if path.is_symlink():
            return Malformed(name, "it is a link")
        with open_regular(path) as handle:
            content = handle.read(_LONGEST + 1)
        if len(content) > _LONGEST:
            return Malformed(name, f"it is longer than {_LONGEST} bytes")
        values = json.loads(content.decode("utf-8"))
    except FileNotFoundError:
        return None
    except OSError:
        return Malformed(name, "it is not a readable file")
    except (ValueError, RecursionError):
        return Malformed(name, "it is not JSON")
    if not isinstance(values, dict):
        return Malformed(name, "it is not a JSON object")
    if values.get("id", path.stem) != path.stem:
        return Malformed(name, "its id is not its file name without .json")
    kind, made = values.get("request"), values.get("time", 0.0)
    known = next((request for request in REQUESTS if request == kind), None)
    if known is None:
        return Malformed(name, f"its request is {json.dumps(kind)[:40]}, not one of {', '.join(REQUESTS)}")
    if type(made) not in (int, float) or not math.isfinite(made):
        return Malformed(name, "its time is not a number")
    value = values.get("value")
    if known != "learning_rate":
        return Request(path.stem, known, float(made))
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        return Malformed(name, "its value is not a learning rate above 0 and at most 1")
    return Request(path.stem, known, float(made), float(value))
