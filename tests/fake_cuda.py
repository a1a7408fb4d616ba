"""A CUDA device without a GPU: torch's fake tensors, which have a device, a shape and a dtype, but no numbers.

Under `fake_cuda` an operation on tensors of two devices, a dtype that does not fit, and whatever needs a number on the
host (`.item()`, `bool`, an index by a mask) raises, as on a GPU it would raise or wait. Under `NoWaiting` so does a
copy that waits for the device.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from clip_core.training.batches import Batch

CUDA = torch.device("cuda:0")


@contextmanager
def fake_cuda(*, allow_non_fake_inputs: bool = False) -> Iterator[FakeTensorMode]:
    """Within, a tensor on `cuda` needs no GPU; backward passes and autocast work.

    Args:
        allow_non_fake_inputs: take real tensors, as `torch.from_numpy` makes, for fake ones.
    """
    with (
        FakeTensorMode(allow_non_fake_inputs=allow_non_fake_inputs) as mode,
        patch("torch.autograd.backward", backward),
        patch("torch.nn.Module._apply", move_parameters),
        patch("torch.Tensor.pin_memory", lambda tensor: tensor),
        patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
        patch("torch.cuda.is_bf16_supported", lambda *_args, **_options: True),
    ):
        yield mode


class NoWaiting(TorchDispatchMode):
    """Within, a copy between devices for which the host would wait is an error.

    Raises:
        WaitError: for a copy to the CPU, and for one to the device that is not `non_blocking`.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default:
            self.check(args[0].device, kwargs.get("device") or args[0].device, bool(kwargs.get("non_blocking")))
        elif func is torch.ops.aten.copy_.default:
            self.check(args[1].device, args[0].device, bool(args[2] if len(args) > 2 else kwargs.get("non_blocking")))
        return func(*args, **kwargs)

    def check(self, source: torch.device, target: torch.device, non_blocking: bool) -> None:
        if source.type != target.type and (target.type == "cpu" or not non_blocking):
            raise WaitError(f"the host waits for a copy from {source} to {target}")


class WaitError(Exception):
    """The host would wait for the device."""


def move_parameters(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`nn.Module._apply`, which exchanges the tensor inside a parameter; a fake one is replaced instead."""
    for child in module.children():
        move_parameters(child, change)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            with torch.no_grad():
                module._parameters[name] = nn.Parameter(change(parameter), parameter.requires_grad)
    return module


def backward(loss: Tensor, *_others: Any, **_options: Any) -> None:
    """`torch.autograd.backward`, whose own engine asks the driver for streams: the same nodes, called from here.

    Every node is called once, after all nodes that it receives a gradient from.
    """
    assert loss.grad_fn is not None
    order: list[Any] = []
    visit(loss.grad_fn, order, set())
    received: dict[Any, list[Tensor | None]] = {loss.grad_fn: [torch.ones_like(loss)]}
    for node in reversed(order):
        gradients = received.pop(node, [])
        if all(gradient is None for gradient in gradients):
            continue
        if hasattr(node, "variable"):  # of a parameter
            (gradient,) = gradients
            parameter = node.variable
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
            continue
        with torch.no_grad():
            returned = node(*gradients)
        returned = returned if isinstance(returned, tuple) else (returned,)
        for (following, index), gradient in zip(node.next_functions, returned, strict=True):
            if following is not None and gradient is not None:
                inputs = received.setdefault(following, [None] * len(following._input_metadata))
                gradient, before = as_expected(gradient, following._input_metadata[index]), inputs[index]
                inputs[index] = gradient if before is None else before + gradient


def as_expected(gradient: Tensor, expected: Any) -> Tensor:
    """Summed over what was broadcast, in the dtype of the forward pass, as the engine does.

    Raises:
        RuntimeError: if it is on another device.
    """
    if gradient.device != expected.device:
        raise RuntimeError(f"a gradient on {gradient.device} for a tensor on {expected.device}")
    return gradient.sum_to_size(expected.shape).to(expected.dtype)


def visit(root: Any, order: list[Any], seen: set[Any]) -> None:
    """The nodes of a graph, each after those that it hands its gradients to."""
    stack: list[tuple[Any, bool]] = [(root, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((following, False) for following, _ in node.next_functions if following is not None)


def fake_batch(batch: Batch, mode: FakeTensorMode) -> Batch:
    """A real batch on the fake device."""
    groups = tuple(mode.from_tensor(group).to(CUDA) for group in batch.input_ids)
    others = {
        field.name: mode.from_tensor(value).to(CUDA)
        for field in fields(batch)
        if isinstance(value := getattr(batch, field.name), Tensor)
    }
    return replace(batch, input_ids=groups, **others)
