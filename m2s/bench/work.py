"""Arithmetic and memory traffic of a graph, counted on the shapes that really occur.

ONNX Runtime runs the graph once with its profiler on, folded constants but otherwise as exported, and reports operator,
input and output shapes of each node. What the shapes leave open, the equation of an Einsum, is read from the file.
"""

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from m2s.bench.result import Work
from m2s_runtime.bundle import Bundle
from m2s_runtime.engines.base import first_line, graph_bytes
from m2s_runtime.engines.onnx_file import fields
from m2s_runtime.errors import EngineError
from m2s_runtime.manifest import GRAPHS, GraphSpec

Arrays = dict[str, npt.NDArray[Any]]
Shape = Sequence[int]

_ARITHMETIC: Final = frozenset(("Conv", "FusedConv", "ConvTranspose", "MatMul", "FusedMatMul", "Gemm", "Einsum"))
_GRAPH, _NODE, _NAME, _ATTRIBUTE, _STRING = 7, 1, 3, 5, 4
"""Fields of ModelProto, GraphProto, NodeProto and AttributeProto (onnx.proto)."""

_SCALES: Final = {"shifts": 3.0, "csdg": 8.0}
"""Standard deviations in mm; other inputs have one."""


def count_work(bundle: Bundle) -> dict[str, Work]:
    """Work of each graph of a bundle for one row.

    Raises:
        EngineError: onnxruntime is not installed or cannot do it.
        BundleError: a graph is altered.
    """
    specs = bundle.manifest.graphs
    return {graph: count_graph(graph_bytes(bundle, graph)[1], random_inputs(specs[graph], 1)) for graph in GRAPHS}


def random_inputs(spec: GraphSpec, rows: int, seed: int = 0) -> Arrays:
    """Inputs by name, of the signature's shapes and dtypes, about as large as real ones."""
    rng = np.random.default_rng(seed)
    made: Arrays = {}
    for tensor in spec.inputs:
        shape = (rows, *(int(side) for side in tensor.shape[1:]))
        if tensor.dtype == "int64":
            made[tensor.name] = np.full(shape, 500 >> seed, np.int64)
        elif tensor.name == "pool":
            made[tensor.name] = np.broadcast_to(np.array([60, 67, 900], np.float32), shape).copy()
        else:
            scale = np.float32(_SCALES.get(tensor.name, 1.0))
            made[tensor.name] = scale * rng.standard_normal(shape, dtype=np.float32)
    return made


def count_graph(model: bytes, inputs: Mapping[str, npt.NDArray[Any]]) -> Work:
    """Work of a serialised ONNX model for these inputs.

    Raises:
        EngineError: onnxruntime is not installed or cannot run it.
    """
    nodes, equations = _profiled(model, inputs), einsum_equations(model)
    flops, weights, activations, moved = 0.0, 0, 0, 0
    for name, node in nodes:
        read, kept = int(node["activation_size"]), int(node["parameter_size"])
        written = int(node["output_size"])
        moved += read + kept + written
        if node["op_name"] in _ARITHMETIC:
            flops += node_flops(node["op_name"], _shapes(node, "input"), _shapes(node, "output"), equations.get(name))
            weights += kept
            activations += read + written
    return Work(flops, weights // 4, float(weights), float(activations), float(moved))


def node_flops(operator: str, inputs: Sequence[Shape], outputs: Sequence[Shape], equation: str | None = None) -> float:
    """Two for each multiplication of one operator; 0 for one without a matrix product.

    Raises:
        ValueError: an Einsum without its equation.
    """
    made = math.prod(outputs[0]) if outputs else 0
    if operator in ("Conv", "FusedConv"):
        return 2.0 * made * math.prod(inputs[1][1:])  # weights (out, in / groups, …)
    if operator == "ConvTranspose":
        return 2.0 * math.prod(inputs[0]) * math.prod(inputs[1][1:])  # weights (in, out / groups, …)
    if operator in ("MatMul", "FusedMatMul"):
        return 2.0 * made * inputs[0][-1]
    if operator == "Gemm":
        return 2.0 * made * (math.prod(inputs[0]) // outputs[0][0])
    if operator == "Einsum":
        return _einsum_flops(inputs, equation)
    return 0.0


def _einsum_flops(inputs: Sequence[Shape], equation: str | None) -> float:
    """Two for each combination of all indices, as one product over them all costs."""
    if equation is None or "." in equation:
        raise ValueError(f"the cost of Einsum {equation} is not known")
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, inputs, strict=True):
        sizes |= zip(term, shape, strict=True)
    return 2.0 * math.prod(sizes.values())


def einsum_equations(model: bytes) -> dict[str, str]:
    """Node name to equation of every node that has a string attribute of that kind."""
    found: dict[str, str] = {}
    for graph in _parts(memoryview(model), _GRAPH):
        for node in _parts(graph, _NODE):
            for attribute in _parts(node, _ATTRIBUTE):
                if _text(attribute, 1) == "equation":
                    found[_text(node, _NAME)] = _text(attribute, _STRING)
    return found


def _parts(message: memoryview, wanted: int) -> list[memoryview]:
    return [value for number, value in fields(message) if number == wanted and isinstance(value, memoryview)]


def _text(message: memoryview, wanted: int) -> str:
    return next((bytes(part).decode() for part in _parts(message, wanted)), "")


def _shapes(node: Mapping[str, Any], which: str) -> list[Shape]:
    return [shape for typed in node[f"{which}_type_shape"] for shape in typed.values()]


def _profiled(model: bytes, inputs: Mapping[str, npt.NDArray[Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Name and particulars of every node that ran."""
    try:
        ort: Any = import_module("onnxruntime")
    except ImportError as error:
        raise EngineError(
            f'work is counted with onnxruntime, which is not installed ({error}); run `pip install "mask2surface[cpu]"`'
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.add_session_config_entry("session.disable_prepacking", "1")  # packed weights have no shape any more
        try:
            session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            session.run(None, dict(inputs))
        except Exception as error:  # onnxruntime's own exceptions share no public base
            raise EngineError(f"work cannot be counted: onnxruntime failed ({first_line(error)})") from error
        events = json.loads(Path(session.end_profiling()).read_bytes())
    ending = "_kernel_time"
    timed = [e for e in events if e.get("cat") == "Node" and e["name"].endswith(ending)]
    return [(event["name"].removesuffix(ending), event["args"]) for event in timed]
