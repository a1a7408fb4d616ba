"""Pickles read as data: a small machine that follows their instructions and can call nothing.

PyTorch stores the names, shapes and places of tensors as a pickle, and a pickle is a program. This one is never run:
`pickletools` lists its instructions, and the machine below knows those that weights need. Whatever else it asks for
is refused by name. A module of a TorchScript archive becomes the dict of its attributes.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple, TypeVar

from clip_core.errors import CheckpointError

Kind = TypeVar("Kind")


class StorageRef(NamedTuple):
    """Where the numbers of a tensor are: the type's name, as `FloatStorage`, and its key in the archive."""

    kind: str
    key: str
    elements: int


class TensorRef(NamedTuple):
    """A tensor as its pickle describes it; sizes in elements."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Name:
    """A class or function that the pickle names; it is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass
class ModuleRef:
    """A module of a TorchScript archive: its attributes, submodules among them."""

    attributes: dict[Any, Any] = field(default_factory=dict)


class _Mark:
    """Where a tuple, a list or a row of items begins on the stack."""


_MARK = _Mark()
_SCALARS = frozenset(
    [
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "INT",
        "LONG",
        "BINFLOAT",
        "FLOAT",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "UNICODE",
    ]
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": set}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_SILENT = frozenset({"PROTO", "FRAME", "STOP"})
_BROKEN = (IndexError, KeyError, ValueError, TypeError, AttributeError, OverflowError, EOFError)


def read_pickle(stream: IO[bytes], where: str, storages: dict[str, StorageRef] | None = None) -> Any:
    """The data that one pickle describes, up to its STOP; the stream is left behind it.

    Args:
        where: what messages call it.
        storages: every storage that is mentioned is added here, by its key.
    Returns:
        dict, list, tuple, str, int, float, bool, None, Name, TensorRef, StorageRef and ModuleRef.
    Raises:
        CheckpointError: if it asks for anything that weights do not need, or is damaged.
    """
    machine = _Machine(where, {} if storages is None else storages)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            machine.step(opcode.name, argument)
        return machine.stack.pop()
    except _BROKEN as error:
        raise CheckpointError(f"{where} is damaged: its list of tensors cannot be read ({error}).") from None


class _Machine:
    def __init__(self, where: str, storages: dict[str, StorageRef]) -> None:
        self.where, self.storages = where, storages
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, code: str, argument: Any) -> None:
        stack = self.stack
        if code in _SCALARS:
            stack.append(argument)
        elif code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code in _EMPTY:
            stack.append(_EMPTY[code]())
        elif code == "MARK":
            stack.append(_MARK)
        elif code in _TUPLES:
            count = _TUPLES[code]
            stack[-count:] = [tuple(stack[-count:])]
        elif code in ("TUPLE", "LIST"):
            items = self._since_mark()
            stack.append(tuple(items) if code == "TUPLE" else items)
        elif code in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if code == "MEMOIZE" else argument] = stack[-1]
        elif code in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif code == "GLOBAL":
            stack.append(self._name(*argument.split(" ", 1)))
        elif code == "STACK_GLOBAL":
            module, name = stack.pop(-2), stack.pop()
            stack.append(self._name(module, name))
        elif code not in _SILENT:
            self._build(code)

    def _build(self, code: str) -> None:
        """The instructions that put a value together from those on the stack."""
        stack = self.stack
        if code in ("SETITEM", "SETITEMS"):
            items = self._since_mark() if code == "SETITEMS" else [stack.pop(-2), stack.pop()]
            _expect(stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))
        elif code in ("APPEND", "APPENDS"):
            items = self._since_mark() if code == "APPENDS" else [stack.pop()]
            _expect(stack[-1], list).extend(items)
        elif code == "ADDITEMS":
            items = self._since_mark()
            _expect(stack[-1], set).update(items)
        elif code == "BINPERSID":
            storage = _storage(stack.pop())
            self.storages[storage.key] = storage
            stack.append(storage)
        elif code in ("REDUCE", "NEWOBJ"):
            arguments = _expect(stack.pop(), tuple)
            stack.append(self._made(_expect(stack.pop(), Name), arguments))
        elif code == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], ModuleRef):
                stack[-1].attributes.update(_expect(state, dict))
            # otherwise attributes of an OrderedDict or a Parameter: bookkeeping of PyTorch, not weights
        else:
            raise CheckpointError(f"{self.where} is refused: its pickle holds {code}, which weights do not need.")

    def _since_mark(self) -> list[Any]:
        at = max(n for n, item in enumerate(self.stack) if item is _MARK)
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def _name(self, module: str, name: str) -> Name:
        named = Name(str(module), str(name))
        if str(named) in _MAKERS or _is_data(named):
            return named
        raise CheckpointError(
            f"{self.where} is refused: its pickle would run {named}, and weights need no code; nothing was executed."
        )

    def _made(self, named: Name, arguments: tuple[Any, ...]) -> Any:
        maker = _MAKERS.get(str(named))
        if maker is not None:
            return maker(*arguments)
        if named.module.startswith("__torch__"):
            return ModuleRef()
        return named


def _is_data(named: Name) -> bool:
    """Storage types and dtypes of PyTorch, and the classes of a TorchScript archive (its own, not Python's)."""
    if named.module == "torch":
        return named.name.endswith("Storage") or named.name in _DTYPES
    return named.module == "__torch__" or named.module.startswith("__torch__.")


_DTYPES = frozenset(["float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "bool"])


def _tensor(storage: StorageRef, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> TensorRef:
    numbers = (offset, *_expect(shape, tuple), *_expect(stride, tuple))
    if len(shape) != len(stride) or any(not isinstance(n, int) or n < 0 for n in numbers):
        raise ValueError(f"a tensor of shape {shape}, stride {stride} at {offset}")
    return TensorRef(_expect(storage, StorageRef), offset, tuple(shape), tuple(stride))


def _storage(described: tuple[Any, ...]) -> StorageRef:
    """("storage", type, key, device, elements, ...), as PyTorch writes it."""
    tag, kind, key, _, elements = _expect(described, tuple)[:5]
    if tag != "storage" or not isinstance(elements, int) or elements < 0:
        raise ValueError(f"a storage described as {described!r:.80}")
    return StorageRef(_expect(kind, Name).name, str(key), elements)


def _first(value: Any, *_: Any) -> Any:
    return value


def _dict(items: Any = ()) -> dict[Any, Any]:
    return dict(items)


# What a pickle may ask to be called, and what is done instead.
_MAKERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _dict,
    "collections.defaultdict": lambda *_: {},
    "builtins.dict": _dict,
    "__builtin__.dict": _dict,
    "builtins.set": set,
    "__builtin__.set": set,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch.Size": tuple,
    "torch.device": lambda *_: None,
    "torch.jit._pickle.build_intlist": _first,
    "torch.jit._pickle.build_doublelist": _first,
    "torch.jit._pickle.build_boollist": _first,
    "torch.jit._pickle.build_tensorlist": _first,
    "torch.jit._pickle.restore_type_tag": _first,
}


def _expect(value: Any, kind: type[Kind]) -> Kind:
    if not isinstance(value, kind):
        raise TypeError(f"a {kind.__name__} was expected, not {type(value).__name__}")
    return value
