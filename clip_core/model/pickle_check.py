"""What a weight file's pickle describes, followed instruction by instruction; nothing is unpickled.

`torch.load(weights_only=True)` refuses foreign code, but a hostile pickle still makes it ask for terabytes (a claimed
length, a storage that is larger than its file), hang (nested tuples as dict keys, hashed in exponential time) or end
the process (a deeply nested tuple, whose hash overflows the C stack); and it reads neither pickles of protocol 3 to 5
nor a training checkpoint with a number of NumPy beside the weights. `check_pickle` makes no object of the file's
choice: its result is a description, with the place of each tensor in the file.
"""

import io
import math
import pickletools
from typing import Any

from clip_core.errors import CheckpointError
from clip_core.model.pickle_names import Role, is_class, role_of
from clip_core.model.pickle_values import Checked, Layout, Made, Name, Storage
from clip_core.text import printable

LARGEST_PICKLE = 16_000_000  # bytes; the largest CLIP with its optimiser has less than one of them
MOST_OPCODES = 1_000_000
DEEPEST = 40  # containers inside containers
_LARGEST_NUMBER = 2**40  # of elements


_BROKEN = (IndexError, KeyError, ValueError, TypeError, AttributeError, OverflowError, EOFError, RecursionError)


def check_pickle(stream: io.BytesIO, where: str, *, torchscript: bool = False) -> Checked:
    """Follow one pickle, of any protocol, up to its STOP; the stream is left behind it.

    Args:
        stream: bytes in memory, so that no length in them makes more be read than there is.
        where: what messages call it.
        torchscript: the names of TorchScript archives are allowed, and no others but tensors.
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
    return Checked(value, machine.storages)


def whole_model(where: str, named: str) -> CheckpointError:
    """What a pickled module is refused with."""
    return CheckpointError(
        f"{where} is a whole model, pickled by torch.save(model) ({printable(named, 80)}), and nothing of it was "
        "executed; where it was made, save its weights instead: torch.save(model.state_dict(), 'weights.pt')."
    )


class _Machine:
    """The pickle machine on descriptions of values in place of values."""

    def __init__(self, where: str, torchscript: bool) -> None:
        self.where, self.torchscript = where, torchscript
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below each MARK
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def step(self, code: str, argument: Any) -> None:
        stack = self.stack
        match code:
            case (
                "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8" | "SHORT_BINSTRING" | "BINSTRING"
                | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT"
            ):  # fmt: skip
                stack.append(argument)
            case "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BYTEARRAY8":
                stack.append(Made("bytes"))
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[code])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE" | "EMPTY_SET":
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
            case "PROTO" | "STOP" | "FRAME":
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
            case "APPENDS" | "ADDITEMS":
                self._append(self._since_mark())
            case "FROZENSET":
                items = self._since_mark()
                self.stack.append(self._nested(Made("set", 1), items))
            case "BINPERSID":
                stack.append(self._storage(_items(stack.pop(), "tuple")))
            case "REDUCE":
                arguments = _items(stack.pop(), "tuple")
                stack.append(self._called(_expect(stack.pop(), Name), arguments))
            case "NEWOBJ" | "NEWOBJ_EX":
                for _ in code.split("_"):  # the arguments, and those by name
                    self._nested(Made("value", 1), [stack.pop()])
                stack.append(self._object(_expect(stack.pop(), Name)))
            case "BUILD":
                state, target = stack.pop(), _expect(stack[-1], Made)
                if target.kind in ("dict", "module"):
                    self._nested(target, [_expect_kind(state, "dict")])
                    if target.kind == "module":
                        target.entries |= state.entries
                elif target.kind in ("object", "ignored"):
                    self._nested(target, [state])
                else:
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

    def _object(self, named: Name) -> Made:
        """A new object of a class."""
        match named.role:
            case Role.MODULE:
                return Made("module", 1)
            case Role.DICT:
                return Made("dict", 1)
            case Role.OBJECT | Role.IGNORED:
                return Made("object", 1, named=str(named))
        raise ValueError("an object of a class that has none")

    def _set_items(self, items: list[Any]) -> None:
        target = _expect(self.stack[-1], Made)
        if target.kind not in ("dict", "object", "ignored"):
            raise TypeError(f"items of a {target.kind}")
        keys, values = items[::2], items[1::2]
        if len(keys) != len(values):
            raise ValueError("a dict key without a value")
        self._nested(target, items)
        if target.kind == "dict":
            target.entries |= {k: v for k, v in zip(keys, values, strict=True) if type(k) in (str, int)}

    def _append(self, items: list[Any]) -> None:
        target = _expect(self.stack[-1], Made)
        if target.kind not in ("list", "set", "object", "ignored"):
            raise TypeError(f"items of a {target.kind}")
        if target.kind == "list":
            target.items += items
        self._nested(target, items)

    def _name(self, module: Any, name: Any) -> Name:
        named = Name(_expect(module, str), _expect(name, str), Role.REFUSED)
        named = named._replace(role=role_of(named.module, named.name, torchscript=self.torchscript))
        if named.role is Role.REFUSED:
            raise self._would_run(named)
        return named

    def _would_run(self, named: Name) -> CheckpointError:
        """The refusal of a function; inside a pickled module, whose class stands at the bottom, that of the module."""
        bottom = next(iter(self.outer[0] if self.outer else self.stack), None)
        if isinstance(bottom, Made) and bottom.kind == "object":
            return whole_model(self.where, bottom.named)
        way_out = "" if named.role is Role.REFUSED else " Where it was made, save its state dict alone."
        return CheckpointError(
            f"{self.where} is refused: its pickle would run {printable(str(named), 80)}, and weights need no code; "
            f"nothing was executed.{way_out}"
        )

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
                return self._dict(arguments)
            case Role.TENSOR:
                return Made("tensor", layout=self._layout(arguments, 6))
            case Role.TYPED_TENSOR:
                dtype = _expect(arguments[6], Name)
                return Made("tensor", layout=self._layout(arguments, 8)._replace(dtype=dtype.name))
            case Role.PARAMETER:
                return _expect_kind(arguments[0], "tensor")
            case Role.SUBCLASS:
                function, _, inner = arguments[:3]
                if _expect(function, Name).role is Role.SUBCLASS:
                    raise ValueError("a tensor inside itself")
                return self._called(function, _items(inner, "tuple"))
            case Role.FIRST:
                return arguments[0]
            case Role.ENCODE:
                text, encoding = arguments
                if type(text) is not str or encoding != "latin1":
                    raise ValueError("bytes in an unknown encoding")
                return Made("bytes")
            case Role.IGNORED:
                return self._nested(Made("ignored", 1), arguments)
            case Role.MODULE:
                return Made("module", 1)
            case Role.VALUE:
                return self._nested(Made("value", 1), arguments)
            case Role.OBJECT if is_class(named.module, named.name):
                return self._nested(self._object(named), arguments)
        raise self._would_run(named)

    def _dict(self, arguments: list[Any]) -> Made:
        """A dict, empty (a defaultdict has its factory here) or made from a list of pairs."""
        made = Made("dict", 1)
        if arguments and isinstance(arguments[0], Made) and arguments[0].kind == "list":
            pairs = [_items(pair, "list" if pair.kind == "list" else "tuple") for pair in arguments[0].items]
            made.entries = {key: value for key, value in pairs if type(key) in (str, int)}
            return self._nested(made, arguments)
        if any(not isinstance(argument, Name) for argument in arguments):
            raise ValueError("a dict of something else than its items")
        return made

    def _layout(self, arguments: list[Any], most: int) -> Layout:
        """(storage, offset, shape, stride[, requires_grad, hooks]): every element is inside the storage."""
        storage, offset, shape, stride = arguments[:4]
        storage, sizes, steps = _expect(storage, Storage), _items(shape, "tuple"), _items(stride, "tuple")
        if len(arguments) > most or len(sizes) != len(steps) or not all(map(_is_count, (offset, *sizes, *steps))):
            raise ValueError("an inconsistent tensor")
        elements = math.prod(sizes)
        last = offset + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
        if elements and (last >= storage.elements or elements > storage.elements):
            raise CheckpointError(
                f"{self.where} is inconsistent: a tensor of shape {sizes} does not fit into its storage of "
                f"{storage.elements:,} elements."
            )
        return Layout(storage, offset, tuple(sizes), tuple(steps))


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
