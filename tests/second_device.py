"""A device beside the CPU without a GPU: its tensors compute with real numbers, and may not be mixed with the CPU's.

    python -m tests.second_device FLAGS OF CLIP-TRAIN...

trains on it, and prints, as JSON, where the host waited for it and how often. It is one of torch's "private use"
devices, whose operations run in Python. `tests/fake_cuda.py` is the other half: a fake GPU without numbers, on which
code that is for `cuda` alone runs.
"""

import json
import os
import sys
import traceback
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "second"
_COPIES = {"aten::copy_", "aten::_to_copy", "aten::to"}
_MAY_MIX = _COPIES | {"aten::index"}  # of a tensor of the CPU on a GPU, by an index of the CPU


WAITS: Counter[str] = Counter()  # by line of the product, what the host waited for


class OnDevice(Tensor):
    """A tensor that says it is on the device; `raw` has its numbers."""

    raw: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: Tensor) -> "OnDevice":
        made: OnDevice = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, raw.size(), strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype,
            device=torch.device(NAME, 0),
        )  # fmt: skip
        made.raw = raw
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})  # in a backward pass, which has a thread of its own


class Device(TorchDispatchMode):
    """Within, tensors can be made on the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.is_inference_mode_enabled():  # there, what is composed of other operations arrives whole
            with self:
                parts = func.decompose(*args, **kwargs or {})
            if parts is not NotImplemented:
                return parts
        return compute(func, args, kwargs or {})


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation on the numbers of its tensors.

    Raises:
        RuntimeError: where a tensor of the CPU meets one of the device, as on a GPU; numbers are welcome.
    """
    name, target = func._schema.name, kwargs.get("device")
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    on = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    beside = [tensor for tensor in tensors if not isinstance(tensor, OnDevice) and tensor.ndim]
    if on and beside and name not in _MAY_MIX:
        raise RuntimeError(f"{name} of tensors on {NAME} and on the CPU")
    stays = bool(on) if target is None else torch.device(target).type == NAME
    if on and (name == "aten::_local_scalar_dense" or (name == "aten::_to_copy" and not stays)):
        WAITS[_line()] += 1
    args_of_cpu, kwargs_of_cpu = tree_map(_raw, (args, kwargs))
    if target is not None and stays:
        kwargs_of_cpu["device"] = "cpu"
        kwargs_of_cpu.pop("pin_memory", None)
    with torch.inference_mode(mode=False), torch.no_grad():
        result = func(*args_of_cpu, **kwargs_of_cpu)
        if name == "aten::copy_":
            return args[0]
        known = {id(tensor.raw): tensor for tensor in on}  # an operation in place returns its argument
        return tree_map(lambda value: known.get(id(value), _on(value, stays)), result)


def _raw(value: Any) -> Any:
    return value.raw if isinstance(value, OnDevice) else value


def _on(value: Any, stays: bool) -> Any:
    return OnDevice(value) if stays and isinstance(value, Tensor) else value


def _line() -> str:
    """The innermost line of the product on the stack, `module.py: source`."""
    for frame in reversed(traceback.extract_stack()):
        if "/clip_core/" in frame.filename:
            return f"{frame.filename.rpartition('/')[2]}: {frame.line}"
    return "elsewhere"


def main(flags: Sequence[str]) -> int:
    """Train with these flags on the device; the memory of it is not looked at."""
    from clip_core.cli import train_command
    from clip_core.training import preflight, processes, recipe, trainer

    _setup_privateuseone_for_python_backend(NAME)
    library = torch.library.Library("aten", "IMPL")
    library.impl(
        "empty.memory_format", lambda size, **given: OnDevice(torch.empty(size, dtype=given["dtype"])), "PrivateUse1"
    )
    for module in (preflight, processes, recipe):
        module.choose_device = lambda _requested: torch.device(NAME, 0)  # type: ignore[attr-defined]
    trainer.fit_into_memory = lambda *_arguments, **_options: None  # type: ignore[assignment]
    with Device():
        code = train_command.run(flags)
    print(json.dumps(WAITS))
    return code


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # the threads of the device's backward pass do not end by themselves
