"""Weights told from the graphs are those of the graphs; the paper-like reference makes the same heart."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import trimesh
from scipy.spatial import cKDTree
from toy import TOY

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx  # noqa: E402
from onnx import numpy_helper  # noqa: E402

from m2s.bench import reference, torch_engine, weights  # noqa: E402
from m2s.bench.hearts import find_hearts, write_phantoms  # noqa: E402
from m2s.bench.lines import LineSpec, Setup, open_line  # noqa: E402
from m2s.bench.torch_engine import TorchEngine, TorchLoopEngine, verify  # noqa: E402
from m2s.bench.weights import nets_of_bundle, nets_of_run  # noqa: E402
from m2s.bench.work import random_inputs  # noqa: E402
from m2s_runtime import ddim  # noqa: E402
from m2s_runtime.blend import Blend  # noqa: E402
from m2s_runtime.bundle import load_bundle  # noqa: E402
from m2s_runtime.clock import Clock  # noqa: E402
from m2s_runtime.csdg import coarse_sdg  # noqa: E402
from m2s_runtime.engines.base import graph_bytes  # noqa: E402
from m2s_runtime.engines.onnx import OnnxEngine  # noqa: E402
from m2s_runtime.errors import EngineError, UsageProblem  # noqa: E402
from m2s_runtime.generate import generate  # noqa: E402
from m2s_runtime.grid import GRID  # noqa: E402
from m2s_runtime.strict_json import dumps  # noqa: E402


@pytest.fixture(scope="module")
def bundle():
    return load_bundle()


@pytest.fixture(scope="module")
def nets(bundle):
    return nets_of_bundle(bundle)


def test_modules_are_the_graphs(bundle, nets):
    """At several noise levels; codes are those of the graph, everything else within 1e-4."""
    exact, engine = OnnxEngine(bundle, "cpu", 1), TorchEngine(nets, bundle, "eager", "cpu", 1)
    for graph, spec in bundle.manifest.graphs.items():
        for seed in range(3):
            inputs = random_inputs(spec, 1, seed)
            (wanted,), (got,) = exact.run(graph, inputs).values(), engine.run(graph, inputs).values()
            off = abs(got - wanted)
            assert off.max() <= 1e-4 or (graph == "encode" and (off.max(axis=1) > 0).mean() <= 1e-3)


def test_every_weight_of_the_denoiser_is_in_its_graph(bundle, nets):
    """Each tensor is, turned round or not, one of the initialisers: none was left as it was born."""
    model = onnx.load_from_string(graph_bytes(bundle, "denoise")[1]).graph
    stored = [numpy_helper.to_array(t).astype(np.float32) for t in model.initializer]
    sums = np.array([a.astype(np.float64).sum() for a in stored])
    for name, weight in nets.denoiser.named_parameters():
        w = weight.numpy()
        near = np.flatnonzero(np.isclose(sums, w.astype(np.float64).sum(), rtol=1e-6, atol=1e-6))
        assert any(
            stored[k].size == w.size
            and (np.array_equal(stored[k].reshape(w.shape), w) or np.array_equal(stored[k].T.reshape(w.shape), w))
            for k in near
        ), name


def test_other_weights_are_refused(bundle, nets):
    """A weight that is off by a little is found by comparison with the graph."""
    weight = nets.denoiser.unet.out[2].conv.bias
    weight += 1e-2
    try:
        with pytest.raises(EngineError, match=r"graph denoise.*--run"):
            verify(TorchEngine(nets, bundle, "eager", "cpu", 1), bundle)
    finally:
        weight -= 1e-2


def test_bundles_without_modules_are_refused(tmp_path, bundle):
    with pytest.raises(UsageProblem, match="preset"):
        nets_of_bundle(load_bundle(TOY))
    with pytest.raises(UsageProblem, match="--run"):
        nets_of_run(bundle, tmp_path)


def test_no_such_card(bundle, nets):
    with pytest.raises(EngineError, match=r"cuda:7.*nvidia-smi"):
        TorchEngine(nets, bundle, "eager", "cuda:7", 1)


def test_no_onnx(bundle, monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(weights, "import_module", missing)
    with pytest.raises(EngineError, match=r"mask2surface\[bench\]"):
        nets_of_bundle(bundle)


def test_no_open3d(bundle, monkeypatch, tmp_path):
    def missing(name):
        raise ImportError("libusb-1.0.so.0: cannot open shared object file")

    monkeypatch.setattr(reference, "import_module", missing)
    setup = Setup(None, "binary", 1, None, None, None, ())
    with pytest.raises(EngineError, match=r"mask2surface\[bench\].*libusb"):
        open_line(LineSpec("reference:1", "reference", "float32", "cpu", 1), setup, tmp_path, verify=False)


def test_reference_makes_the_same_heart(bundle, monkeypatch, tmp_path):
    """With our distances in place of Open3D's, the bundle's steps and no blend, the surface is that of the runtime."""
    monkeypatch.setattr(reference, "load_open3d", lambda: None)
    monkeypatch.setattr(reference, "open3d_sdg", lambda _open3d, mask, _threads: coarse_sdg(mask))
    write_phantoms(tmp_path / "in", 1)
    sources = tuple(find_hearts([str(tmp_path / "in")], tmp_path / "none", None).sources)
    shutil.copytree(bundle.path, tmp_path / "drawn")
    (tmp_path / "drawn" / "manifest.json").write_text(dumps(replace(bundle.manifest, csdg_share=0.0)))
    setup = Setup(str(tmp_path / "drawn"), "binary", 1, 10, None, None, sources)
    surfaces = []
    for spec in (LineSpec("onnx", "onnx"), LineSpec("reference:10", "reference", "float32", "cpu", 10)):
        out = tmp_path / spec.kind
        heart = open_line(spec, setup, out, verify=False).heart(sources[0])
        assert heart.failure is None
        assert 0 < heart.networks < heart.wall
        surfaces.append(trimesh.load(next(out.rglob("*.ply")), process=False).vertices)
    ours, theirs = surfaces
    assert np.percentile(cKDTree(theirs).query(ours)[0], 95) < 0.1


def test_open3d_agrees_with_the_kernel():
    try:
        open3d = reference.load_open3d()
    except EngineError as error:
        pytest.skip(str(error))
    x, y, z = np.ogrid[: GRID[0], : GRID[1], : GRID[2]]
    radius = np.sqrt((x - 63.0) ** 2 + (y - 60.0) ** 2 + (2 * (z - 30.0)) ** 2)
    mask = (radius < 30) & (radius > 20)
    assert abs(reference.open3d_sdg(open3d, mask, 1) - coarse_sdg(mask)).max() < 1e-3


def test_a_loop_on_the_device_is_the_loop_of_the_host(bundle, nets):
    """What PyTorch does on a card, on the CPU; a condition is shared by two samples."""
    engine = TorchLoopEngine(nets, bundle, "eager", "cpu", 1)
    assert not torch.backends.cudnn.allow_tf32
    csdg = random_inputs(bundle.manifest.graphs["encode"], 1)["csdg"]
    noise = random_inputs(bundle.manifest.graphs["denoise"], 2)["z"]
    levels, bars = ddim.timesteps(3), ddim.alpha_bars()
    host = TorchEngine(nets, bundle, "eager", "cpu", 1)
    wanted = generate(host, csdg, noise, levels, bars, Clock(), Blend.of(bundle.manifest))
    np.testing.assert_allclose(engine.generate(csdg, noise, levels, bars)[:, 0], wanted, rtol=0, atol=1e-4)


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with torch_engine.torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
