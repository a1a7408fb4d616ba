"""A limit on the memory of ONNX Runtime: a graph that asks for more ends in an error, not in the kernel's killer."""

from functools import cache
from pathlib import Path

import onnxruntime as ort

_SHARE = 0.9  # of the memory that is free when the first session is made
_LEAST = 2**30  # bytes


def limit_memory(options: ort.SessionOptions) -> None:
    """Let a session allocate from the arena of this process, which all sessions on the CPU share."""
    if _make_arena():
        options.add_session_config_entry("session.use_env_allocators", "1")


@cache
def _make_arena() -> bool:
    """Whether there is one: not where nobody says how much memory is free."""
    free = available_memory()
    if free is None:
        return False
    place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(place, ort.OrtArenaCfg(max(int(_SHARE * free), _LEAST), -1, -1, -1))
    return True


def available_memory() -> int | None:
    """Bytes that this process may still take, as Linux and its control group say; None where they do not."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            group = Path("/sys/fs/cgroup")
            free = min(free, int((group / limit).read_text()) - int((group / used).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return max(free, 0)
