"""The protobuf wire format, read without a library: ONNX files before they are trusted, SentencePiece models.

Source: https://protobuf.dev/programming-guides/encoding
"""

from collections.abc import Iterator


class TornError(ValueError):
    """Bytes that are no protobuf message."""


def fields(content: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Field number and value of each field of one message: an int, or the bytes of any other.

    Raises:
        TornError: where the bytes are no message.
    """
    at = 0
    while at < len(content):
        tag, at = _varint(content, at)
        field, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(content, at)
            yield field, value
            continue
        if wire == 2:
            length, at = _varint(content, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise TornError("a wire type that is not used")
        if field == 0 or at + length > len(content):
            raise TornError("a field that reaches past the end")
        yield field, content[at : at + length]
        at += length


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    """A base-128 number and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            break
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise TornError("a number without an end")
