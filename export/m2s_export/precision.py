"""Weights in half the bytes: rounded to float16 before the export, stored so, widened to float32 before any arithmetic.

The rounding happens in PyTorch, so parity compares the same numbers on both sides; what it costs is judged by the
accuracy of the bundle. Storing loses nothing more.
"""

import copy
from dataclasses import replace
from typing import Final, TypeVar

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

from m2s_export.graphs import Nets
from m2s_runtime.errors import UsageProblem

M = TypeVar("M", bound=nn.Module)

_KEPT: Final = ("codebook",)
"""Parameters never rounded: nearby codes must stay apart."""

_WORTH_IT: Final = 1024
"""Elements below which a cast costs more than it saves."""


def rounded(nets: Nets) -> Nets:
    """All networks of a run through `round_weights`."""
    return replace(
        nets,
        mcsr=round_weights(nets.mcsr),
        vqvae=round_weights(nets.vqvae),
        denoiser=round_weights(nets.denoiser),
    )


def round_weights(module: M) -> M:
    """A copy whose convolution and linear weights are float32 numbers that float16 can hold.

    Biases, norms and the codebook stay as they are.

    Raises:
        UsageProblem: a weight is not finite or beyond the range of float16.
    """
    copied = copy.deepcopy(module)
    with torch.no_grad():
        for name, weight in copied.named_parameters():
            if weight.ndim < 2 or name.rpartition(".")[2] in _KEPT:
                continue
            half = weight.half()
            if not half.isfinite().all():
                raise UsageProblem(
                    f"weight {name} holds a number that float16 cannot: train on, or export a run with --store float32"
                )
            weight.copy_(half.float())
    return copied


def store_half(model: onnx.ModelProto) -> int:
    """Stores as float16 every large initialiser that loses nothing by it; a Cast widens it where it is used.

    Returns:
        How many were narrowed.
    """
    graph, casts = model.graph, list[onnx.NodeProto]()
    for tensor in graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < _WORTH_IT:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), values):
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
        casts.append(helper.make_node("Cast", [tensor.name], [name], f"{name}.widen", to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    graph.ClearField("node")
    graph.node.extend(nodes)
    return len(casts)
