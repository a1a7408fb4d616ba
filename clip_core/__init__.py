"""Train, evaluate and use CLIP models. Names are handed on lazily, so importing this costs nothing (PEP 562)."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clip_core.errors import ClipError as ClipError
    from clip_core.inference.clip import CLIPInference as CLIPInference

__version__ = "0.1.0"

# Read by ONNX Runtime when it is imported: without it, it writes a device id and contacts its maker's servers.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOME = {
    "CLIPInference": "clip_core.inference.clip",
    "ClipError": "clip_core.errors",
}
__all__ = ["CLIPInference", "ClipError", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
