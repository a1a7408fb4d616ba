"""What a pickle would do, checked instruction by instruction before a library unpickles it.

`torch.load(weights_only=True)` refuses foreign code, but a hostile pickle still makes it ask for terabytes (a claimed
length, a storage that is larger than its file), hang (nested tuples as dict keys, hashed in exponential time) or end
the process (a deeply nested tuple, whose hash overflows the C stack). `check_pickle` follows the instructions without
making any object of the file's choice and lets only those through that weights and training checkpoints need.
"""

import io
import math
import pickletools
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, NamedTuple

from clip_core.errors import CheckpointError
from clip_core.text import printable

LARGEST_PICKLE = 16_000_000  # bytes; the largest CLIP with its optimiser has less than one of them
MOST_OPCODES = 1_000_000
DEEPEST = 40  # containers inside containers
_LARGEST_NUMBER = 2**40  # of elements
_PROTOCOL = 2  # what torch.save writes and torch.load reads


class Role(Enum):
    """What is done with a name that a pickle may mention."""

    DICT = auto()  # called: a dict
    TENSOR = auto()  # called with a storage, offset, shape and stride
    PARAMETER = auto()  # called with a tensor
    FIRST = auto()  # called: its first argument
    ENCODE = auto()  # called with text: its bytes
    IGNORED = auto()  # called or built: nothing that weights need
    MODULE = auto()  # a TorchScript class: a holder of attributes
    VALUE = auto()  # a storage type, a dtype, torch.Size, torch.device


class Name(NamedTuple):
    """A class or function that the pickle names; it is never looked up here."""

    module: str
    name: str
    role: Role


class Storage(NamedTuple):
    """A flat array of a file: the name of its type, as `FloatStorage`, its key in the file, its elements."""

    kind: str
    key: str
    elements: int


@dataclass(slots=True, eq=False)
class Made:
    """Anything else on the stack: what it is, how deep it is nested, and the items of a tuple or a list."""

    kind: str
    depth: int = 0
    items: list[Any] = field(default_factory=list)


class Checked(NamedTuple):
    """The value of a pickle (str, number, Name, Storage or Made), and every storage that it mentions, by key."""

    value: Any
    storages: dict[str, Storage]


# Names in the files of torch.save; in open_clip's training checkpoints before 2.30 the learning rate is a NumPy number.
TORCH_SAVE: dict[str, Role] = {
    "collections.OrderedDict": Role.DICT,
    "collections.defaultdict": Role.DICT,
    "builtins.dict": Role.DICT,
    "torch._utils._rebuild_tensor": Role.TENSOR,
    "torch._utils._rebuild_tensor_v2": Role.TENSOR,
    "torch._utils._rebuild_parameter": Role.PARAMETER,
    "torch.Size": Role.VALUE,
    "torch.device": Role.VALUE,
    "_codecs.encode": Role.ENCODE,
    "numpy.dtype": Role.IGNORED,
    "numpy.core.multiarray.scalar": Role.IGNORED,
    "numpy._core.multiarray.scalar": Role.IGNORED,
}
TORCHSCRIPT: dict[str, Role] = TORCH_SAVE | {
    f"torch.jit._pickle.{name}": Role.FIRST
    for name in ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag")
}
_DTYPES = frozenset(["float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "bool"])
_BROKEN = (IndexError, KeyError, ValueError, TypeError, AttributeError, OverflowError, EOFError, RecursionError)


def check_pickle(stream: io.BytesIO, where: str, *, torchscript: bool = False) -> Checked:
    """Follow one pickle up to its STOP; the stream is left behind it.

    Args:
        stream: bytes in memory, so that no length in them makes more be read than there is.
        where: what messages call it.
        torchscript: the names of TorchScript archives are allowed too.
    Raises:
        CheckpointError: if it is damaged, or does anything that weights do not need.
    """
    machine = _Machine(where, torchscript)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count > MOST_OPCODES:
                raise CheckpointError(f"{where} is refused: its pickle has more than {MOST_OPCODES:,} instructions.")
            machine.step(opcode.name, argument)
        value = machine.stack.pop()
    except _BROKEN as error:
        raise CheckpointError(f"{where} is damaged: its pickle is invalid ({printable(str(error), 80)}).") from None
    if machine.protocols != {_PROTOCOL}:
        raise CheckpointError(
            f"{where} is not supported: it is not a pickle of protocol {_PROTOCOL}, the default of torch.save, "
            "and torch.load reads no other; save it again."
        )
    return Checked(value, machine.storages)


class _Machine:
    """The pickle machine on descriptions of values in place of values."""

    def __init__(self, where: str, torchscript: bool) -> None:
        self.where, self.torchscript = where, torchscript
        self.protocols: set[int] = set()
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below each MARK
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def step(self, code: str, argument: Any) -> None:
        stack = self.stack
        match code:
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[code])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append(Made(code.removeprefix("EMPTY_").lower(), 1))
            case "MARK":
                self.outer.append(stack)
                self.stack = []
            case "TUPLE":
                items = self._since_mark()
                self.stack.append(self._nested(Made("tuple", 1, items), items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [stack.pop() for _ in range(int(code[-1]))][::-1]
                stack.append(self._nested(Made("tuple", 1, items), items))
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                index = len(self.memo) if code == "MEMOIZE" else argument
                if index > MOST_OPCODES:  # an unpickler in C keeps an array of that size
                    raise CheckpointError(f"{self.where} is refused: its pickle numbers an object {index:,}.")
                self.memo[index] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "GLOBAL":
                stack.append(self._name(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                module, name = stack.pop(-2), stack.pop()
                stack.append(self._name(module, name))
            case "PROTO":
                self.protocols.add(argument)
            case "STOP" | "FRAME":
                pass
            case _:
                self._build(code)

    def _build(self, code: str) -> None:
        """The instructions that put a value together from those on the stack."""
        stack = self.stack
        match code:
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self._set_items([key, value])
            case "SETITEMS":
                self._set_items(self._since_mark())
            case "APPEND":
                self._append([stack.pop()])
            case "APPENDS":
                self._append(self._since_mark())
            case "BINPERSID":
                stack.append(self._storage(_items(stack.pop(), "tuple")))
            case "REDUCE":
                arguments = _items(stack.pop(), "tuple")
                stack.append(self._called(_expect(stack.pop(), Name), arguments))
            case "NEWOBJ":
                _items(stack.pop(), "tuple")
                if _expect(stack.pop(), Name).role is not Role.MODULE:
                    raise ValueError("an object of a class that is not a module")
                stack.append(Made("module", 1))
            case "BUILD":
                state, target = stack.pop(), _expect(stack[-1], Made)
                if target.kind in ("dict", "module"):
                    self._nested(target, [_expect_kind(state, "dict")])
                elif target.kind != "ignored":
                    raise ValueError(f"a state of a {target.kind}")
            case _:
                raise CheckpointError(f"{self.where} is refused: its pickle has {code}, which weights do not need.")

    def _since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def _nested(self, holder: Made, items: list[Any]) -> Made:
        """`holder` with the depth that it has with these items."""
        deepest = max((item.depth for item in items if isinstance(item, Made)), default=0)
        holder.depth = max(holder.depth, deepest + 1)
        if holder.depth > DEEPEST:
            raise CheckpointError(f"{self.where} is refused: its pickle is nested more than {DEEPEST} levels deep.")
        return holder

    def _set_items(self, items: list[Any]) -> None:
        target = _expect_kind(self.stack[-1], "dict")
        keys, values = items[::2], items[1::2]
        if len(keys) != len(values):
            raise ValueError("a dict key without a value")
        wrong = next((key for key in keys if type(key) not in (str, int)), None)
        if wrong is not None:
            kind = wrong.kind if isinstance(wrong, Made) else type(wrong).__name__
            raise CheckpointError(f"{self.where} is refused: a dict key in it is a {kind}, not a name or a number.")
        self._nested(target, values)

    def _append(self, items: list[Any]) -> None:
        target = _expect_kind(self.stack[-1], "list")
        target.items += items
        self._nested(target, items)

    def _name(self, module: Any, name: Any) -> Name:
        full = f"{_expect(module, str)}.{_expect(name, str)}"
        role = (TORCHSCRIPT if self.torchscript else TORCH_SAVE).get(full)
        if role is None and module == "torch" and (name.endswith("Storage") or name in _DTYPES):
            role = Role.VALUE
        if role is None and self.torchscript and (module == "__torch__" or module.startswith("__torch__.")):
            role = Role.MODULE
        if role is None:
            raise CheckpointError(
                f"{self.where} is refused: its pickle would run {printable(full, 80)}, and weights need no code; "
                "nothing was executed."
            )
        return Name(module, name, role)

    def _storage(self, described: list[Any]) -> Storage:
        """("storage", type, key, device, elements[, None]), as torch.save writes it."""
        tag, kind, key, device, elements, *view = described
        texts = tag == "storage" and type(key) is type(device) is str
        if not texts or not _is_count(elements) or any(part is not None for part in view) or len(view) > 1:
            raise ValueError("an inconsistent storage")
        storage = Storage(_expect(kind, Name).name, key, elements)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"two descriptions of storage {key!r:.20}")
        return storage

    def _called(self, named: Name, arguments: list[Any]) -> Any:
        """What a call gives: a description of it."""
        match named.role:
            case Role.DICT:
                if any(not isinstance(argument, Name) for argument in arguments):
                    raise ValueError("a dict of something else than its items")
                return Made("dict", 1)
            case Role.TENSOR:
                self._check_tensor(arguments)
                return Made("tensor")
            case Role.PARAMETER:
                return _expect_kind(arguments[0], "tensor")
            case Role.FIRST:
                return arguments[0]
            case Role.ENCODE:
                text, encoding = arguments
                if type(text) is not str or encoding != "latin1":
                    raise ValueError("bytes in an unknown encoding")
                return Made("bytes")
            case Role.IGNORED:
                return Made("ignored")
            case Role.MODULE:
                return Made("module", 1)
            case Role.VALUE:
                return self._nested(Made("value", 1), arguments)

    def _check_tensor(self, arguments: list[Any]) -> None:
        """(storage, offset, shape, stride[, requires_grad, hooks]): every element is inside the storage."""
        storage, offset, shape, stride = arguments[:4]
        storage, sizes, steps = _expect(storage, Storage), _items(shape, "tuple"), _items(stride, "tuple")
        if len(arguments) > 6 or len(sizes) != len(steps) or not all(map(_is_count, (offset, *sizes, *steps))):
            raise ValueError("an inconsistent tensor")
        elements = math.prod(sizes)
        last = offset + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
        if elements and (last >= storage.elements or elements > storage.elements):
            raise CheckpointError(
                f"{self.where} is inconsistent: a tensor of shape {sizes} does not fit into its storage of "
                f"{storage.elements:,} elements."
            )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST_NUMBER


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"a {kind.__name__} was expected, not a {type(value).__name__}")
    return value


def _expect_kind(value: Any, kind: str) -> Made:
    if not isinstance(value, Made) or value.kind != kind:
        raise TypeError(f"a {kind} was expected")
    return value


def _items(value: Any, kind: str) -> list[Any]:
    return _expect_kind(value, kind).items
