"""Whether an ONNX file points at data outside itself.

onnxruntime releases differ in which of these paths they follow; a bundle has no use for any, so all are refused before
a session is made.
"""

from collections.abc import Iterator
from typing import Final

from m2s_runtime.engines.onnx_wire import raw_fields

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
        for number, value in fields(message):
            if kind == _TENSOR:
                if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0):
                    return True
            elif isinstance(value, memoryview) and number in _CHILDREN[kind]:
                stack.append((_CHILDREN[kind][number], value, depth + 1))
    return False


def fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Number and value of each field; fixed-width values are passed over as 0.

    Raises:
        ValueError: not protobuf.
    """
    return ((number, value) for number, value, _ in raw_fields(message))
