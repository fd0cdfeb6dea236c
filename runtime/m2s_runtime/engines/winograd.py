"""Convolutions with fewer multiplications: Winograd's minimal filtering, written into a graph as ONNX nodes.

A 3x3x3 convolution of stride 1 computes 4x4 outputs of a plane (x, y) from 6x6 products instead of 4x4x9 (Lavin and
Gray 2016, F(4x4, 3x3)); along z its three taps stay as they are. The transforms are products with constant matrices,
and what lies between is a grouped two-dimensional convolution, for which CPU engines have their best kernels. Weights
are those of the file: the engine transforms them once, when it folds constants.

The points are 0, +-2/3, +-3/2 and infinity: rounding errors are half those of the usual 0, +-1, +-2 (compare Barabasz
et al. 2020), and a graph strays from the original by no more than one CPU engine does from another.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from m2s_runtime.engines.onnx_wire import constant, integers, node, part, raw_fields

Matrix = NDArray[np.floating[Any]]

_POINTS: Final = (0.0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)
"""Where polynomials are evaluated; infinity is the sixth."""

_OUTPUTS: Final = 4
_PRODUCTS: Final = 6
_SMALLEST: Final = 8
"""Voxels along x and y below which the transforms cost as much as the products that they save."""
_LARGEST: Final = 256
"""The same at the other end: the transforms are dense along an axis."""

_GRAPH: Final = 7
_NODE, _INITIALIZER, _VALUE_INFO = 1, 5, 13
_ATTRIBUTE: Final = 5
_FLOAT: Final = 1
"""Of onnx.TensorProto.DataType."""


@dataclass(frozen=True)
class _Conv:
    """A convolution that can be replaced: names of its tensors, channels, and voxels along x, y, z."""

    x: str
    weight: str
    bias: str | None
    y: str
    inputs: int
    outputs: int
    size: tuple[int, int, int]


@dataclass(frozen=True)
class _Node:
    """What of an onnx.NodeProto is looked at: `op` is empty for one of another domain, text attributes are bytes."""

    op: str
    inputs: tuple[str, ...]
    output: str
    attributes: dict[str, list[int]]

    @classmethod
    def of(cls, message: memoryview) -> "_Node":
        names: dict[int, list[str]] = {1: [], 2: [""], 4: [""], 7: [""]}
        attributes = dict[str, list[int]]()
        for number, value, _ in raw_fields(message):
            if isinstance(value, memoryview) and number in names:
                names[number].append(bytes(value).decode())
            elif isinstance(value, memoryview) and number == _ATTRIBUTE:
                name, numbers = _attribute(value)
                attributes |= {name: numbers} if numbers else {}
        return cls("" if names[7][-1] else names[4][-1], tuple(names[1]), names[2][-1], attributes)


def with_fewer_products(model: bytes) -> bytes:
    """A serialised model in which every convolution that gains by it is replaced; the others are as they were.

    Sizes and types are taken from the file's `value_info`; a file without it, or not of float32, comes back unchanged.

    Args:
        model: serialised onnx.ModelProto of opset 13 or later.

    Raises:
        ValueError: not protobuf.
    """
    return b"".join(
        part(_GRAPH, _graph(value)) if number == _GRAPH and isinstance(value, memoryview) else bytes(raw)
        for number, value, raw in raw_fields(memoryview(model))
    )


def transforms() -> tuple[Matrix, Matrix, Matrix]:
    """Of six inputs (6, 6), three weights (6, 3) and six products (4, 6): y = A ((G w) * (B x))."""
    n = len(_POINTS)
    weights, outputs, inputs = np.zeros((n + 1, 3)), np.zeros((4, n + 1)), np.zeros((n + 1, n + 1))
    for i, point in enumerate(_POINTS):
        others = [other for k, other in enumerate(_POINTS) if k != i]
        weights[i] = point ** np.arange(3.0) / np.prod([point - other for other in others])
        outputs[:, i] = point ** np.arange(4.0)
        inputs[i, :n] = np.poly(others)[::-1]
    weights[n, 2] = outputs[3, n] = 1.0
    inputs[n] = np.poly(_POINTS)[::-1]
    return inputs, weights, outputs


def _graph(graph: memoryview) -> bytes:
    parts = [(number, value, raw) for number, value, raw in raw_fields(graph)]
    messages = [(number, value) for number, value, _ in parts if isinstance(value, memoryview)]
    sizes = dict(_value_shape(value) for number, value in messages if number == _VALUE_INFO)
    weights = dict(_tensor_shape(value) for number, value in messages if number == _INITIALIZER)
    found, constants = list[bytes](), dict[str, bytes]()
    for number, value, raw in parts:
        conv = None
        if number == _NODE and isinstance(value, memoryview):
            known = _Node.of(value)
            if known.op == "Cast":  # weights stored as float16 and widened where they are used
                weights[known.output] = weights.get(next(iter(known.inputs), ""), ())
            conv = _suitable(known, sizes, weights)
        found += [bytes(raw)] if conv is None else [part(_NODE, one) for one in _replaced(conv, constants)]
    return b"".join([*found, *(part(_INITIALIZER, one) for one in constants.values())])


def _suitable(known: _Node, sizes: dict[str, tuple[int, ...]], weights: dict[str, tuple[int, ...]]) -> _Conv | None:
    """What a node convolves, if it is a convolution of the kind that can be replaced and gains by it."""
    plain = {"kernel_shape": [3] * 3, "pads": [1] * 6, "strides": [1] * 3, "dilations": [1] * 3, "group": [1]}
    if known.op != "Conv" or plain | known.attributes != plain or "pads" not in known.attributes:
        return None
    x, kernel, *bias = known.inputs
    weight, (nx, ny, nz) = weights.get(kernel, ()), (0, 0, 0, *sizes.get(x, ()))[-3:]
    fitting = range(_SMALLEST, _LARGEST + 1, _OUTPUTS)
    if weight[2:] != (3, 3, 3) or not nz or nx not in fitting or ny not in fitting:
        return None
    return _Conv(x, kernel, bias[0] if bias else None, known.output, weight[1], weight[0], (nx, ny, nz))


def _replaced(conv: _Conv, constants: dict[str, bytes]) -> Iterator[bytes]:
    """Nodes that compute the same; the constants they share are added to `constants`."""
    (nx, ny, nz), p, outputs = conv.size, _PRODUCTS, transforms()[2]
    tx, ty = nx // _OUTPUTS, ny // _OUTPUTS
    chain = _Chain(conv.x, conv.y, constants)
    bias = () if conv.bias is None else (f"{conv.y}.winograd.bias",)
    yield from _weights(conv, constants)
    # (B, C, X, Y, Z) to products as channels, (B, 36 C, tiles, Z); a reshape leaves the batch to -1.
    yield chain.reshape(-1, nx, ny * nz)
    yield chain.product(f"winograd.inputs.{nx}", spread(nx))
    yield chain.reshape(-1, ny, nz)
    yield chain.product(f"winograd.inputs.{ny}", spread(ny))
    yield chain.reshape(-1, conv.inputs, p, tx, p, ty, nz)
    yield chain.add("Transpose", perm=(0, 2, 4, 1, 3, 5, 6))
    yield chain.reshape(-1, p * p * conv.inputs, tx * ty, nz)
    yield chain.add("Conv", f"{conv.y}.winograd.weight", *bias, group=p * p, kernel_shape=(1, 3), pads=(0, 1, 0, 1))
    yield chain.reshape(-1, p * p, conv.outputs * tx * ty * nz)
    yield chain.product("winograd.outputs", np.kron(outputs, outputs))
    yield chain.reshape(-1, _OUTPUTS, _OUTPUTS, conv.outputs, tx, ty, nz)
    yield chain.add("Transpose", perm=(0, 3, 4, 1, 5, 2, 6))
    yield chain.reshape(-1, conv.outputs, *conv.size, last=True)


def _weights(conv: _Conv, constants: dict[str, bytes]) -> Iterator[bytes]:
    """Transformed weights (36 O, I, 1, 3) and biases (36 O): nodes of constants, which engines fold when they load."""
    _, weights, outputs = transforms()
    chain = _Chain(conv.weight, f"{conv.y}.winograd.weight", constants)
    yield chain.reshape(conv.outputs * conv.inputs, 9, 3)
    yield chain.add("Transpose", perm=(1, 0, 2))
    yield chain.reshape(9, -1)
    yield chain.product("winograd.weights", np.kron(weights, weights))
    yield chain.reshape(_PRODUCTS**2 * conv.outputs, conv.inputs, 1, 3, last=True)
    if conv.bias is not None:
        # Products that the output transform turns into the same number for every output.
        even = np.linalg.lstsq(outputs, np.ones(_OUTPUTS), rcond=None)[0]
        chain = _Chain(conv.bias, f"{conv.y}.winograd.bias", constants)
        yield chain.reshape(1, -1)
        yield chain.product("winograd.bias", np.outer(even, even).reshape(-1, 1))
        yield chain.reshape(-1, last=True)


@cache
def spread(size: int) -> Matrix:
    """(6 t, size): six transformed inputs of each of the t tiles of an axis, ordered by product, then tile."""
    inputs, tiles = transforms()[0], size // _OUTPUTS
    padded = np.zeros((_PRODUCTS, tiles, size + 2))
    for tile in range(tiles):
        padded[:, tile, tile * _OUTPUTS : tile * _OUTPUTS + _PRODUCTS] = inputs
    return padded[:, :, 1:-1].reshape(-1, size)


class _Chain:
    """Nodes each of which takes what the one before gave."""

    def __init__(self, first: str, last: str, constants: dict[str, bytes]) -> None:
        self._at, self._last, self._constants, self._count = first, last, constants, 0

    def add(self, op: str, *others: str, last: bool = False, **attributes: int | Sequence[int]) -> bytes:
        return self._node(op, (self._at, *others), last=last, **attributes)

    def reshape(self, *shape: int, last: bool = False) -> bytes:
        name = f"winograd.shape.{'x'.join(map(str, shape))}"
        return self.add("Reshape", self._kept(name, np.array(shape, np.int64)), last=last)

    def product(self, name: str, matrix: Matrix) -> bytes:
        """`matrix` times what came before."""
        return self._node("MatMul", (self._kept(name, matrix.astype(np.float32)), self._at), last=False)

    def _kept(self, name: str, values: NDArray[Any]) -> str:
        if name not in self._constants:
            self._constants[name] = constant(name, values)
        return name

    def _node(self, op: str, inputs: Sequence[str], *, last: bool, **attributes: int | Sequence[int]) -> bytes:
        self._count += 1
        self._at = self._last if last else f"{self._last}.winograd.{self._count}"
        return node(op, inputs, self._at, **attributes)


def _attribute(message: memoryview) -> tuple[str, list[int]]:
    """Name and integers of an attribute; the bytes of a text, unless it is the usual `NOTSET`."""
    name, numbers = "", list[int]()
    for number, value, _ in raw_fields(message):
        if number == 1 and isinstance(value, memoryview):
            name = bytes(value).decode()
        elif number in (3, 8):
            numbers += integers(value)
        elif number == 4 and isinstance(value, memoryview) and bytes(value) != b"NOTSET":
            numbers += value
    return name, numbers


def _tensor_shape(message: memoryview) -> tuple[str, tuple[int, ...]]:
    name, sides = "", list[int]()
    for number, value, _ in raw_fields(message):
        if number == 8 and isinstance(value, memoryview):
            name = bytes(value).decode()
        elif number == 1:
            sides += integers(value)
    return name, tuple(sides)


def _value_shape(message: memoryview) -> tuple[str, tuple[int, ...]]:
    """Name and sides of a tensor, 0 for one that is not fixed; no sides where its numbers are not float32."""
    name, sides = "", list[int]()
    for number, value, _ in raw_fields(message):
        if isinstance(value, memoryview):
            if number == 1:
                name = bytes(value).decode()
            elif number == 2:
                tensors = [tensor for tensor in _in(value, 1) if _whole(tensor) == _FLOAT]
                sides = [_whole(dim) for tensor in tensors for shape in _in(tensor, 2) for dim in _in(shape, 1)]
    return name, tuple(sides)


def _in(message: memoryview, wanted: int) -> Iterator[memoryview]:
    return (value for number, value, _ in raw_fields(message) if number == wanted and isinstance(value, memoryview))


def _whole(message: memoryview) -> int:
    """Field 1 of a message; 0 where there is none, or a negative one."""
    found = next((value for number, value, _ in raw_fields(message) if number == 1 and isinstance(value, int)), 0)
    return found if found < 1 << 63 else 0
