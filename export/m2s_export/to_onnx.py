"""From a module to a checked ONNX file: opset 18, one dynamic axis `batch`, everything in the file."""

import copy
import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

import onnx
import torch

from m2s_export.graphs import Graph
from m2s_runtime.manifest import BATCH

OPSET: Final = 18
"""From 21 on there is GroupNormalization, but the CPU provider has no kernel for it and TensorRT refused it."""


def to_onnx(graph: Graph) -> onnx.ModelProto:
    """Exports a copy of the module in eval mode.

    Raises:
        RuntimeError: the exporter gave up, or did not keep to the opset.
        onnx.checker.ValidationError: what it wrote is not ONNX.
    """
    module = copy.deepcopy(graph.module).eval().requires_grad_(requires_grad=False)
    batch = torch.export.Dim(BATCH, min=1)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            kwargs=dict(graph.inputs),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(graph.inputs),
            output_names=[graph.output],
            dynamic_shapes={name: {0: batch} for name in graph.inputs},
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise RuntimeError(f"torch.onnx.export returned nothing for graph {graph.name}")
    model = program.model_proto
    tidy(model)
    check(model)
    return model


def tidy(model: onnx.ModelProto) -> None:
    """Drops what only a debugger reads: source paths and stack traces of the exporting machine, inferred shapes.

    The shapes that convolutions are given stay: by them the runtime chooses how to compute each
    (`m2s_runtime.engines.winograd`).
    """
    graph = model.graph
    convolved = {node.input[0] for node in graph.node if node.op_type == "Conv"}
    shapes = [copy.deepcopy(value) for value in graph.value_info if value.name in convolved]
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *shapes):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.ClearField("value_info")
    graph.value_info.extend(sorted(shapes, key=lambda value: value.name))


def check(model: onnx.ModelProto) -> None:
    """Full check with strict shape inference.

    Raises:
        RuntimeError: another opset, custom operators or functions, or external data.
        onnx.checker.ValidationError: not ONNX.
    """
    opsets = {entry.domain: entry.version for entry in model.opset_import if entry.domain or entry.version}
    if {d for d in opsets if d} & {node.domain for node in model.graph.node} or model.functions:
        raise RuntimeError(f"graph {model.graph.name} uses operators outside ONNX itself: {sorted(opsets)}")
    if opsets.get("") != OPSET:
        raise RuntimeError(f"graph {model.graph.name} came out as opset {opsets.get('')}, not {OPSET}")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise RuntimeError(f"graph {model.graph.name} keeps weights outside its file")
    onnx.checker.check_model(model, full_check=True)


@contextmanager
def _quiet() -> Generator[None]:
    """Without the exporter's remarks on its own deprecations and on packages that are not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
