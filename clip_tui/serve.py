"""clip-tui --serve: the app in a browser on this machine, through textual-serve (extra `serve`)."""

import logging
import shlex
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web
from textual_serve.server import Server

from clip_core.errors import UsageError

HOST = "127.0.0.1"
_LOCAL = ("127.0.0.1", "localhost", "::1")


class LocalServer(Server):
    """Answers only pages that it served itself: any site that a browser visits could open its WebSocket otherwise."""

    def initialize_logging(self) -> None:
        """Faults only, not a line for each request."""
        logging.basicConfig(level=logging.WARNING, format="%(message)s")

    async def on_startup(self, app: web.Application) -> None:
        """`serve` has said where it is."""

    async def _make_app(self) -> web.Application:
        app = await super()._make_app()
        app.middlewares.append(_refuse_foreign)
        app.on_response_prepare.append(_keep_to_itself)
        return app

    async def handle_index(self, request: web.Request) -> Any:
        """The page, which connects to the name and port that the browser was given: localhost, or those of a tunnel."""
        self.public_url = f"http://{request.host}"
        return await super().handle_index(request)


@web.middleware
async def _refuse_foreign(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """403 to a request for another host name (a site may let its name point here), or from a page of another origin."""
    origin = request.headers.get("Origin")
    if not _is_local(request.host) or (origin is not None and origin != f"http://{request.host}"):
        raise web.HTTPForbidden(text="clip-tui serves its own page on this machine alone.")
    return await handler(request)


def _is_local(host: str) -> bool:
    try:
        return urlsplit(f"//{host}").hostname in _LOCAL
    except ValueError:
        return False


async def _keep_to_itself(request: web.Request, response: web.StreamResponse) -> None:
    """The page may not be put into a frame of another (whose reader would click in it unaware), nor fetch elsewhere."""
    sources = f"default-src 'self' 'unsafe-inline'; connect-src 'self' ws://{request.host}; img-src 'self' data:"
    response.headers["Content-Security-Policy"] = f"{sources}; frame-ancestors 'none'"


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
