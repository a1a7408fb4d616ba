"""Signals, sent by the kernel to a process that handles them as the trainer does."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import command_environment

PRELUDE = """
import os, signal, threading, time
from clip_core.training.signals import Signals

def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # the handler runs between two instructions of the main thread

signals = Signals()
"""


def ran(code: str, folder: Path) -> list[str]:
    """The lines that a process printed; it ends by itself."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code], cwd=folder, env=command_environment(), capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_during_the_setup_the_first_signal_interrupts(name: str, code: int, tmp_path: Path) -> None:
    said = ran(
        f"""
with signals:
    try:
        send(signal.{name})
        print("went on")
    except KeyboardInterrupt:
        print("interrupted", signals.exit_code)
""",
        tmp_path,
    )
    assert said == [f"interrupted {code}"]


def test_during_training_the_first_signal_is_noted_and_the_second_interrupts(tmp_path: Path) -> None:
    said = ran(
        """
with signals:
    signals.deferring = True
    send(signal.SIGTERM)
    print("the step ends", signals.received == signal.SIGTERM, signals.exit_code)
    try:
        send(signal.SIGINT)
        print("went on")
    except KeyboardInterrupt:
        print("interrupted", signals.exit_code)
""",
        tmp_path,
    )
    assert said == ["the step ends True 143", "interrupted 130"]


def test_a_terminal_that_closes_does_not_end_the_run(tmp_path: Path) -> None:
    said = ran('with signals:\n    send(signal.SIGHUP)\n    print("went on", signals.received)', tmp_path)
    assert said == ["went on None"]


def test_a_request_to_stop_interrupts_the_main_thread_and_is_no_signal(tmp_path: Path) -> None:
    said = ran(
        """
with signals:
    thread = threading.Thread(target=signals.interrupt)
    try:
        thread.start()
        time.sleep(30)
        print("went on")
    except KeyboardInterrupt:
        print("interrupted", signals.received, signals.exit_code)
    signals.deferring = True
    send(signal.SIGTERM)  # a real one afterwards is one
    print(signals.exit_code)
""",
        tmp_path,
    )
    assert said == ["interrupted None 0", "143"]


def test_the_handlers_from_before_are_restored(tmp_path: Path) -> None:
    said = ran(
        """
numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
before = [signal.getsignal(number) for number in numbers]
with signals:
    print([signal.getsignal(number) for number in numbers] == before)
print([signal.getsignal(number) for number in numbers] == before)
""",
        tmp_path,
    )
    assert said == ["False", "True"]
