"""clip-tui --serve: the app in a browser on this machine, through textual-serve (extra `serve`)."""

import shlex
import sys
from collections.abc import Sequence
from urllib.parse import urlsplit

from aiohttp import web
from textual_serve.server import Server

from clip_core.errors import UsageError

HOST = "127.0.0.1"
_LOCAL = ("127.0.0.1", "localhost", "::1")


class LocalServer(Server):
    """Answers only pages that it served itself: any site that a browser visits could open its WebSocket otherwise."""

    async def handle_index(self, request: web.Request) -> web.StreamResponse:
        _refuse_foreign(request)
        return await super().handle_index(request)

    async def handle_websocket(self, request: web.Request) -> web.WebSocketResponse:
        _refuse_foreign(request)
        return await super().handle_websocket(request)


def _refuse_foreign(request: web.Request) -> None:
    """Raises: HTTPForbidden, for a request to another host name, or from a page of another origin."""
    host = request.headers.get("Host", "")
    origin = request.headers.get("Origin")
    if urlsplit(f"//{host}").hostname not in _LOCAL or (origin is not None and urlsplit(origin).netloc != host):
        raise web.HTTPForbidden(text="clip-tui serves its own page on this machine alone.")


def serve(arguments: Sequence[str], port: int) -> int:
    """Serve `clip-tui ARGUMENTS` on the loopback interface until Ctrl-C.

    Raises:
        UsageError: if the port cannot be used.
    """
    command = shlex.join([sys.executable, "-m", "clip_tui.cli", *arguments])
    print(f"clip-tui on http://{HOST}:{port}, for this machine alone; Ctrl-C ends it.")
    print("It has no login: whoever can open this address can start, stop and delete runs.")
    print(f"From another machine: ssh -L {port}:{HOST}:{port} THIS_MACHINE", flush=True)
    try:
        LocalServer(command, host=HOST, port=port, title="clip-tui").serve()
    except OSError as error:
        raise UsageError(f"--port {port} cannot be used ({error.strerror}); choose another.") from None
    return 0
