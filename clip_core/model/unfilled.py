"""A network as a mould for weights that are read from a file: made without drawing its random start."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch.overrides import TorchFunctionMode

from clip_core.model.clip import CLIP
from clip_core.network import ClipConfig

_FILLING = frozenset({"normal_", "uniform_", "kaiming_uniform_", "fill_", "zero_"})  # tensors' own and torch.nn.init's


def unfilled_clip(config: ClipConfig) -> CLIP:
    """A CLIP whose weights are memory that nobody has touched yet; assign to all of them before use.

    The meta device would do the same, but its first use imports a symbolic algebra: 160 MB and a second or two.
    """
    with _Unfilled():
        return CLIP(config)


class _Unfilled(TorchFunctionMode):
    """Calls that would fill a tensor with numbers leave it as it is."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if getattr(func, "__name__", "") in _FILLING:
            return args[0] if args else given["tensor"]
        return func(*args, **given)
