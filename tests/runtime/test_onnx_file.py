"""Telling from its bytes whether an ONNX file points outside itself."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import TOY

from m2s_runtime.engines.onnx_file import keeps_data_elsewhere


def field(number: int, payload: bytes | int) -> bytes:
    """A protobuf field: a message or string, or a small number."""
    if isinstance(payload, int):
        return bytes([*varint(number << 3), *varint(payload)])
    return bytes([*varint(number << 3 | 2), *varint(len(payload))]) + payload


def varint(value: int) -> bytes:
    groups = [value & 127]
    while value := value >> 7:
        groups.append(value & 127)
    return bytes([g | 128 for g in groups[:-1]] + groups[-1:])


MODEL_GRAPH, GRAPH_INITIALIZER, GRAPH_SPARSE, GRAPH_NODE, NODE_ATTRIBUTE = 7, 5, 15, 1, 5
ATTRIBUTE_TENSOR, ATTRIBUTE_GRAPH, ATTRIBUTE_TENSORS, DATA_LOCATION, EXTERNAL_DATA = 5, 6, 10, 14, 13
OUTSIDE = field(DATA_LOCATION, 1)
NAMED = field(EXTERNAL_DATA, field(1, b"location") + field(2, b"../secret.bin"))
INSIDE = field(1, 3) + field(2, 1) + field(9, b"\0" * 12) + field(DATA_LOCATION, 0)


def in_attribute(number: int, payload: bytes) -> bytes:
    node = field(NODE_ATTRIBUTE, field(1, b"value") + field(number, payload))
    return field(MODEL_GRAPH, field(GRAPH_NODE, node))


@pytest.mark.parametrize(
    "model",
    [
        field(MODEL_GRAPH, field(GRAPH_INITIALIZER, INSIDE) + field(GRAPH_INITIALIZER, OUTSIDE)),
        field(MODEL_GRAPH, field(GRAPH_INITIALIZER, NAMED)),
        field(MODEL_GRAPH, field(GRAPH_SPARSE, field(2, OUTSIDE))),
        in_attribute(ATTRIBUTE_TENSOR, OUTSIDE),
        in_attribute(ATTRIBUTE_TENSORS, OUTSIDE),
        in_attribute(ATTRIBUTE_GRAPH, field(GRAPH_INITIALIZER, OUTSIDE)),
        field(25, field(7, field(NODE_ATTRIBUTE, field(ATTRIBUTE_TENSOR, OUTSIDE)))),
        field(1, 8) + field(2, b"name") + field(MODEL_GRAPH, field(GRAPH_INITIALIZER, OUTSIDE)),
    ],
)
def test_external_data_is_found_wherever_it_hides(model):
    assert keeps_data_elsewhere(model)


@pytest.mark.parametrize("model", [b"", field(MODEL_GRAPH, field(GRAPH_INITIALIZER, INSIDE)), in_attribute(5, INSIDE)])
def test_data_inside_is_fine(model):
    assert not keeps_data_elsewhere(model)


@pytest.mark.parametrize("path", sorted(TOY.glob("*.onnx")), ids=lambda p: p.name)
def test_the_toy_graphs_are_whole(path):
    assert not keeps_data_elsewhere(path.read_bytes())


def test_a_graph_within_graphs_without_end_is_refused():
    graph = field(GRAPH_INITIALIZER, INSIDE)
    for _ in range(100):
        graph = field(GRAPH_NODE, field(NODE_ATTRIBUTE, field(ATTRIBUTE_GRAPH, graph)))
    with pytest.raises(ValueError, match="deep"):
        keeps_data_elsewhere(field(MODEL_GRAPH, graph))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 500))
def test_garbage_gives_an_answer_or_a_value_error(garbage, cut):
    for model in (garbage, (TOY / "mc.onnx").read_bytes()[:cut], (TOY / "mc.onnx").read_bytes()[:cut] + garbage):
        try:
            keeps_data_elsewhere(model)
        except ValueError:
            continue
