"""`--engine auto`: only what is installed, proven on this bundle and fits; and it says why."""

import sys

import pytest
from runtime.device import FakeTensorRT, HostMemory
from runtime.stub import save, wall
from toy import copy_toy, edit_manifest

from m2s_runtime.bundle import load_bundle
from m2s_runtime.cli import run
from m2s_runtime.engines import choose, open_engine, trt
from m2s_runtime.engines.cache import EngineCache
from m2s_runtime.engines.flavours import engine_key
from m2s_runtime.errors import BundleError, EngineError, UsageProblem
from m2s_runtime.manifest import GRAPHS

pytest.importorskip("onnxruntime")
PARITY = {"engine": "", "torch": "", "graphs": {}, "surface_p95_mm": 0.01, "surface_cases": 20}


class FakeOpenVino:
    """In place of `OpenVinoEngine`, so that choosing needs no OpenVINO."""

    def __init__(self, _bundle, _device, threads, precision):
        if self.fails:
            raise EngineError("openvino cannot be loaded (broken); reinstall it")
        self.name, self.device, self.threads = "openvino", "cpu", threads
        self.description = f"openvino 1 {precision} on cpu"

    fails = False


@pytest.fixture
def installed(monkeypatch):
    """Which optional modules are there; nothing but onnxruntime at first."""
    names = {"onnxruntime"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name in names or None)
    monkeypatch.setattr("m2s_runtime.engines.openvino.OpenVinoEngine", FakeOpenVino)
    return names


@pytest.fixture
def bundle(tmp_path):
    """Of a copy of the toy on which the given engines are proven."""

    def make(*proven):
        folder = copy_toy(tmp_path)
        edit_manifest(folder, lambda d: d.update(proven=dict.fromkeys(proven, PARITY)))
        return load_bundle(folder)

    return make


def test_nothing_else_is_installed(bundle, installed):
    engine = open_engine(bundle("openvino-float32"))
    assert (engine.name, engine.device) == ("onnx", "cpu")
    assert engine.description.endswith("; auto: nothing faster is installed")


def test_what_is_proven_and_faster_is_taken(bundle, installed):
    installed.add("openvino")
    engine = open_engine(bundle("openvino-float32"))
    assert engine.description == "openvino 1 float32 on cpu; auto: the fastest that is proven"


def test_what_is_not_proven_is_passed_over_and_named(bundle, installed):
    installed.add("openvino")
    engine = open_engine(bundle())
    assert engine.name == "onnx"
    assert "openvino is not proven on this bundle" in engine.description


def test_for_a_loop_of_one_step_onnx_runtime_is_as_fast(bundle, installed):
    installed.add("openvino")
    made = bundle("openvino-float32", "openvino-bfloat16")
    edit_manifest(made.path, lambda d: d.update(steps=1))
    engine = open_engine(load_bundle(made.path))
    assert engine.name == "onnx"
    assert engine.description.endswith("; auto: openvino gains nothing in a single step")


@pytest.mark.parametrize(("precision", "wanted"), [("auto", "openvino 1 bfloat16"), ("float32", "openvino 1 float32")])
def test_reduced_precision_only_where_it_is_proven_and_not_ruled_out(bundle, installed, precision, wanted):
    installed.add("openvino")
    engine = open_engine(bundle("openvino-float32", "openvino-bfloat16"), precision=precision)
    assert engine.description.partition(" on ")[0] == wanted


def test_what_is_broken_is_passed_over_by_auto_but_not_when_asked_for(bundle, installed, monkeypatch):
    installed.add("openvino")
    monkeypatch.setattr(FakeOpenVino, "fails", True)
    made = bundle("openvino-float32")
    engine = open_engine(made)
    assert engine.name == "onnx"
    assert "broken" in engine.description
    with pytest.raises(EngineError, match="broken"):
        open_engine(made, "openvino")


def test_without_any_engine_the_pip_line_and_what_was_passed_over(bundle, installed, monkeypatch):
    installed.add("openvino")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match=r"mask2surface\[cpu\].*openvino is not proven"):
        open_engine(bundle())


def test_precision_needs_an_engine_by_name(bundle, installed):
    made = bundle()
    with pytest.raises(UsageProblem, match="--engine"):
        open_engine(made, precision="bfloat16")
    with pytest.raises(UsageProblem, match="--precision int8"):
        open_engine(made, precision="int8")
    with pytest.raises(UsageProblem, match="--engine tpu"):
        open_engine(made, "tpu")


def test_half_precision_needs_half_precision_graphs(bundle, installed):
    with pytest.raises(BundleError, match="holds no float16 graphs"):
        open_engine(bundle(), "onnx", "cpu", 1, precision="float16")


@pytest.fixture
def card(monkeypatch, installed, tmp_path):
    """A card with TensorRT, without built engines."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(trt, "Cuda", HostMemory)
    installed.add("tensorrt")


def fill(monkeypatch, bundle):
    host = open_engine(bundle, "onnx", "cpu", 1)
    manifest = bundle.manifest
    fake = FakeTensorRT(host.sessions, manifest.graphs, list(manifest.profiles.values()))
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    for graph in GRAPHS:
        key = engine_key(manifest, graph, "float32", flavour="tensorrt", version=fake.__version__, arch="sm89")
        EngineCache().store(key, graph.encode())


@pytest.mark.usefixtures("card")
def test_built_and_proven_tensorrt_comes_first(bundle, installed, monkeypatch):
    installed.add("openvino")
    made = bundle("trt-float32", "openvino-float32")
    fill(monkeypatch, made)
    engine = open_engine(made)
    assert (engine.name, engine.device) == ("trt", "cuda:0")
    assert open_engine(made, device="cpu").name == "openvino"


@pytest.mark.usefixtures("card")
def test_tensorrt_without_built_engines_is_passed_over_with_the_command(bundle, monkeypatch):
    made = bundle("trt-float32")
    fill(monkeypatch, made)
    for path in EngineCache().folder.glob("*.json"):
        path.unlink()
    engine = open_engine(made)
    assert engine.name == "onnx"
    assert "m2s-export" in engine.description
    with pytest.raises(EngineError, match="m2s-export"):
        open_engine(made, "trt")


@pytest.mark.usefixtures("installed")
def test_a_gpu_by_name_is_never_the_cpu(bundle, monkeypatch):
    monkeypatch.setattr(choose, "lists_cuda", lambda: False)
    with pytest.raises(EngineError, match="--device cuda:0"):
        open_engine(bundle(), device="cuda:0")


def test_the_command_line_passes_it_all_on(monkeypatch, tmp_path, capsys):
    asked = []

    def refuse(_bundle, *told, **named):
        asked.append((told, named))
        raise EngineError("that is all")

    monkeypatch.setattr("m2s_runtime.engines.open_engine", refuse)
    save(tmp_path / "in" / "a.nii.gz", wall())
    options = ["--engine", "trt", "--device", "cuda:1", "--threads", "2", "--precision", "float16"]
    options += ["--engine-dir", str(tmp_path / "engines"), "--jobs", "0"]
    assert run([str(tmp_path / "in"), "--out", str(tmp_path / "out"), *options]) == 5
    assert asked == [(("trt", "cuda:1", 2), {"precision": "float16", "engine_dir": tmp_path / "engines"})]
    assert capsys.readouterr().err.endswith("that is all\n")
