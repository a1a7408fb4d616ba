"""clip-tui --serve: a browser on this machine reaches the app, a page of another site does not."""

import asyncio
import socket
import subprocess
import sys
from pathlib import Path

import aiohttp
import psutil
import pytest

from clip_core.errors import UsageError
from clip_tui.cli import open_app
from tests.conftest import command_environment


async def test_only_its_own_page_on_this_machine_reaches_the_app(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "runs").mkdir()
    command = [sys.executable, "-m", "clip_tui.cli", "runs", "--serve", "--port", str(port)]
    server = subprocess.Popen(command, cwd=tmp_path, env=command_environment(), stdout=subprocess.PIPE, text=True)
    address = f"http://127.0.0.1:{port}"
    try:
        assert server.stdout is not None
        assert address in server.stdout.readline()
        assert "no login" in server.stdout.readline()
        async with aiohttp.ClientSession() as browser:
            for _ in range(200):
                try:
                    page = await browser.get(address)
                    break
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.1)
            assert page.status == 200
            assert "frame-ancestors 'none'" in page.headers["Content-Security-Policy"]
            for path in ("/", "/ws", "/static/js/textual.js", "/download/x"):
                assert (await browser.get(address + path, headers={"Host": "evil.example"})).status == 403
            with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
                await browser.ws_connect(f"{address}/ws", origin="http://evil.example")
            name = f"http://localhost:{port}"  # its page connects to the same name, or the answer would be 403
            page = await browser.get(address, headers={"Host": f"localhost:{port}"})
            assert f"ws://localhost:{port}/ws" in await page.text()
            await (
                await browser.ws_connect(f"{address}/ws", headers={"Host": f"localhost:{port}"}, origin=name)
            ).close()
            async with browser.ws_connect(f"{address}/ws?width=80&height=24", origin=address) as app:
                shown = b""
                while b"No runs yet" not in shown:
                    message = await app.receive(timeout=60)
                    shown += message.data if isinstance(message.data, bytes) else b""
                apps = psutil.Process(server.pid).children(recursive=True)
                assert apps
                server.kill()
                assert not psutil.wait_procs(apps, timeout=20)[1], "the app outlives a server that was killed"
    finally:
        server.kill()
        server.wait(20)


def test_a_port_that_is_none_and_one_without_serve_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="1 to 65535"):
        open_app(tmp_path, serve=True, port=0)
    with pytest.raises(UsageError, match="add --serve"):
        open_app(tmp_path, port=9000)
