"""Real TensorRT engines for an RTX 40 card, built without any card; and `tensorrt` by a stand-in."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from exporting import export
from toy import TOY, copy_toy, edit_manifest, replace_file

import m2s_export.engines as under_test
from m2s_export.build import build
from m2s_export.engines import build_engines
from m2s_runtime.bundle import load_bundle
from m2s_runtime.engines import flavours
from m2s_runtime.engines.cache import EngineCache
from m2s_runtime.errors import BundleError, EngineError
from m2s_runtime.grid import GRID
from m2s_runtime.manifest import GRAPHS, default_profiles, signatures

COMPACT = Path(__file__).parents[2] / "models" / "compact"
DTYPES = {"float32": "Float", "int64": "Int64"}


@pytest.fixture(scope="module")
def rtx():
    return pytest.importorskip("tensorrt_rtx", reason="builds engines: pip install tensorrt_rtx")


def check_layers(spec, layers):
    """The tensors of a signature are there under their names in both profiles, 1 only, and 2 to 16."""
    for tensor in (*spec.inputs, *spec.outputs):
        for profile, rows_told in (("", 1), (" [profile 1]", -1)):
            shape = ",".join(map(str, [rows_told, *tensor.shape[1:]]))
            at = layers.index(f"Name: {tensor.name}{profile}, Dimensions: [{shape}]")
            assert f"Datatype: {DTYPES[tensor.dtype]}" in layers[at : at + 250]


@pytest.fixture(scope="module")
def shipped(rtx, tmp_path_factory):
    """All engines of the shipped bundle: bundle, rows of the table, cache."""
    folder = tmp_path_factory.mktemp("cache") / "engines"
    bundle = load_bundle(COMPACT)
    return bundle, list(build_engines(bundle, "sm89", folder=folder)), EngineCache(folder)


def test_the_shipped_bundle_builds_for_rtx_40(shipped, rtx):
    bundle, rows, cache = shipped
    assert [row.graph for row in rows] == list(GRAPHS)
    for row in rows:
        assert (row.key.flavour, row.key.version, row.key.arch) == ("tensorrt_rtx", rtx.__version__, "sm89")
        assert row.key.onnx_sha256 == bundle.manifest.files[f"{row.graph}.onnx"].sha256
        assert len(cache.find(row.key)) == round(row.megabytes * 1e6)
        weights = bundle.manifest.files[f"{row.graph}.onnx"].size
        assert row.megabytes * 1e6 > weights, "an engine without its weights"


def test_the_layers_of_the_engines_have_the_tensors_of_the_signatures_in_both_profiles(shipped):
    bundle, rows, cache = shipped
    for row in rows:
        check_layers(bundle.manifest.graphs[row.graph], "\n".join(cache.sidecar(row.key).layers))


def test_what_is_in_the_cache_is_not_built_again(shipped, monkeypatch):
    bundle, rows, cache = shipped
    monkeypatch.setattr(under_test, "build", lambda *_, **__: pytest.fail("built again"))
    again = list(build_engines(bundle, "sm89", folder=cache.folder))
    assert [r.key for r in again] == [r.key for r in rows]
    assert all(row.seconds is None for row in again)


def test_another_architecture_is_another_engine(rtx, shipped, tmp_path, monkeypatch, capsys):
    assert export(monkeypatch, TOY, "--engine", "trt", "--target", "sm120", "--engine-dir", tmp_path / "e") == 0
    table = capsys.readouterr().out
    assert all(f"| {graph} " in table for graph in GRAPHS)
    assert "sm120" in table
    assert len(list((tmp_path / "e").glob("*-sm120-float32-*.engine"))) == len(GRAPHS)


def test_float16_graphs_build_to_half_precision_engines(rtx, bundle, tmp_path):
    cache = EngineCache(tmp_path / "engines")
    rows = {row.graph: row for row in build_engines(bundle, "sm89", "float16", cache.folder)}
    assert {g: row.key.precision for g, row in rows.items()} == dict.fromkeys(GRAPHS, "float16") | {"mc": "float32"}
    assert "Datatype: Half" in "\n".join(cache.sidecar(rows["denoise"].key).layers)


def paper_denoiser():
    """Graph `denoise` of preset `paper` with random weights, in half precision, and its signature."""
    torch = pytest.importorskip("torch")
    from m2s.nets.denoiser import Denoiser
    from m2s.nets.presets import PRESETS
    from m2s_export.graphs import DenoiseGraph, Graph
    from m2s_export.half import half_graphs
    from m2s_export.to_onnx import to_onnx

    size = PRESETS["paper"]
    latent = (size.vqvae.dim, *(side // stride for side, stride in zip(GRID, size.vqvae.stride, strict=True)))
    z, zc = torch.randn(2, 2, *latent)
    module = DenoiseGraph(Denoiser(size.denoiser, size.vqvae.dim))
    graph = Graph("denoise", module, {"z": z, "zc": zc, "t": torch.tensor([999, 1])}, "eps")
    onnx = to_onnx(half_graphs({"denoise": graph})["denoise"]).SerializeToString()
    return onnx, signatures(latent, pool=False)["denoise"]


def test_the_denoiser_of_the_paper_builds_for_rtx_40(rtx):
    onnx, spec = paper_denoiser()
    assert [tensor.shape for tensor in spec.outputs] == [("batch", 8, 32, 32, 16)]
    profiles = list(default_profiles().values())
    built = build("denoise.onnx", onnx, spec, profiles, module=rtx, target="sm89")
    layers = "\n".join(built.layers)
    check_layers(spec, layers)
    assert "Datatype: Half" in layers
    assert sum("LayerType: correlation" in line for line in built.layers) > 20, "its convolutions"
    assert len(built.engine) > 100e6, "an engine without its weights"
    assert 0 < built.scratch_bytes < 24e9, "more than an RTX 4090 has"


BLOCKED = """
import importlib.abc, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in ("torch", "monai", "onnx", "onnxruntime"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
from m2s_export.cli import main
sys.argv = ["m2s-export", sys.argv[1], "--engine", "trt", "--target", "sm89", "--engine-dir", sys.argv[2]]
main()
"""


def test_no_torch_is_needed(rtx, tmp_path):
    words = [sys.executable, "-c", BLOCKED, str(TOY), str(tmp_path / "e")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "e").glob("*.engine"))) == len(GRAPHS)


def test_a_damaged_engine_is_refused_and_replaced_when_told(rtx, tmp_path, monkeypatch, capsys):
    words = (TOY, "--engine", "trt", "--target", "sm89", "--engine-dir", tmp_path / "e")
    assert export(monkeypatch, *words) == 0
    engine = next((tmp_path / "e").glob("*.engine"))
    whole = engine.read_bytes()
    engine.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert export(monkeypatch, *words) == 5
    assert "altered" in capsys.readouterr().err
    assert export(monkeypatch, *words, "--overwrite") == 0
    assert export(monkeypatch, *words) == 0
    (tmp_path / "e").chmod(0o777)
    assert export(monkeypatch, *words) == 5
    assert "others can write" in capsys.readouterr().err


@pytest.fixture
def no_gpu(monkeypatch):
    def none(_):
        raise EngineError("no NVIDIA GPU here")

    monkeypatch.setattr(under_test, "Cuda", none)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_the_way_to_build_ahead_is_told(tmp_path, monkeypatch, capsys):
    assert export(monkeypatch, TOY, "--engine", "trt", "--engine-dir", tmp_path / "e") == 5
    told = capsys.readouterr().err
    assert "--target sm89" in told
    assert len(told.strip().splitlines()) == 1
    assert not (tmp_path / "e").exists()


def pretend(monkeypatch, *installed):
    """As if these modules were installed and no other TensorRT."""
    monkeypatch.setattr(flavours.importlib.util, "find_spec", lambda name: name in installed or None)


@pytest.mark.usefixtures("no_gpu")
def test_neither_module_and_the_wrong_one_are_errors_with_the_pip_line(tmp_path, monkeypatch, capsys):
    words = (TOY, "--engine", "trt", "--target", "sm89", "--engine-dir", tmp_path / "e")
    pretend(monkeypatch)
    assert export(monkeypatch, *words) == 5
    assert 'pip install "mask2surface[trt' in capsys.readouterr().err
    pretend(monkeypatch, "tensorrt")
    assert export(monkeypatch, *words) == 5
    assert 'pip install "mask2surface[trt-rtx]"' in capsys.readouterr().err


def forged(tmp_path, name, data):
    folder = copy_toy(tmp_path)
    replace_file(folder, name, data)
    return folder


def flipped(tmp_path):
    folder = copy_toy(tmp_path)
    data = bytearray((folder / "sr.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "sr.onnx").write_bytes(data)
    return folder


def oversized(tmp_path):
    folder = copy_toy(tmp_path)
    with (folder / "decode.onnx").open("r+b") as file:
        file.truncate(3 << 30)  # sparse
    edit_manifest(folder, lambda document: document["files"]["decode.onnx"].update(size=3 << 30))
    return folder


def external(tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(TOY / "sr.onnx")
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    model.graph.initializer[0].external_data.add(key="location", value="../secret.bin")
    return forged(tmp_path, "sr.onnx", model.SerializeToString())


def wrong_graph(tmp_path):
    return forged(tmp_path, "sr.onnx", (TOY / "decode.onnx").read_bytes())


def truncated(tmp_path):
    return forged(tmp_path, "sr.onnx", (TOY / "sr.onnx").read_bytes()[:-100])


@pytest.mark.parametrize("spoil", [flipped, oversized, external, truncated])
def test_a_spoilt_graph_is_refused_before_anything_is_built(spoil, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(under_test, "build", lambda *_, **__: pytest.fail("built"))
    words = (spoil(tmp_path), "--engine", "trt", "--target", "sm89", "--engine-dir", tmp_path / "e")
    assert export(monkeypatch, *words) == 4
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "e").exists()


def test_a_graph_of_another_signature_builds_nothing(rtx, tmp_path):
    folder = tmp_path / "e"
    with pytest.raises(BundleError, match=r"sr\.onnx: its inputs are"):
        list(build_engines(load_bundle(wrong_graph(tmp_path)), "sm89", folder=folder))
    assert not [path for path in folder.glob("*.engine") if b"sdg" in path.read_bytes()]


class StandIn(SimpleNamespace):
    """As much of the module `tensorrt` as a build calls; writes down what it is told."""

    __name__ = "tensorrt"
    __version__ = "11.4.0.106"

    def __init__(self):
        flags = SimpleNamespace(STRONGLY_TYPED=3)
        super().__init__(
            told=[], NetworkDefinitionCreationFlag=flags, BuilderFlag=SimpleNamespace(TF32="tf32"),
            ProfilingVerbosity=SimpleNamespace(DETAILED="detailed"),
            ILogger=type("ILogger", (), {"INTERNAL_ERROR": 0, "ERROR": 1}),
        )  # fmt: skip
        self.Builder = lambda _: self
        self.OnnxParser = self._parser
        self.num_layers, self.config = 1, None

    def create_network(self, flags):
        self.told.append(("network", flags))
        return self

    def _parser(self, *_):
        return SimpleNamespace(parse=self._parse)

    def _parse(self, model):
        graph = next(g for g in GRAPHS if (TOY / f"{g}.onnx").read_bytes() == model)
        spec = load_bundle(TOY).manifest.graphs[graph]
        kinds = {"float32": "DataType.FLOAT", "int64": "DataType.INT64"}
        tensors = [
            [SimpleNamespace(name=t.name, dtype=kinds[t.dtype], shape=(-1, *t.shape[1:])) for t in side]
            for side in (spec.inputs, spec.outputs)
        ]
        self.num_inputs, self.num_outputs = map(len, tensors)
        self.get_input, self.get_output = (side.__getitem__ for side in tensors)
        return True

    def get_layer(self, number):
        return SimpleNamespace(name=f"layer {number}")

    def create_builder_config(self):
        told = self.told
        return SimpleNamespace(
            clear_flag=lambda flag: told.append(("clear", flag)),
            add_optimization_profile=lambda _: 0,
            create_timing_cache=lambda data: data,
            set_timing_cache=lambda cache, mismatch: told.append(("timing", cache, mismatch)),
            get_timing_cache=lambda: SimpleNamespace(serialize=lambda: b"measured"),
        )

    def create_optimization_profile(self):
        return SimpleNamespace(set_shape=lambda *shapes: self.told.append(("profile", *shapes)))

    def build_serialized_network(self, _, config):
        assert not hasattr(config, "num_compute_capabilities"), "tensorrt builds for the card that is here"
        return b"an engine"


def test_tensorrt_builds_for_the_card_here_and_keeps_its_timings(tmp_path, monkeypatch):
    module, folder = StandIn(), tmp_path / "e"
    pretend(monkeypatch, "tensorrt", "tensorrt_rtx")
    monkeypatch.setattr(under_test, "load_flavour", lambda _: module)
    monkeypatch.setattr(under_test, "Cuda", lambda _: SimpleNamespace(arch="sm90"))  # no RTX card
    rows = list(build_engines(load_bundle(TOY), folder=folder))
    assert {row.key.flavour for row in rows} == {"tensorrt"}
    assert ("network", 1 << 3) in module.told
    assert ("clear", "tf32") in module.told
    assert ("profile", "z", (2, 64, 32, 32, 16), (4, 64, 32, 32, 16), (16, 64, 32, 32, 16)) in module.told
    timings = [call[1] for call in module.told if call[0] == "timing"]
    assert timings == [b"", *[b"measured"] * 4]
    kept = folder / "tensorrt-11.4.0.106-sm90.timing"
    assert kept.stat().st_mode & 0o777 == 0o600
    kept.write_bytes(kept.read_bytes()[:-1])
    for path in folder.glob("*.json"):
        path.unlink()
    module.told.clear()
    list(build_engines(load_bundle(TOY), folder=folder))
    assert next(call for call in module.told if call[0] == "timing")[1] == b""
    pretend(monkeypatch, "tensorrt")
    with pytest.raises(EngineError, match="trt-rtx"):
        list(build_engines(load_bundle(TOY), "sm89", folder=folder))
