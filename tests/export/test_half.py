"""The float16 flavour: convolutions in half precision, everything that must not lose digits in float32."""

import numpy as np
import onnx
import pytest
import torch

from m2s_export.graphs import graphs
from m2s_export.half import half_graphs
from m2s_export.parity import RELATIVE
from m2s_export.precision import rounded
from m2s_export.references import TorchEngine
from m2s_export.samples import random_inputs
from m2s_runtime.engines import open_engine
from m2s_runtime.manifest import GRAPHS

HALVED = ("sr", "encode", "denoise", "decode")


def model(bundle, graph):
    return onnx.shape_inference.infer_shapes(onnx.load_from_string(bundle.read(f"{graph}.float16.onnx")))


def dtypes(shaped):
    """Element type of every tensor that shape inference knows, and of the weights."""
    graph = shaped.graph
    found = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    return found | {t.name: t.data_type for t in graph.initializer}


def test_the_manifest_lists_the_flavour_and_its_parity(bundle):
    flavour = bundle.manifest.flavours["float16"]
    assert flavour.files == {g: f"{g}.float16.onnx" for g in HALVED}
    assert set(flavour.parity.graphs) == set(GRAPHS)
    assert flavour.parity.graphs["encode"].codes_agree >= 0.999


@pytest.mark.parametrize("graph", HALVED)
def test_convolutions_are_half_and_signatures_are_not(graph, bundle):
    shaped = model(bundle, graph)
    known = dtypes(shaped)
    assert all(known[t.name] != onnx.TensorProto.FLOAT16 for t in (*shaped.graph.input, *shaped.graph.output))
    convolutions = [n for n in shaped.graph.node if n.op_type == "Conv"]
    assert convolutions
    assert {known[n.input[1]] for n in convolutions} == {onnx.TensorProto.FLOAT16}
    wide = [n for n in shaped.graph.node if n.op_type in ("InstanceNormalization", "Softmax", "ArgMin", "ArgMax")]
    assert {known.get(n.input[0]) for n in wide} <= {onnx.TensorProto.FLOAT, None}


def test_norms_and_distances_are_there_to_be_kept(bundle):
    kinds = {graph: {node.op_type for node in model(bundle, graph).graph.node} for graph in HALVED}
    assert {"InstanceNormalization", "Softmax"} <= kinds["denoise"]
    assert kinds["encode"] & {"ArgMin", "ArgMax"}


@pytest.mark.parametrize("graph", HALVED)
def test_the_flavour_is_close_to_the_float32_modules_but_not_the_same(graph, bundle, training_run):
    reference = TorchEngine(graphs(rounded(training_run.nets)), bundle)
    inputs = random_inputs(bundle.manifest.graphs[graph], seed=3)
    wanted = next(iter(reference.run(graph, inputs).values()))
    found = next(iter(open_engine(bundle, "onnx", "cpu", precision="float16").run(graph, inputs).values()))
    assert found.dtype == np.float32
    if graph == "encode":
        assert np.mean(np.abs(found - wanted).max(1) < 1e-4) > 0.99
    else:
        off = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
        assert 1e-7 < off < RELATIVE


def test_the_modules_themselves_stay_float32(training_run):
    made = graphs(training_run.nets)
    halved = half_graphs(made)
    assert set(halved) == set(HALVED)
    assert all(p.dtype == torch.float32 for g in made.values() for p in g.module.parameters())
    norms = [m for m in halved["denoise"].module.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert norms
    assert all(p.dtype == torch.float32 for norm in norms for p in norm.parameters())
    assert halved["encode"].module.net.quantiser.codebook.dtype == torch.float32
