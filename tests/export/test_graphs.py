"""What comes out of the exporter: five files that do what the networks do, and hold nothing else."""

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from m2s_export.graphs import graphs
from m2s_export.parity import ParityError, check_graph
from m2s_export.precision import rounded
from m2s_export.references import TorchEngine
from m2s_export.samples import realistic_inputs
from m2s_export.to_onnx import OPSET, check
from m2s_runtime.ddim import alpha_bars
from m2s_runtime.engines import open_engine
from m2s_runtime.engines.onnx_file import keeps_data_elsewhere
from m2s_runtime.engines.winograd import with_fewer_products
from m2s_runtime.manifest import GRAPHS


@pytest.fixture(scope="module")
def modules(training_run):
    return graphs(rounded(training_run.nets), torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def engine(bundle):
    return open_engine(bundle, "onnx", "cpu", threads=1)


@pytest.fixture(scope="module")
def reference(modules, bundle):
    return TorchEngine(modules, bundle)


@pytest.fixture(scope="module")
def real(reference, bundle):
    return realistic_inputs(reference, bundle.manifest)


@pytest.mark.parametrize("name", GRAPHS)
def test_parity_at_batch_one_two_and_three(name, modules, engine, reference, real):
    found = check_graph(name, reference, engine, [modules[name].inputs, real[name]], batches=(1, 2, 3))
    assert found.max_abs < 1e-3
    assert found.codes_agree == (None if name != "encode" else pytest.approx(1, abs=1e-3))


@pytest.mark.parametrize("name", ["sr", "encode", "denoise", "decode"])
def test_the_runtime_finds_convolutions_to_shorten(name, bundle):
    told = onnx.load_from_string(bundle.read(f"{name}.onnx"))
    assert len(told.graph.value_info) == len({n.input[0] for n in told.graph.node if n.op_type == "Conv"})
    faster = onnx.load_from_string(with_fewer_products(told.SerializeToString()))
    assert sum("winograd" in node.name for node in faster.graph.node if node.op_type == "Conv") > 0
    onnx.checker.check_model(faster, full_check=True)


def test_the_manifest_records_parity_and_provenance(bundle):
    manifest = bundle.manifest
    assert set(manifest.parity.graphs) == set(GRAPHS)
    assert manifest.parity.engine.startswith("onnxruntime")
    assert manifest.training.data == "random numbers"
    assert manifest.training.stages["vqvae"].seconds == 7.5
    card = (bundle.path / "MODEL_CARD.md").read_text()
    assert "random numbers" in card
    assert "float32 or float16, weights stored as float16" in card
    assert "None." in card.split("## The bundle")[0]


def test_encode_gives_scaled_codes_of_the_codebook(engine, nets, real, training_run):
    zc = engine.run("encode", {"csdg": real["encode"]["csdg"]})["zc"]
    table = nets["vqvae"].quantiser.codebook.detach().numpy() * training_run.nets.scale_factor
    cells = zc.transpose(0, 2, 3, 4, 1).reshape(-1, zc.shape[1])
    nearest = np.abs(cells[:, None] - table[None]).max(-1).min(-1)
    assert nearest.max() < 1e-6


def test_decode_takes_the_scale_back(reference, engine, nets, training_run):
    latent = torch.randn(1, *training_run.nets.latent_shape)
    net = rounded(training_run.nets).vqvae
    with torch.no_grad():
        wanted = net.decode(latent).numpy()
    found = engine.run("decode", {"z": (latent * training_run.nets.scale_factor).numpy()})["sdg"]
    np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=1e-3)


def test_denoise_returns_noise_whatever_the_net_estimates(engine, training_run):
    # Target `residual`: z_0 is normal about zc with spread r, z = s z_0 + n noise; the net sees the standardised offset
    # and answers in units of the standard deviation of z_0 given z.
    shape = (1, *training_run.nets.latent_shape)
    z, zc = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    level = 500
    eps = engine.run("denoise", {"z": z, "zc": zc, "t": np.array([level])})["eps"]
    bar, nets = alpha_bars()[level], rounded(training_run.nets)
    r = float(nets.denoiser.residual)
    variance = 1 / (1 / r**2 + bar / (1 - bar))
    mean = variance * (zc / r**2 + z * np.sqrt(bar) / (1 - bar))
    offset = (z - np.sqrt(bar) * zc) / np.sqrt(bar * r**2 + 1 - bar)
    with torch.no_grad():
        answer = nets.denoiser.unet(torch.from_numpy(np.concatenate([offset, zc], 1)).float(), torch.tensor([level]))
    clean = mean + np.sqrt(variance) * answer.numpy()
    np.testing.assert_allclose(eps, (z - np.sqrt(bar) * clean) / np.sqrt(1 - bar), atol=1e-3)


@pytest.mark.parametrize("name", GRAPHS)
def test_the_files_are_plain_portable_onnx(name, bundle):
    data = bundle.read(f"{name}.onnx")
    model = onnx.load_from_string(data)
    check(model)
    assert {entry.version for entry in model.opset_import if not entry.domain} == {OPSET}
    assert not keeps_data_elsewhere(data)
    for tensor in (*model.graph.input, *model.graph.output):
        first, *rest = tensor.type.tensor_type.shape.dim
        assert first.dim_param == "batch"
        assert all(d.dim_value > 0 for d in rest)


@pytest.mark.parametrize("name", GRAPHS)
def test_no_trace_of_the_exporting_machine_is_left(name, bundle):
    data = bundle.read(f"{name}.onnx")
    for trace in (b".py", b"site-packages", b"/home", b"/root", b"File "):
        assert trace not in data


def test_a_deviating_engine_is_caught(modules, reference, engine):
    class Off:
        description = "an engine that is off"

        def run(self, graph, inputs):
            return {k: v + np.float32(2e-3) for k, v in engine.run(graph, inputs).items()}

    with pytest.raises(ParityError, match="sr on an engine that is off deviates"):
        check_graph("sr", reference, Off(), [modules["sr"].inputs])
    with pytest.raises(ParityError, match="codes"):
        check_graph("encode", reference, Off(), [modules["encode"].inputs])


def test_numbers_that_are_none_are_caught(modules, reference, engine):
    inputs = {"z": torch.full_like(modules["decode"].inputs["z"], torch.nan)}
    with pytest.raises(ParityError, match="NaN"):
        check_graph("decode", reference, engine, [inputs])


def test_external_data_is_seen_in_files_that_onnx_itself_writes(tmp_path):
    weights = numpy_helper.from_array(np.ones((64, 64), np.float32), "weights")
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [64, 64])
    out = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [64, 64])
    graph = helper.make_graph([helper.make_node("Add", ["x", "weights"], ["y"])], "g", [value], [out], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    assert not keeps_data_elsewhere(model.SerializeToString())
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    assert keeps_data_elsewhere((tmp_path / "m.onnx").read_bytes())
    with pytest.raises(RuntimeError, match="outside its file"):
        check(onnx.load(tmp_path / "m.onnx", load_external_data=False))
