"""Requests to a trainer: a queue of small files in RUN/requests, each acknowledged by an event with its outcome."""

import itertools
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from clip_core.files import read_json, write_json

RequestKind = Literal["pause", "resume", "stop", "checkpoint", "evaluate"]
REQUESTS: tuple[RequestKind, ...] = get_args(RequestKind)
Outcome = Literal["done", "refused", "invalid", "expired"]

_LONGEST_NAME = 80
_counter = itertools.count()


@dataclass(frozen=True)
class Request:
    """One request; `id` sorts by the time at which it was made."""

    id: str
    kind: RequestKind
    time: float  # seconds since 1970


@dataclass(frozen=True)
class Malformed:
    """A file in the queue that is no request, and why."""

    id: str
    why: str


def submit(folder: Path, kind: RequestKind) -> Request:
    """Append a request to the queue; it stays there until it is acknowledged."""
    request = Request(f"{time.time_ns():020d}-{os.getpid()}-{next(_counter)}", kind, time.time())
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{request.id}.json", {"id": request.id, "request": kind, "time": request.time})
    return request


def pending(folder: Path) -> Iterator[Request | Malformed]:
    """What is in the queue, oldest first."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    except OSError:
        return
    for name in names:
        yield _read(folder / name)


def remove(folder: Path, id: str) -> None:
    """Take a request out of the queue, after it was acknowledged."""
    for name in (f"{id}.json", id):
        path = folder / name
        if path.parent == folder:
            path.unlink(missing_ok=True)


def _read(path: Path) -> Request | Malformed:
    name = path.name
    if path.suffix != ".json" or len(name) > _LONGEST_NAME:
        return Malformed(name, "its name does not end in .json")
    values = read_json(path)
    if values is None:
        return Malformed(name, "it is not a JSON object")
    kind, made = values.get("request"), values.get("time")
    known = next((request for request in REQUESTS if request == kind), None)
    if known is None:
        return Malformed(name, f"its request is {json.dumps(kind)[:40]}, not one of {', '.join(REQUESTS)}")
    return Request(path.stem, known, float(made) if isinstance(made, int | float) else 0.0)
