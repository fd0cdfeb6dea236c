"""Just enough of the protobuf wire format to tell whether an ONNX file points at data outside itself.

onnxruntime releases differ in which of these paths they follow; a bundle has no use for any, so all are refused before
a session is made.
"""

from collections.abc import Iterator
from typing import Final

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MODEL: Final = "model"
_TENSOR: Final = "tensor"
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
"""Fields of onnx.TensorProto (onnx.proto)."""

_CHILDREN: Final[dict[str, dict[int, str]]] = {
    _MODEL: {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: _TENSOR, 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: _TENSOR, 6: "graph", 10: _TENSOR, 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: _TENSOR, 2: _TENSOR},
}
"""Message kind -> field number -> kind of the message in it, for those that can lead to a tensor (onnx.proto)."""

_DEEPEST: Final = 64


def keeps_data_elsewhere(model: bytes) -> bool:
    """Whether any tensor of a serialised `onnx.ModelProto` has external data.

    Raises:
        ValueError: not protobuf, or nested beyond reason.
    """
    stack = [(_MODEL, memoryview(model), 0)]
    while stack:
        kind, message, depth = stack.pop()
        if depth > _DEEPEST:
            raise ValueError("nested too deep")
        for number, value in _fields(message):
            if kind == _TENSOR:
                if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0):
                    return True
            elif isinstance(value, memoryview) and number in _CHILDREN[kind]:
                stack.append((_CHILDREN[kind][number], value, depth + 1))
    return False


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Number and value of each field; fixed-width values are passed over as 0."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == _BYTES:
            length, at = _varint(message, at)
        elif wire in (_FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + length > len(message):
            raise ValueError("truncated")
        yield number, message[at : at + length] if wire == _BYTES else 0
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Little-endian base-128 number at `at`, and where the next byte is."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("truncated")
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number longer than ten bytes")
