"""Ctrl-C while a command imports what it needs."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from clip_core.cli.interrupt import exit_on_interrupt
from tests.conftest import command_environment

SWALLOWS = """
import os, signal
from clip_core.cli.interrupt import exit_on_interrupt
with exit_on_interrupt("clip-test"):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # as a library does that tries another import instead
        pass
    print("went on")
"""


def test_it_cannot_be_swallowed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SWALLOWS], cwd=tmp_path, env=command_environment(), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "clip-test: interrupted.\n")


def test_the_handler_before_it_is_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with exit_on_interrupt("clip-test"):
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_in_another_thread_nothing_changes() -> None:
    ran = []

    def work() -> None:
        with exit_on_interrupt("clip-test"):
            ran.append(os.getpid())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ran
