"""The ONNX engine on the toy bundle, whose graphs have closed forms."""

import logging
import sys

import numpy as np
import pytest
from toy import TOY, copy_toy, replace_file

from m2s_runtime.bundle import load_bundle
from m2s_runtime.ddim import alpha_bars
from m2s_runtime.engines import open_engine
from m2s_runtime.errors import BundleError, EngineError, NotFinite, UsageProblem
from m2s_runtime.grid import CENTRE
from m2s_runtime.machine import usable_cores

onnxruntime = pytest.importorskip("onnxruntime")
LATENT = (64, 32, 32, 16)


@pytest.fixture(scope="module")
def engine():
    return open_engine(load_bundle(TOY), device="cpu", threads=1)


def draw(*shape, scale=1.0):
    return (scale * np.random.default_rng(0).standard_normal(shape)).astype(np.float32)


def stack(batch):
    pool = np.concatenate([CENTRE + draw(batch, 12, 2, scale=3), np.full((batch, 12, 1), 900, np.float32)], -1)
    return {"slices": draw(batch, 1, 128, 128, 12, scale=5), "pool": pool.astype(np.float32)}


def test_it_tells_what_it_bound(engine):
    assert (engine.name, engine.device, engine.threads) == ("onnx", "cpu", 1)
    assert onnxruntime.__version__ in engine.description
    assert "cpu" in engine.description


def test_no_number_of_threads_means_the_cores_of_this_process():
    assert open_engine(load_bundle(TOY), device="cpu").threads == usable_cores() >= 1


def test_threads_of_one_network_do_not_spin_while_another_computes(engine):
    options = [session.get_session_options() for session in engine.sessions.values()]
    assert [o.get_session_config_entry("session.intra_op.allow_spinning") for o in options] == ["0"] * 5


@pytest.mark.parametrize("batch", [1, 3])
def test_motion(engine, batch):
    inputs = stack(batch)
    found = engine.run("mc", inputs)
    assert list(found) == ["shifts"]
    np.testing.assert_allclose(found["shifts"], inputs["pool"][..., :2] - CENTRE, atol=1e-5)


def test_super_resolution_at_whole_shifts(engine):
    slices = stack(1)["slices"]
    shifts = np.zeros((1, 12, 2), np.float32)
    shifts[0, 4] = 3, -2
    prob = engine.run("sr", {"slices": slices, "shifts": shifts})["prob"]
    assert prob.shape == (1, 1, 128, 128, 60)
    # corrected(p) = in(p + t): the plane at the centre of block 4, far from the border.
    wanted = 1 / (1 + np.exp(slices[0, 0, 13:103, 8:98, 4].astype(np.float64)))
    np.testing.assert_allclose(prob[0, 0, 10:100, 10:100, 22], wanted, atol=1e-5)


def test_encode_then_decode_clamps(engine):
    csdg = draw(2, 1, 128, 128, 64, scale=8)
    zc = engine.run("encode", {"csdg": csdg})["zc"]
    assert zc.shape == (2, *LATENT)
    np.testing.assert_allclose(engine.run("decode", {"z": zc})["sdg"], csdg.clip(-10, 10), atol=1e-5)


def test_denoise_takes_a_level_for_each_latent(engine):
    z, zc, t = draw(2, *LATENT), np.zeros((2, *LATENT), np.float32), np.array([999, 111])
    eps = engine.run("denoise", {"z": z, "zc": zc, "t": t})["eps"]
    spread = np.sqrt(1 - alpha_bars()[t]).reshape(-1, 1, 1, 1, 1)
    np.testing.assert_allclose(eps, z / spread, rtol=1e-4)


def test_the_same_inputs_give_the_same_bytes(engine):
    again = open_engine(load_bundle(TOY), device="cpu", threads=1)
    inputs = {"slices": stack(1)["slices"], "shifts": draw(1, 12, 2)}
    assert np.array_equal(engine.run("sr", inputs)["prob"], again.run("sr", inputs)["prob"])


def test_arrays_need_not_be_contiguous(engine):
    csdg = np.asfortranarray(draw(1, 1, 128, 128, 64))
    found = engine.run("encode", {"csdg": csdg})["zc"]
    assert np.array_equal(found, engine.run("encode", {"csdg": np.ascontiguousarray(csdg)})["zc"])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda i: i.pop("t"),
        lambda i: i.update(t=i["t"].astype(np.int32)),
        lambda i: i.update(z=i["z"].astype(np.float64)),
        lambda i: i.update(z=i["z"][:1]),
        lambda i: i.update(zc=i["zc"][:, :, :16]),
        lambda i: i.update(z=i["z"][0]),
        lambda i: i.update(t=np.int64(5)),
        lambda i: i.update({n: a[:0] for n, a in i.items()}),
    ],
)
def test_inputs_that_do_not_fit_are_refused(engine, spoil):
    inputs = {"z": draw(2, *LATENT), "zc": draw(2, *LATENT), "t": np.array([999, 0])}
    spoil(inputs)
    with pytest.raises(ValueError, match="denoise"):
        engine.run("denoise", inputs)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_never_leave(engine, value):
    z = draw(1, *LATENT)
    z[0, 3, 4, 5, 6] = value
    with pytest.raises(NotFinite, match="decode"):
        engine.run("decode", {"z": z})


@pytest.mark.parametrize("options", [{"engine": "tpu"}, {"device": "gpu"}, {"device": "cuda:x"}, {"threads": -1}])
def test_options_that_mean_nothing_are_usage_problems(options):
    with pytest.raises(UsageProblem):
        open_engine(load_bundle(TOY), **options)


def test_without_onnxruntime_the_pip_line_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError) as caught:
        open_engine(load_bundle(TOY))
    assert 'pip install "mask2surface[cpu]"' in str(caught.value)
    assert caught.value.exit_code == 5


def test_a_gpu_asked_for_by_name_is_never_replaced_by_the_cpu(monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(EngineError) as caught:
        open_engine(load_bundle(TOY), device="cuda:0")
    assert 'pip install "mask2surface[gpu]"' in str(caught.value)


@pytest.fixture
def claims_cuda(monkeypatch):
    """onnxruntime built with CUDA on a machine without a GPU: it lists the provider and binds the CPU."""
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda model, options, providers, **more: real(model, options, providers=providers[-1:], **more),
    )


@pytest.mark.usefixtures("claims_cuda")
def test_what_was_really_bound_is_checked(caplog):
    with pytest.raises(EngineError, match="could not bind"):
        open_engine(load_bundle(TOY), device="cuda:1")
    with caplog.at_level(logging.WARNING):
        assert open_engine(load_bundle(TOY), device="auto").device == "cpu"
    assert "CPU" in caplog.text


@pytest.fixture
def raises_on_cuda(monkeypatch):
    """onnxruntime whose CUDA provider fails while a session is made, from the third session on."""
    real, made = onnxruntime.InferenceSession, []

    def create(model, options, providers, enable_fallback=1):
        made.append(providers)
        if len(providers) > 1 and len(made) > 2:
            if enable_fallback:
                sys.stdout.write("EP Error")
            raise RuntimeError("CUDA failure 100: no CUDA-capable device is detected\nmore")
        session = real(model, options, providers=providers[-1:])
        if len(providers) > 1:
            session.get_providers = lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
        return session

    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(onnxruntime, "InferenceSession", create)


@pytest.mark.usefixtures("raises_on_cuda")
def test_a_gpu_that_fails_while_loading_is_an_engine_error_when_asked_for(capfd):
    with pytest.raises(EngineError, match="CUDA failure 100") as caught:
        open_engine(load_bundle(TOY), device="cuda:0")
    assert caught.value.exit_code == 5
    assert "more" not in str(caught.value).split()
    assert capfd.readouterr().out == ""


@pytest.mark.usefixtures("raises_on_cuda")
def test_a_gpu_that_fails_while_loading_leaves_auto_wholly_on_the_cpu(caplog, capfd):
    with caplog.at_level(logging.WARNING):
        engine = open_engine(load_bundle(TOY), device="auto")
    assert engine.device == "cpu"
    assert {s.get_providers()[0] for s in engine.sessions.values()} == {"CPUExecutionProvider"}
    assert "running on the CPU" in caplog.text
    assert capfd.readouterr().out == ""


@pytest.mark.usefixtures("raises_on_cuda")
def test_a_file_that_is_no_graph_is_no_fault_of_the_gpu(tmp_path):
    folder = copy_toy(tmp_path)
    replace_file(folder, "sr.onnx", b"")
    with pytest.raises(BundleError, match=r"sr\.onnx"):
        open_engine(load_bundle(folder), device="cuda:0")


def test_a_graph_that_is_not_what_the_manifest_says_is_refused(tmp_path):
    folder = copy_toy(tmp_path)
    replace_file(folder, "decode.onnx", (folder / "encode.onnx").read_bytes())
    with pytest.raises(BundleError, match=r"decode\.onnx.*manifest"):
        open_engine(load_bundle(folder), device="cpu")


@pytest.mark.parametrize("data", [b"not a graph at all", b"", b"\x08\x08"])
def test_a_file_that_is_no_graph_is_refused(tmp_path, data):
    folder = copy_toy(tmp_path)
    replace_file(folder, "sr.onnx", data)
    with pytest.raises(BundleError, match=r"sr\.onnx"):
        open_engine(load_bundle(folder), device="cpu")


def test_weights_outside_the_file_are_refused(tmp_path):
    folder = copy_toy(tmp_path)
    # ModelProto.graph.initializer.data_location = EXTERNAL, appended: repeated fields of one message are merged.
    replace_file(folder, "mc.onnx", (folder / "mc.onnx").read_bytes() + bytes([0x3A, 4, 0x2A, 2, 0x70, 1]))
    with pytest.raises(BundleError, match=r"mc\.onnx.*outside"):
        open_engine(load_bundle(folder), device="cpu")


def greedy(size: int) -> bytes:
    """A graph with the signature of `mc` that asks for `size` numbers on its way."""
    onnx = pytest.importorskip("onnx", reason="makes a graph of its own")
    helper, kinds = onnx.helper, onnx.TensorProto
    constants = {"size": [size], "zero": [0], "two": [2], "last": [2], "all": [1, 2, 3, 4], "thin": [-1, 1, 1]}
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["many"]),
        helper.make_node("ReduceSum", ["many"], ["sum"], keepdims=0),
        helper.make_node("Slice", ["pool", "zero", "two", "last"], ["centre"]),
        helper.make_node("ReduceSum", ["slices", "all"], ["row"], keepdims=0),
        helper.make_node("Reshape", ["row", "thin"], ["column"]),
        helper.make_node("Sum", ["centre", "column", "sum"], ["shifts"]),
    ]
    shapes = {"slices": ["batch", 1, 128, 128, 12], "pool": ["batch", 12, 3], "shifts": ["batch", 12, 2]}
    values = {name: helper.make_tensor_value_info(name, kinds.FLOAT, shape) for name, shape in shapes.items()}
    graph = helper.make_graph(
        nodes, "greedy", [values["slices"], values["pool"]], [values["shifts"]],
        [helper.make_tensor(name, kinds.INT64, [len(v)], v) for name, v in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return model.SerializeToString()


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_a_graph_that_asks_for_more_memory_than_there_is_ends_in_a_typed_error(tmp_path, name):
    pytest.importorskip("openvino" if name == "openvino" else "onnxruntime", reason="an extra that is not installed")
    folder = copy_toy(tmp_path)
    replace_file(folder, "mc.onnx", greedy(10**15))
    with pytest.raises((BundleError, EngineError), match="mc"):
        open_engine(load_bundle(folder), name, "cpu", 1).run("mc", stack(1))
