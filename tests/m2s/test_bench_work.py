"""What a graph costs, against PyTorch's own counter and against hand computation."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from m2s.bench.cards import CARDS, PAPER, predict  # noqa: E402
from m2s.bench.work import count_graph, count_work, einsum_equations, node_flops, random_inputs  # noqa: E402
from m2s.nets.denoiser import Denoiser  # noqa: E402
from m2s.nets.presets import PRESETS  # noqa: E402
from m2s.nets.vqvae import VqVae  # noqa: E402
from m2s_runtime.bundle import load_bundle  # noqa: E402
from m2s_runtime.ddim import DEFAULT_STEPS  # noqa: E402
from m2s_runtime.engines.base import graph_bytes  # noqa: E402


def torch_flops(run):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()


def test_shipped_graphs_cost_what_torch_counts():
    """Denoiser (convolutions, attention, linear layers) and decoder of the installed bundle."""
    bundle, size = load_bundle(), PRESETS["compact"]
    work = count_work(bundle)
    z = torch.zeros(1, *bundle.manifest.latent_shape)
    denoiser, vqvae = Denoiser(size.denoiser, size.vqvae.dim).eval(), VqVae(size.vqvae).eval()
    assert work["denoise"].flops == torch_flops(lambda: denoiser(z, z, torch.tensor([5])))
    assert work["decode"].flops == torch_flops(lambda: vqvae.decode(z))
    cells = z[0, 0].numel()
    nearest = 2 * cells * size.vqvae.codes * size.vqvae.dim
    assert work["encode"].flops == torch_flops(lambda: vqvae.encode(torch.zeros(1, 1, 128, 128, 64))) + nearest
    weights = sum(p.numel() for name, p in denoiser.named_parameters() if p.ndim > 1)
    assert work["denoise"].parameters == pytest.approx(weights, rel=2e-3)  # biases count too, norms do not


def test_paper_table_is_what_torch_counts():
    size = PRESETS["paper"]
    with torch.device("meta"):
        denoiser, vqvae = Denoiser(size.denoiser, size.vqvae.dim).eval(), VqVae(size.vqvae).eval()
        z, t = torch.zeros(1, 8, 32, 32, 16), torch.zeros(1, dtype=torch.int64)
    assert PAPER["denoise"].flops == torch_flops(lambda: denoiser.unet(torch.cat([z, z], 1), t))
    assert PAPER["decode"].flops == torch_flops(lambda: vqvae.decode(z))


def test_bytes_of_one_convolution():
    """(1, 3, 8, 8, 4) by (5, 3, 3, 3, 3) to (1, 5, 8, 8, 4), then a ReLU."""
    weight = numpy_helper.from_array(np.ones((5, 3, 3, 3, 3), np.float32), "w")
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 6), helper.make_node("Relu", ["y"], ["z"])]
    sides = {"x": [1, 3, 8, 8, 4], "z": [1, 5, 8, 8, 4]}
    given, made = (helper.make_tensor_value_info(name, TensorProto.FLOAT, sides[name]) for name in "xz")
    model = helper.make_model(
        helper.make_graph(nodes, "one", [given], [made], [weight]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    work = count_graph(model.SerializeToString(), {"x": np.zeros(sides["x"], np.float32)})
    cells, x, y, w = 8 * 8 * 4, 4 * 3 * 256, 4 * 5 * 256, 4 * 5 * 3 * 27
    assert work.flops == 2 * 5 * cells * 3 * 27
    assert (work.parameters, work.weight_bytes, work.activation_bytes) == (w // 4, w, x + y)
    assert work.moved_bytes == x + w + y + y + y


@pytest.mark.parametrize(
    ("operator", "inputs", "output", "equation", "flops"),
    [
        ("MatMul", [[4, 3, 5], [5, 7]], [4, 3, 7], None, 2 * 4 * 3 * 5 * 7),
        ("Gemm", [[3, 5], [7, 5]], [3, 7], None, 2 * 3 * 5 * 7),
        ("Gemm", [[5, 3], [5, 7]], [3, 7], None, 2 * 3 * 5 * 7),
        ("Conv", [[1, 8, 6, 6, 6], [4, 2, 3, 3, 3]], [1, 4, 6, 6, 6], None, 2 * 4 * 216 * 2 * 27),
        ("ConvTranspose", [[1, 8, 6, 6], [8, 4, 2, 2]], [1, 4, 12, 12], None, 2 * 8 * 36 * 4 * 4),
        ("Einsum", [[2, 3, 6, 5], [2, 3, 6, 5]], [2, 3, 6, 6], "blxd,blyd->blxy", 2 * 2 * 3 * 6 * 6 * 5),
        ("Relu", [[4, 4]], [4, 4], None, 0),
    ],
)
def test_operators_by_hand(operator, inputs, output, equation, flops):
    assert node_flops(operator, inputs, [output], equation) == flops


def test_einsum_equations_are_read_from_the_file():
    bundle = load_bundle()
    model = graph_bytes(bundle, "denoise")[1]
    wanted = {
        node.name: attribute.s.decode()
        for node in onnx.load_from_string(model).graph.node
        for attribute in node.attribute
        if attribute.name == "equation"
    }
    assert wanted
    assert einsum_equations(model) == wanted
    with pytest.raises(ValueError, match="Einsum"):
        node_flops("Einsum", [[2, 2], [2, 2]], [[2, 2]])


def test_inputs_fit_every_signature():
    for spec in load_bundle().manifest.graphs.values():
        made = random_inputs(spec, 3)
        assert {name: (a.dtype.name, a.shape) for name, a in made.items()} == {
            t.name: (t.dtype, (3, *t.shape[1:])) for t in spec.inputs
        }


def test_prediction_is_the_roofline_by_hand():
    found = predict(CARDS["rtx4090"], "preset paper", PAPER, DEFAULT_STEPS, "float16")
    assert found.estimate is True
    roof = found.graphs["denoise"]
    assert roof.arithmetic == pytest.approx(441.8e9 / 165.2e12, rel=1e-3)
    assert roof.traffic == pytest.approx((441.6e6 + 1284.6e6) / 2 / 1008e9, rel=1e-3)
    others = sum(found.graphs[g].floor for g in ("mc", "sr", "encode", "decode"))
    assert found.heart == pytest.approx(others + 10 * roof.floor)
    wide = predict(CARDS["rtx4090"], "preset paper", PAPER, DEFAULT_STEPS, "float32")
    assert wide.graphs["decode"].traffic == pytest.approx(2 * found.graphs["decode"].traffic)
