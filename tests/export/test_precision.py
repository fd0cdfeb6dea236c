"""Half-width storage loses nothing that rounding has not taken before."""

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

from m2s_export.graphs import graphs
from m2s_export.precision import round_weights, store_half
from m2s_export.to_onnx import OPSET


def linear_model(weights):
    """y = x @ weights."""
    rows, columns = weights.shape
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", rows])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", columns])
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [numpy_helper.from_array(weights, "w")]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def answer(model, x):
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )[0]


def draw(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_representable_weights_take_half_the_space_and_give_the_same_numbers():
    weights = draw(64, 64).astype(np.float16).astype(np.float32)
    model, x = linear_model(weights), draw(3, 64)
    small = copy.deepcopy(model)
    assert store_half(small) == 1
    onnx.checker.check_model(small, full_check=True)
    assert small.ByteSize() < 0.6 * model.ByteSize()
    assert np.array_equal(answer(small, x), answer(model, x))


@pytest.mark.parametrize("weights", [draw(64, 64), np.full((64, 64), 1e6, np.float32), np.ones((4, 4), np.float32)])
def test_what_would_lose_something_or_save_nothing_stays(weights):
    model = linear_model(weights)
    before = model.SerializeToString()
    assert store_half(model) == 0
    assert model.SerializeToString() == before


def test_weights_are_rounded_in_a_copy_and_the_codebook_is_not(nets):
    net = nets["vqvae"]
    before = copy.deepcopy(net.state_dict())
    found = round_weights(net).state_dict()
    assert all(torch.equal(net.state_dict()[name], before[name]) for name in before)
    for name, tensor in found.items():
        wide = name.endswith("weight") and tensor.ndim > 1
        assert torch.equal(tensor, before[name].half().float() if wide else before[name]), name
    assert not torch.equal(found["encoder.0.weight"], before["encoder.0.weight"])


def test_a_weight_beyond_half_is_refused_with_the_way_out():
    layer = torch.nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight[0, 0] = 1e5
    with pytest.raises(ValueError, match="--store float32"):
        round_weights(layer)


def test_most_of_a_bundle_is_half_width(bundle, training_run):
    parameters = sum(p.numel() for g in graphs(training_run.nets).values() for p in g.module.parameters())
    stored = {onnx.TensorProto.FLOAT: 0, onnx.TensorProto.FLOAT16: 0}
    for name in bundle.manifest.graphs:
        for tensor in onnx.load_from_string(bundle.read(f"{name}.onnx")).graph.initializer:
            stored[tensor.data_type] = stored.get(tensor.data_type, 0) + int(np.prod(tensor.dims))
    assert bundle.manifest.stored_weights == "float16"
    assert stored[onnx.TensorProto.FLOAT16] > 0.5 * parameters
    assert stored[onnx.TensorProto.FLOAT] < 0.2 * parameters
