"""Convolutions that are rewritten for the CPU, against SciPy in float64 and against the graph as it was."""

import numpy as np
import pytest
from scipy import signal

from m2s_runtime.engines.onnx_wire import constant, node, part, raw_fields, whole
from m2s_runtime.engines.winograd import transforms, with_fewer_products

ort = pytest.importorskip("onnxruntime")

SIZE = (8, 12, 5)
FLOAT, HALF = 1, 10


def value(number, name, shape, kind=FLOAT):
    """A ValueInfoProto as field `number`; text is a dynamic side."""
    sides = b"".join(part(1, part(2, s) if isinstance(s, str) else whole(1, s)) for s in shape)
    return part(number, part(1, name) + part(2, part(1, whole(1, kind) + part(2, sides))))


def convolution(weight, bias=None, size=SIZE, *, told=True, half=False, relu=True, w="w", **attributes):
    """A model of one convolution of `x` (batch, C, ...) and, so that its size stands in value_info, a Relu before."""
    attributes = {"pads": [1] * 6, **attributes}
    nodes = [node("Relu", ["x"], "r")] if relu else []
    if half:
        kept = constant("w.half", weight.astype(np.float32)).replace(whole(2, FLOAT), whole(2, HALF), 1)
        raw = part(9, weight.astype(np.float32).tobytes())
        kept = kept.replace(raw, part(9, weight.astype(np.float16).tobytes()))
        nodes.append(node("Cast", ["w.half"], w, to=FLOAT))
    else:
        kept = constant(w, weight.astype(np.float32))
    inputs = ["r" if relu else "x", w, *(() if bias is None else ("b",))]
    nodes.append(node("Conv", inputs, "y", **attributes))
    constants = [kept, *(() if bias is None else (constant("b", bias.astype(np.float32)),))]
    graph = b"".join(part(1, one) for one in nodes) + part(2, "g") + b"".join(part(5, one) for one in constants)
    channels = weight.shape[1] * attributes.get("group", 1)
    graph += value(11, "x", ("batch", channels, *size)) + value(12, "y", ("batch", len(weight), "a", "b", "c"))
    graph += value(13, "r", ("batch", channels, *size)) if told else b""
    return whole(1, 8) + part(7, graph) + part(8, part(1, "") + whole(2, 18))


def run(model, x):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def operators(model):
    """Types of all nodes."""
    found = []
    for number, graph, _ in raw_fields(memoryview(model)):
        if number == 7:
            nodes = [content for field, content, _ in raw_fields(graph) if field == 1]
            found += [bytes(v).decode() for content in nodes for field, v, _ in raw_fields(content) if field == 4]
    return found


def exact(x, weight, bias):
    padded = np.pad(np.maximum(x, 0).astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1), (1, 1)))
    out = [
        [sum(signal.correlate(one[i], w[i], "valid") for i in range(len(w))) for w in weight.astype(np.float64)]
        for one in padded
    ]
    return np.array(out) + (0 if bias is None else bias.reshape(-1, 1, 1, 1))


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("channels", [(3, 5), (16, 32)])
def test_a_replaced_convolution_is_the_same_convolution(biased, half, channels):
    rng = np.random.default_rng(0)
    inputs, outputs = channels
    weight = (rng.standard_normal((outputs, inputs, 3, 3, 3)) / np.sqrt(27 * inputs)).astype(np.float16)
    bias = rng.standard_normal(outputs).astype(np.float32) if biased else None
    x = rng.standard_normal((3, inputs, *SIZE)).astype(np.float32)
    model = convolution(weight, bias, half=half)
    faster = with_fewer_products(model)
    assert operators(faster).count("Conv") == 1
    assert operators(faster).count("MatMul") == (5 if biased else 4)
    wanted, found = exact(x, weight, bias), run(faster, x)
    assert np.abs(found - wanted).max() < 5e-6
    np.testing.assert_array_equal(run(faster, x[1:2])[0], found[1])  # a row does not depend on its batch
    np.testing.assert_allclose(run(model, x), wanted, atol=2e-6)


def test_the_transforms_are_winograds():
    inputs, weights, outputs = transforms()
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal(6), rng.standard_normal(3)
    np.testing.assert_allclose(outputs @ ((weights @ w) * (inputs @ x)), np.correlate(x, w), atol=1e-12)


@pytest.mark.parametrize(
    ("told", "attribute"),
    [
        (value(13, "r", ("batch", 4, *SIZE), HALF), b""),
        (value(13, "r", ("batch", 4, 8, 12, 2**64 - 5)), b""),
        (value(13, "r", ("batch", 4, 2**20, 12, 5)), b""),
        (value(13, "r", ("batch", 4, *SIZE)), part(5, part(1, "auto_pad") + part(4, "VALID") + whole(20, 3))),
        (value(13, "r", ("batch", 4, *SIZE)), part(7, "com.example")),
    ],
    ids=["float16", "negative side", "huge side", "padding by name", "domain"],
)
def test_what_only_looks_alike_stays_as_it_was(told, attribute):
    conv = node("Conv", ["r", "w"], "y", pads=[1] * 6) + attribute
    weight = constant("w", np.ones((4, 4, 3, 3, 3), np.float32))
    model = part(7, part(1, conv) + part(5, weight) + told)
    assert with_fewer_products(model) == model
    plain = part(7, part(1, conv.removesuffix(attribute)) + part(5, weight) + value(13, "r", ("batch", 4, *SIZE)))
    assert with_fewer_products(plain) != plain


def test_new_names_are_nobody_elses():
    """Exporters name weights after the layer whose output they make."""
    model = convolution(np.ones((4, 4, 3, 3, 3)), w="y.weight")
    x = np.random.default_rng(2).standard_normal((1, 4, *SIZE)).astype(np.float32)
    np.testing.assert_allclose(run(with_fewer_products(model), x), run(model, x), atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"told": False},
        {"strides": [2, 2, 2]},
        {"dilations": [1, 1, 2]},
        {"pads": [0] * 6},
        {"size": (4, 8, 6)},
        {"size": (8, 10, 6)},
        {"relu": False},
        {"kernel": (1, 1, 1), "pads": [0] * 6},
        {"kernel": (3, 3, 1), "pads": [1, 1, 0, 1, 1, 0]},
        {"groups": 2},
    ],
)
def test_what_does_not_fit_stays_as_it_was(change):
    change = dict(change)
    groups = change.pop("groups", 1)
    weight = np.ones((4, 4 // groups, *change.pop("kernel", (3, 3, 3))))
    model = convolution(weight, **change, **({"group": groups} if groups > 1 else {}))
    assert with_fewer_products(model) == model
    assert run(model, np.ones((1, 4, *change.get("size", SIZE)), np.float32)).size


@pytest.mark.parametrize(
    "spoil", [lambda m: m[:-40], lambda m: m.replace(b"Conv", b"\xff\xfe\xfd\xfc"), lambda _: b"\x0f"]
)
def test_a_file_that_is_no_model_is_told(spoil):
    with pytest.raises(ValueError, match=r"truncated|decode|wire type"):
        with_fewer_products(spoil(convolution(np.ones((4, 4, 3, 3, 3)))))
