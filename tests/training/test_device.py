"""What a CPU is told before it trains."""

import platform
import subprocess
import sys

GLIBC = platform.libc_ver()[0] == "glibc"  # the one that listens

MEASURED = """
import resource, psutil, torch
from clip_core.training.device import give_back_memory, keep_freed_memory

def step():
    return torch.ones(1 << 24)  # 64 MB

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    return psutil.Process().memory_info().rss

{first}
for _ in range(20):
    step()
before = faults()
for _ in range(10):
    step()
taken, kept = faults() - before, resident()
give_back_memory()
print(taken, kept - resident())
"""


def measure(first: str) -> tuple[int, int]:
    """Page faults of ten rounds in which 64 MB come and go, and the bytes given back after them."""
    command = [sys.executable, "-c", MEASURED.format(first=first)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    taken, given_back = done.stdout.split()
    return int(taken), int(given_back)


def test_memory_that_a_step_frees_is_there_for_the_next_one_until_it_is_given_back() -> None:
    (fresh, _), (kept, given_back) = measure(""), measure("keep_freed_memory()")
    assert not GLIBC or kept < fresh / 10
    assert not GLIBC or given_back > 60e6
