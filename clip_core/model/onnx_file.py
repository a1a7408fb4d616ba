"""What an ONNX file would make ONNX Runtime do, read from its bytes before any session is made.

The `onnx` package is no part of the base installation, so this walks the protobuf wire format itself: the few
fields that can name an operator, a subgraph or a file outside; everything else is skipped. A file passes when
it uses standard ONNX operators only and carries all of its weights, or, where that is allowed, has them in files
beside it.

Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from enum import StrEnum
from mmap import mmap

from clip_core.errors import BundleError
from clip_core.protobuf import TornError, fields

STANDARD_DOMAINS = frozenset({"", "ai.onnx"})
_DEEPEST = 100  # protobuf's own limit on nesting


class Message(StrEnum):
    MODEL = "model"
    OPERATOR_SET = "operator set"
    GRAPH = "graph"
    NODE = "node"
    ATTRIBUTE = "attribute"
    TENSOR = "tensor"
    SPARSE_TENSOR = "sparse tensor"


# Fields that hold another message worth opening: message -> field number -> what it holds.
_OPEN: dict[Message, dict[int, Message]] = {
    Message.MODEL: {7: Message.GRAPH, 8: Message.OPERATOR_SET},
    Message.GRAPH: {1: Message.NODE, 5: Message.TENSOR, 15: Message.SPARSE_TENSOR},
    Message.NODE: {5: Message.ATTRIBUTE},
    Message.ATTRIBUTE: {
        5: Message.TENSOR,
        6: Message.GRAPH,
        10: Message.TENSOR,
        11: Message.GRAPH,
        22: Message.SPARSE_TENSOR,
        23: Message.SPARSE_TENSOR,
    },
    Message.SPARSE_TENSOR: {1: Message.TENSOR, 2: Message.TENSOR},
}
_OPERATOR = 4  # of a node
_ENDLESS = frozenset({"Loop", "Scan", "SequenceMap"})  # which no encoder needs, and which may run for ever
_DOMAIN = {Message.OPERATOR_SET: 1, Message.NODE: 7}
_REFUSED = {
    (Message.MODEL, 20): "training instructions",
    (Message.MODEL, 25): "operators of its own",
    (Message.TENSOR, 13): "weights in another file",
}
_MAY_BE_BESIDE = {(Message.MODEL, 7), (Message.GRAPH, 5)}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of a tensor; location 0 is inside the file


def check_onnx(content: bytes | mmap, name: str) -> None:
    """Refuse an ONNX file that asks for more than standard operators on its own weights.

    Raises:
        BundleError: naming the file and what it asks for.
    """
    _checked(content, name, None)


def files_beside(content: bytes | mmap, name: str) -> list[str]:
    """The same for a file that may have weights in files beside it; their names, which are no paths.

    Raises:
        BundleError: naming the file and what it asks for.
    """
    named: dict[str, None] = {}
    _checked(content, name, named)
    for file in named:
        if file in ("", ".", "..") or "/" in file or "\\" in file or "\0" in file:
            raise BundleError(
                f"{name} has weights in {file[:80]!r}, which is outside its folder; such a file is refused."
            )
    return list(named)


def _checked(content: bytes | mmap, name: str, beside: dict[str, None] | None) -> None:
    try:
        _check(Message.MODEL, memoryview(content), name, 0, beside)
    except (TornError, UnicodeDecodeError):
        raise BundleError(f"{name} is cut short or no ONNX file; export it again.") from None


def _check(message: Message, content: memoryview, name: str, depth: int, beside: dict[str, None] | None) -> None:
    if depth > _DEEPEST:
        raise BundleError(f"{name} nests its graphs more than {_DEEPEST} deep; such a file is refused.")
    for field, value in fields(content):
        refused = _REFUSED.get((message, field))
        outside = message is Message.TENSOR and (field == _DATA_LOCATION and value != 0)
        if beside is not None and message is Message.TENSOR and field == _EXTERNAL_DATA:
            beside |= _location(value)
            continue
        if refused or (outside and beside is None):
            raise BundleError(
                f"{name} asks for {refused or 'weights in another file'}, which is not allowed; export it again."
            )
        if not isinstance(value, memoryview):
            continue
        if field == _DOMAIN.get(message) and (domain := str(value, "utf-8")) not in STANDARD_DOMAINS:
            raise BundleError(f"{name} uses operators of the domain {domain!r}; only ONNX's own are allowed.")
        if message is Message.NODE and field == _OPERATOR and str(value, "utf-8") in _ENDLESS:
            raise BundleError(f"{name} has a {str(value, 'utf-8')}, which may run without end; such a file is refused.")
        inner = _OPEN.get(message, {}).get(field)
        if inner:  # weights of the graph itself may be beside it; those of attributes and subgraphs have no reason to
            allowed = beside if (message, field) in _MAY_BE_BESIDE else None
            _check(inner, value, name, depth + 1, allowed)


def _location(entry: int | memoryview) -> dict[str, None]:
    """The file that an entry of a tensor's external data names, if it is that entry."""
    if not isinstance(entry, memoryview):
        raise TornError("external data that is a number")
    words = {field: str(value, "utf-8") for field, value in fields(entry) if isinstance(value, memoryview)}
    return {words.get(2, ""): None} if words.get(1) == "location" else {}
