"""TensorRT on a stand-in that computes with onnxruntime on raw addresses: everything but the card itself."""

import shlex
import sys

import numpy as np
import pytest
from runtime.device import FakeTensorRT, FakeTensorRTX, HostMemory
from toy import TOY, copy_toy, edit_manifest

from m2s_runtime import ddim
from m2s_runtime.blend import Blend
from m2s_runtime.bundle import load_bundle
from m2s_runtime.clock import Clock
from m2s_runtime.engines import cuda, open_engine, trt
from m2s_runtime.engines.base import Generates
from m2s_runtime.engines.cache import EngineCache, default_folder
from m2s_runtime.engines.flavours import FLAVOURS, choose_flavour, engine_key
from m2s_runtime.engines.profiles import fitting
from m2s_runtime.engines.resident import Resident
from m2s_runtime.errors import EngineError, UsageProblem
from m2s_runtime.generate import generate
from m2s_runtime.manifest import GRAPHS, BatchProfile

pytest.importorskip("onnxruntime")
ONE, MANY, BIG = BatchProfile(1, 1, 1), BatchProfile(2, 4, 16), BatchProfile(8, 16, 64)


@pytest.fixture(scope="module")
def host():
    return open_engine(load_bundle(TOY), "onnx", "cpu", 1)


@pytest.fixture
def card(monkeypatch, host, tmp_path):
    """A machine with a card, TensorRT, and built engines in `card.cache`."""
    bundle = load_bundle(TOY)
    fake = FakeTensorRT(host.sessions, bundle.manifest.graphs, list(bundle.manifest.profiles.values()))
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setattr(trt, "Cuda", HostMemory)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fake.cache = EngineCache()
    for graph in GRAPHS:
        fake.cache.store(key_of(bundle, graph), graph.encode())
    return fake


def key_of(bundle, graph):
    return engine_key(
        bundle.manifest, graph, "float32", flavour="tensorrt", version=FakeTensorRT.__version__, arch="sm89"
    )


def open_trt(**options):
    return open_engine(load_bundle(TOY), "trt", **options)


def test_it_tells_what_it_bound(card):
    engine = open_trt(threads=3)
    assert (engine.name, engine.device, engine.threads) == ("trt", "cuda:0", 3)
    assert engine.description.partition(" on ")[0] == "tensorrt 11.4.0.106 float32 for sm89"
    assert isinstance(engine, Generates)


@pytest.mark.parametrize("samples", [1, 3])
def test_the_loop_is_the_hosts(card, host, samples):
    engine, bars, levels = open_trt(), ddim.alpha_bars(), ddim.timesteps(2)
    rng = np.random.default_rng(2)
    csdg = rng.normal(0, 8, (1, 1, 128, 128, 64)).astype(np.float32)
    noise = rng.standard_normal((samples, 64, 32, 32, 16), np.float32)
    found = generate(engine, csdg, noise, levels, bars, Clock())
    np.testing.assert_allclose(found, generate(host, csdg, noise, levels, bars, Clock()), atol=2e-4)
    used = {context.engine.graph: context.profile for context in card.contexts[:3]}
    assert used == {"encode": ONE, "denoise": ONE if samples == 1 else MANY, "decode": ONE if samples == 1 else MANY}


def test_its_blend_is_that_of_the_bundle(card, tmp_path):
    edit_manifest(toy := copy_toy(tmp_path), lambda document: document.update(csdg_share=0.25, sdg_clamp_mm=4.0))
    assert open_engine(load_bundle(toy), "trt").resident._blend == Blend(0.25, 4.0)


@pytest.mark.parametrize("rows", [1, 17])
def test_single_graphs(card, host, rows):
    z = np.random.default_rng(3).standard_normal((rows, 64, 32, 32, 16), np.float32)
    np.testing.assert_allclose(
        open_trt().run("decode", {"z": z})["sdg"], host.run("decode", {"z": z})["sdg"], atol=1e-5
    )


def test_a_context_is_made_once_for_each_batch_size(card):
    engine = open_trt()
    z = np.zeros((2, 64, 32, 32, 16), np.float32)
    for _ in range(3):
        engine.run("decode", {"z": z})
    assert [context.runs for context in card.contexts] == [3]


@pytest.mark.parametrize(
    ("rows", "profiles", "wanted"),
    [
        (1, (ONE, MANY), (0, 1)),
        (2, (ONE, MANY), (1, 2)),
        (16, (ONE, MANY), (1, 16)),
        (17, (ONE, MANY), (1, 16)),  # one row is left for another time
        (1, (MANY,), (0, 2)),  # padded
        (3, (ONE, BIG), (1, 8)),
        (
            10,
            (ONE, MANY, BIG),
            (1, 10),
        ),  # 4 is nearer to 10 than 16 by a hair's breadth: both are 6 away, the first wins
        (12, (ONE, MANY, BIG), (2, 12)),
        (999, (ONE, MANY, BIG), (2, 64)),
    ],
)
def test_profiles(rows, profiles, wanted):
    assert fitting(rows, profiles) == wanted


def test_what_was_never_built_comes_with_the_command_that_builds_it(card, tmp_path):
    folder = tmp_path / "my engines"
    with pytest.raises(EngineError) as caught:
        open_trt(engine_dir=folder)
    told = str(caught.value)
    assert all(graph in told for graph in GRAPHS)
    command = shlex.split(told.split("`")[1])
    assert command == ["m2s-export", str(TOY), "--engine", "trt", "--engine-dir", str(folder)]
    assert not folder.exists()


def test_the_default_cache_needs_no_option(card):
    edited = load_bundle(TOY)
    (card.cache.folder / f"{key_of(edited, 'sr').stem}.json").unlink()
    with pytest.raises(EngineError, match=r"of graph sr in .*`m2s-export \S*toy_bundle --engine trt`"):
        open_trt()
    assert card.cache.folder == default_folder()


@pytest.mark.parametrize("capturable", [True, False])
def test_on_rtx_cards_the_loop_is_recorded_where_tensorrt_allows_it(card, host, capturable, caplog):
    manifest, memory = load_bundle(TOY).manifest, HostMemory()
    profiles = list(manifest.profiles.values())
    rtx = FakeTensorRTX(host.sessions, manifest.graphs, profiles, spoil={"fixed": not capturable})
    executor = trt.TrtExecutor(rtx, {g: g.encode() for g in GRAPHS}, manifest.graphs, profiles, memory)
    resident, rng = Resident(memory, executor, manifest.graphs), np.random.default_rng(0)
    csdg = rng.normal(0, 8, (1, 1, 128, 128, 64)).astype(np.float32)
    noise = rng.standard_normal((1, 64, 32, 32, 16), np.float32)
    found = resident.generate(csdg, noise, ddim.timesteps(2), ddim.alpha_bars())
    wanted = generate(host, csdg, noise, ddim.timesteps(2), ddim.alpha_bars(), Clock())
    np.testing.assert_allclose(found[:, 0], wanted, atol=2e-4)
    assert ("record" in memory.calls) == capturable
    assert ("cannot be part of a CUDA graph" in caplog.text) != capturable


def test_engines_of_another_bundle_version_card_or_profile_do_not_count(card, tmp_path, monkeypatch):
    folder = copy_toy(tmp_path)
    edit_manifest(folder, lambda d: d.update(profiles={"one": {"min": 1, "opt": 1, "max": 1}}))
    with pytest.raises(EngineError, match="m2s-export"):
        open_engine(load_bundle(folder), "trt")
    monkeypatch.setattr(HostMemory, "arch", "sm120")
    with pytest.raises(EngineError, match="sm120"):
        open_trt()
    monkeypatch.setattr(HostMemory, "arch", "sm89")
    monkeypatch.setattr(FakeTensorRT, "__version__", "11.5")
    with pytest.raises(EngineError, match=r"tensorrt 11\.5"):
        open_trt()


def test_an_altered_engine_is_never_handed_to_tensorrt(card):
    path = card.cache.folder / f"{key_of(load_bundle(TOY), 'mc').stem}.engine"
    path.write_bytes(b"xx")
    with pytest.raises(EngineError, match="altered"):
        open_trt()
    assert not card.runtimes


def test_an_engine_that_tensorrt_refuses(card):
    card.cache.store(key_of(load_bundle(TOY), "sr"), b"nonsense")
    with pytest.raises(EngineError, match=r"graph sr.*magic tag is wrong.*m2s-export") as caught:
        open_trt()
    assert "more" not in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        ({"name": "other"}, "its tensors are"),
        ({"shape": (-1, 2)}, r"\(-1, 2\), not"),
        ({"dtype": "HALF"}, "HALF"),
        ({"profiles": 1}, "1 profiles, not 2"),
        ({"most": 99}, "profile 0"),
    ],
)
def test_an_engine_of_another_shape_is_refused(card, spoil, told):
    card.spoil.update(spoil)
    with pytest.raises(EngineError, match=told):
        open_trt()


@pytest.mark.parametrize("spoil", ["context", "shapes", "run"])
def test_a_card_that_fails_is_an_engine_error(card, spoil):
    engine = open_trt()
    card.spoil[spoil] = True
    with pytest.raises(EngineError, match="graph decode") as caught:
        engine.run("decode", {"z": np.zeros((1, 64, 32, 32, 16), np.float32)})
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t.update(sdg=t["sdg"].astype(np.float64)),
        lambda t: t.update(sdg=t["sdg"][:, :, :64]),
        lambda t: t.update(z=np.asfortranarray(t["z"])),
        lambda t: t.update(sdg=np.concatenate([t["sdg"]] * 2)),
    ],
)
def test_memory_that_does_not_fit_is_never_handed_over(card, spoil):
    tensors = {"z": np.zeros((1, 64, 32, 32, 16), np.float32), "sdg": np.zeros((1, 1, 128, 128, 64), np.float32)}
    spoil(tensors)
    executor = open_trt().resident._executor
    with pytest.raises(ValueError, match="graph decode"):
        executor.bind("decode", tensors)
    assert not card.contexts


def test_the_cpu_is_no_place_for_it(card):
    with pytest.raises(EngineError, match="NVIDIA GPU"):
        open_trt(device="cpu")
    with pytest.raises(UsageProblem):
        open_trt(device="gpu")
    with pytest.raises(UsageProblem, match="float32 and float16"):
        open_trt(precision="bfloat16")


@pytest.mark.parametrize(
    ("present", "arch", "wanted"),
    [
        (("tensorrt",), "sm89", "tensorrt"),
        (("tensorrt_rtx",), "sm89", "tensorrt_rtx"),
        (("tensorrt", "tensorrt_rtx"), "sm120", "tensorrt_rtx"),
        (("tensorrt", "tensorrt_rtx"), "sm90", "tensorrt"),
    ],
)
def test_the_flavour_fits_the_card(monkeypatch, present, arch, wanted):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name in present or None)
    assert choose_flavour(arch) == wanted


@pytest.mark.parametrize(
    ("present", "told"), [((), r"\[trt-rtx\]"), (("tensorrt_rtx",), r"no engines for sm90.*\[trt\]")]
)
def test_no_flavour_that_fits_is_told_with_the_pip_line(monkeypatch, present, told):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name in present or None)
    with pytest.raises(EngineError, match=told) as caught:
        choose_flavour("sm90")
    assert 'pip install "mask2surface[trt]"' in str(caught.value)


def test_without_tensorrt_the_pip_line_is_told(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(EngineError, match=r"TensorRT is not installed; run `pip install") as caught:
        open_trt()
    assert caught.value.exit_code == 5


def test_without_cupy_the_pip_line_is_told(card, monkeypatch):
    monkeypatch.setattr(trt, "Cuda", cuda.Cuda)
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(EngineError, match=r'CuPy cannot be loaded.*pip install "cupy-cuda13x\[ctk\]"') as caught:
        open_trt()
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("built", [b"", b"not an engine", bytes(5000)])
def test_the_real_module_refuses_what_is_no_engine_without_printing(flavour, built, capfd):
    module = pytest.importorskip(flavour, reason=f"{flavour} is not installed")
    with pytest.raises(EngineError, match=r"graph mc: the engine is refused \(.+\).*m2s-export"):
        trt.TrtExecutor(module, {"mc": built}, load_bundle(TOY).manifest.graphs, [ONE], HostMemory())
    assert capfd.readouterr() == ("", "")
