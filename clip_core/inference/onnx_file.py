"""What an ONNX file would make ONNX Runtime do, read from its bytes before any session is made.

The `onnx` package is no part of the base installation, so this walks the protobuf wire format itself: the few
fields that can name an operator, a subgraph or a file outside; everything else is skipped. A file passes when
it uses standard ONNX operators only and carries all of its weights.

Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from enum import StrEnum

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
_DOMAIN = {Message.OPERATOR_SET: 1, Message.NODE: 7}
_REFUSED = {
    (Message.MODEL, 20): "training instructions",
    (Message.MODEL, 25): "operators of its own",
    (Message.TENSOR, 13): "weights in another file",
}
_DATA_LOCATION = 14  # of a tensor; 0 is inside the file


def check_onnx(content: bytes, name: str) -> None:
    """Refuse an ONNX file that asks for more than standard operators on its own weights.

    Raises:
        BundleError: naming the file and what it asks for.
    """
    try:
        _check(Message.MODEL, memoryview(content), name, 0)
    except (TornError, UnicodeDecodeError):
        raise BundleError(f"{name} is not a readable ONNX file; export the bundle again.") from None


def _check(message: Message, content: memoryview, name: str, depth: int) -> None:
    if depth > _DEEPEST:
        raise BundleError(f"{name} nests its graphs more than {_DEEPEST} deep; such a file is refused.")
    for field, value in fields(content):
        refused = _REFUSED.get((message, field))
        if refused or (message is Message.TENSOR and field == _DATA_LOCATION and value != 0):
            raise BundleError(
                f"{name} asks for {refused or 'weights in another file'}, which a bundle may not; "
                "export it again with clip-export."
            )
        if not isinstance(value, memoryview):
            continue
        if field == _DOMAIN.get(message) and (domain := str(value, "utf-8")) not in STANDARD_DOMAINS:
            raise BundleError(f"{name} uses operators of the domain {domain!r}; a bundle may hold ONNX's own only.")
        inner = _OPEN.get(message, {}).get(field)
        if inner:
            _check(inner, value, name, depth + 1)
