"""Small shards, and a real web server for them that fails in the ways that servers do."""

import io
import re
import socket
import struct
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from PIL import Image

Members = list[tuple[str, bytes]]


@cache
def png(number: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (16, 16), (number % 256, number // 256 % 256, 90)).save(content, "PNG")
    return content.getvalue()


def tar(path: Path, members: Members) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def shards(folder: Path, sizes: list[int], words: str = "thing number") -> Path:
    """A shard of each size; every image and every caption is there once. Returns their pattern."""
    number = 0
    for shard, size in enumerate(sizes):
        members: Members = []
        for _ in range(size):
            members += [(f"{number:05d}.png", png(number)), (f"{number:05d}.txt", f"{words} {number}".encode())]
            number += 1
        tar(folder / f"{shard:03d}.tar", members)
    return folder / f"{{000..{len(sizes) - 1:03d}}}.tar"


class Server(ThreadingHTTPServer):
    """Serves a folder.

    Attributes:
        ranges: whether a Range header is honoured.
        faults: what happens to the next requests of a file, by its name: a status, "reset" or "truncate" after some
            bytes, "stall" without an answer. The last one stays if `lasting`.
        asked: the Range header of each request.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.ranges, self.lasting = True, False
        self.faults: dict[str, list[int | str]] = {}
        self.asked: list[tuple[str, str]] = []
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that closes early


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        path, asked = self.server.folder / name, self.headers.get("Range", "")
        self.server.asked.append((name, asked))
        faults = self.server.faults.get(name, [])
        fault = (faults[0] if self.server.lasting and len(faults) == 1 else faults.pop(0)) if faults else None
        if isinstance(fault, int) or not path.is_file():
            self.send_error(fault if isinstance(fault, int) else 404)
            return
        if fault == "stall":
            self.server.ended.wait(60)
            return
        content = path.read_bytes()
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", asked) if self.server.ranges else None
        start = int(found[1]) if found else 0
        content = content[: int(found[2]) + 1] if found and found[2] else content
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if found else 200)
        if found:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", f'"{hash(content)}"')
        self.end_headers()
        if fault is None:
            self.wfile.write(content[start:])
            return
        self.wfile.write(content[start : start + (len(content) - start) // 2])
        self.wfile.flush()
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
