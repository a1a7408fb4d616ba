"""Device and precision, and figures of the machine."""

from contextlib import AbstractContextManager, nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path

import psutil
import torch

from clip_core.errors import UsageError

_PROCESS = psutil.Process()


def choose_device(requested: str | None) -> torch.device:
    """The requested device; by default CUDA, else Apple's MPS, else the CPU.

    Raises:
        UsageError: if the requested device is not available.
    """
    if requested is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(requested)
    except RuntimeError:
        raise UsageError(f"--device is {requested!r}; it should be cuda, cuda:N, mps or cpu.") from None
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, False):
        raise UsageError(f"--device {requested} is not available; this machine has {', '.join(_present())}.")
    return device


def _present() -> list[str]:
    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return cuda + (["mps"] if torch.backends.mps.is_available() else []) + ["cpu"]


def choose_precision(device: torch.device, requested: str | None) -> str:
    """The requested precision; by default bf16 where the hardware supports it, else fp32.

    Raises:
        UsageError: if bf16 is requested on a GPU without it.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported() and _cpu_has_bf16()
    if requested == "bf16" and not native and device.type != "cpu":
        raise UsageError(f"--precision bf16 is not supported on {describe(device)}; use --precision fp32.")
    return requested or ("bf16" if native else "fp32")


def _cpu_has_bf16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Autocast to bf16, or a null context for fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def describe(device: torch.device) -> str:
    """The device as text: the name of a GPU, the number of threads of a CPU."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({device})"
    threads = torch.get_num_threads()
    return "Apple GPU (mps)" if device.type == "mps" else f"CPU, {threads} thread{'' if threads == 1 else 's'}"


def memory_mb(device: torch.device) -> float:
    """Peak memory on a GPU, resident size on a CPU, in MB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return float(_PROCESS.memory_info().rss) / 1e6


def system_figures(device: torch.device, folder: Path) -> dict[str, float]:
    """CPU use since the last call (100 per core), memory, free disk space; of a GPU also its use and its memory."""
    figures = {
        "cpu_percent": _PROCESS.cpu_percent(),
        "resident_mb": round(_PROCESS.memory_info().rss / 1e6, 1),
        "disk_free_gb": round(psutil.disk_usage(str(folder)).free / 1e9, 2),
    }
    if device.type == "cuda":
        if find_spec("pynvml") is not None:  # which torch asks for the utilisation
            with suppress(RuntimeError, ImportError):
                figures["gpu_percent"] = float(torch.cuda.utilization(device))
        figures["gpu_reserved_mb"] = round(torch.cuda.max_memory_reserved(device) / 1e6, 1)
    return figures
