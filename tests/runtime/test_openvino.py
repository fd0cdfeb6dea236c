"""The OpenVINO engine: the same answers as ONNX Runtime, the same refusals."""

import os
import subprocess
import sys

import numpy as np
import pytest
from toy import TOY, copy_toy, replace_file

from m2s_runtime.bundle import load_bundle
from m2s_runtime.engines import open_engine
from m2s_runtime.engines.openvino import computes_bfloat16
from m2s_runtime.errors import BundleError, EngineError, NotFinite, UsageProblem
from m2s_runtime.manifest import GRAPHS

LATENT = (64, 32, 32, 16)


def open_openvino(bundle=TOY, **options):
    return open_engine(load_bundle(bundle), "openvino", **{"device": "cpu", "threads": 1, **options})


@pytest.fixture(scope="module")
def openvino():
    return pytest.importorskip("openvino", reason="the extra openvino is not installed")


@pytest.fixture(scope="module")
def engine(openvino):
    return open_openvino()


@pytest.fixture(scope="module")
def onnx():
    pytest.importorskip("onnxruntime")
    return open_engine(load_bundle(TOY), "onnx", "cpu", 1)


def draw(spec, rows):
    rng = np.random.default_rng(4)
    return {
        t.name: rng.integers(0, 1000, rows)
        if t.dtype == "int64"
        else (3 * rng.standard_normal((rows, *t.shape[1:]))).astype(np.float32)
        for t in spec.inputs
    }


def hints(engine):
    return {
        graph: request.get_compiled_model().get_property("INFERENCE_PRECISION_HINT").get_type_name()
        for graph, request in engine._requests.items()
    }


def test_it_tells_what_it_bound(engine, openvino):
    assert (engine.name, engine.device, engine.threads) == ("openvino", "cpu", 1)
    assert engine.description.partition(" on ")[0] == "openvino " + openvino.__version__.partition("-")[0]


@pytest.mark.parametrize("graph", GRAPHS)
def test_it_agrees_with_onnxruntime(engine, onnx, graph):
    given = draw(onnx.specs[graph], 2)
    found, wanted = engine.run(graph, given), onnx.run(graph, given)
    assert list(found) == list(wanted)
    for name in wanted:
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-4, rtol=1e-3)


def test_rows_do_not_depend_on_their_batch(engine, onnx):
    given = draw(onnx.specs["sr"], 3)
    together = engine.run("sr", given)["prob"]
    for k in range(3):
        alone = engine.run("sr", {name: array[k : k + 1] for name, array in given.items()})["prob"]
        assert np.array_equal(alone[0], together[k])


def test_answers_are_the_callers_own(engine, onnx):
    given = draw(onnx.specs["decode"], 1)
    first = engine.run("decode", given)["sdg"]
    kept = first.copy()
    engine.run("decode", {"z": -given["z"]})
    assert np.array_equal(first, kept)


@pytest.mark.usefixtures("openvino")
def test_the_number_of_threads_is_obeyed():
    for threads in (1, 2):
        engine = open_openvino(threads=threads)
        assert engine.threads == threads
        bound = {r.get_compiled_model().get_property("INFERENCE_NUM_THREADS") for r in engine._requests.values()}
        assert bound == {threads}
        assert set(hints(engine).values()) == {"f32"}


@pytest.mark.usefixtures("openvino")
def test_bfloat16_is_for_the_graphs_that_bear_it():
    if not computes_bfloat16():
        with pytest.raises(EngineError, match="bfloat16"):
            open_openvino(precision="bfloat16")
        return
    engine = open_openvino(precision="bfloat16")
    assert hints(engine) == {"mc": "f32", "sr": "f32", "encode": "f32", "denoise": "bf16", "decode": "bf16"}
    assert "bfloat16 on cpu" in engine.description


def test_a_cpu_without_bfloat16_is_told_so(openvino, monkeypatch):
    monkeypatch.setattr("m2s_runtime.engines.openvino.computes_bfloat16", lambda: False)
    with pytest.raises(EngineError, match=r"--precision float32") as caught:
        open_openvino(precision="bfloat16")
    assert caught.value.exit_code == 5


@pytest.mark.usefixtures("openvino")
def test_it_is_for_the_cpu():
    with pytest.raises(EngineError, match="--device cpu"):
        open_openvino(device="cuda:0")
    with pytest.raises(UsageProblem, match="choose auto, cpu"):
        open_openvino(device="npu")
    with pytest.raises(UsageProblem, match="float32 and bfloat16"):
        open_openvino(precision="float16")


@pytest.mark.usefixtures("openvino")
@pytest.mark.skipif(os.name == "nt", reason="Windows knows no SIGINT between processes")
def test_ctrl_c_is_heard_after_engines_ended_in_the_order_in_which_they_began():
    code = """
import os, signal, sys
from m2s_runtime.bundle import load_bundle
from m2s_runtime.engines import open_engine
first, second = (open_engine(load_bundle(sys.argv[1]), "openvino", "cpu", 1) for _ in range(2))
del first
del second
os.kill(os.getpid(), signal.SIGINT)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    call = [sys.executable, "-c", code, str(TOY)]
    found = subprocess.run(call, env=environment, capture_output=True, text=True, check=False)
    assert found.stderr.splitlines()[-1] == "KeyboardInterrupt"


def test_without_openvino_the_pip_line_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EngineError) as caught:
        open_openvino()
    assert 'pip install "mask2surface[openvino]"' in str(caught.value)
    assert caught.value.exit_code == 5


def test_numbers_that_are_none_never_leave(engine):
    z = np.zeros((1, *LATENT), np.float32)
    z[0, 0, 0, 0, 0] = np.nan
    with pytest.raises(NotFinite, match="decode"):
        engine.run("decode", {"z": z})


def test_inputs_that_do_not_fit_are_refused(engine):
    with pytest.raises(ValueError, match="decode"):
        engine.run("decode", {"z": np.zeros((1, *LATENT))})


@pytest.mark.usefixtures("openvino")
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("sr.onnx", b"not a graph at all"),
        ("sr.onnx", b""),
        ("sr.onnx", b"\x08\x08"),
        ("decode.onnx", (TOY / "encode.onnx").read_bytes()),
        ("mc.onnx", (TOY / "mc.onnx").read_bytes() + bytes([0x3A, 4, 0x2A, 2, 0x70, 1])),
    ],
    ids=["text", "empty", "hollow", "another graph", "external data"],
)
def test_a_graph_that_is_none_or_another_is_a_bundle_error(tmp_path, name, data):
    folder = copy_toy(tmp_path)
    replace_file(folder, name, data)
    with pytest.raises(BundleError, match=name):
        open_openvino(folder)


@pytest.mark.usefixtures("openvino")
def test_a_file_altered_after_loading_never_reaches_openvino(tmp_path):
    folder = copy_toy(tmp_path)
    bundle = load_bundle(folder)
    data = bytearray((folder / "denoise.onnx").read_bytes())
    data[-1] ^= 1
    (folder / "denoise.onnx").write_bytes(data)
    with pytest.raises(BundleError, match=r"denoise\.onnx.*altered"):
        open_engine(bundle, "openvino", "cpu", 1)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system does not tell the cores of a process")
def test_zero_threads_means_those_of_this_process(openvino):
    assert open_openvino(threads=0).threads == len(os.sched_getaffinity(0)) >= 1
