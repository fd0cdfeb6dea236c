"""Just enough of the protobuf wire format to read an ONNX file and to write nodes and constants into it.

The lean runtime does without the package onnx. Numbers of fields are those of onnx.proto.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_TENSOR_TYPES: Final = {np.dtype(np.float32): 1, np.dtype(np.int64): 7}
_INT, _INTS = 2, 7
"""onnx.AttributeProto.AttributeType."""


def raw_fields(message: memoryview) -> Iterator[tuple[int, memoryview | int, memoryview]]:
    """Number, value and raw bytes, its key included, of each field; fixed-width values are passed over as 0.

    Raises:
        ValueError: not protobuf.
    """
    at = 0
    while at < len(message):
        began = at
        key, at = varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, at = varint(message, at)
            yield number, value, message[began:at]
            continue
        if wire == BYTES:
            length, at = varint(message, at)
        elif wire in (FIXED64, FIXED32):
            length = 8 if wire == FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + length > len(message):
            raise ValueError("truncated")
        yield number, message[at : at + length] if wire == BYTES else 0, message[began : at + length]
        at += length


def varint(message: memoryview, at: int) -> tuple[int, int]:
    """Little-endian base-128 number at `at`, and where the next byte is.

    Raises:
        ValueError: it has no end.
    """
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


def integers(value: memoryview | int) -> list[int]:
    """A repeated integer field, of which each may come on its own or all packed into one."""
    if isinstance(value, int):
        return [value]
    found, at = list[int](), 0
    while at < len(value):
        number, at = varint(value, at)
        found.append(number)
    return found


def part(number: int, content: bytes | str | memoryview) -> bytes:
    """A field of bytes, text or a message."""
    data = content.encode() if isinstance(content, str) else bytes(content)
    return _varint(number << 3 | BYTES) + _varint(len(data)) + data


def whole(number: int, value: int) -> bytes:
    """An integer field, not negative."""
    return _varint(number << 3 | VARINT) + _varint(value)


def node(op: str, inputs: Sequence[str], output: str, **attributes: int | Sequence[int]) -> bytes:
    """A onnx.NodeProto with one output, named after it."""
    told = b"".join(part(1, name) for name in inputs) + part(2, output) + part(3, output) + part(4, op)
    return told + b"".join(part(5, _attribute(name, value)) for name, value in attributes.items())


def constant(name: str, values: NDArray[Any]) -> bytes:
    """A onnx.TensorProto, float32 or int64."""
    dims = b"".join(whole(1, side) for side in values.shape)
    raw = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
    return dims + whole(2, _TENSOR_TYPES[values.dtype]) + part(8, name) + part(9, raw)


def _attribute(name: str, value: int | Sequence[int]) -> bytes:
    if isinstance(value, int):
        return part(1, name) + whole(3, value) + whole(20, _INT)
    return part(1, name) + b"".join(whole(8, one) for one in value) + whole(20, _INTS)


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    data.append(value)
    return bytes(data)
