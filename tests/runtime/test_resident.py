"""The sampling loop on a device, here one that is made of host memory, against the loop of `ddim` on the host."""

from dataclasses import replace

import numpy as np
import pytest
from runtime.device import HostMemory
from toy import TOY

from m2s_runtime import ddim
from m2s_runtime.blend import Blend
from m2s_runtime.bundle import load_bundle
from m2s_runtime.clock import Clock
from m2s_runtime.engines import open_engine
from m2s_runtime.engines.base import Generates
from m2s_runtime.engines.onnx_bound import BoundOnnxEngine, OnnxExecutor
from m2s_runtime.engines.resident import Resident
from m2s_runtime.errors import NotFinite
from m2s_runtime.generate import generate
from m2s_runtime.manifest import GRAPHS

pytest.importorskip("onnxruntime")
BARS = ddim.alpha_bars()
LEVELS = ddim.timesteps(3)


@pytest.fixture(scope="module")
def toy():
    return open_engine(load_bundle(TOY), "onnx", "cpu", 1)


def inputs(engine, conditions, samples):
    rng = np.random.default_rng(5)
    latent = engine.specs["denoise"].inputs[0].shape[1:]
    csdg = rng.normal(0, 8, (conditions, 1, 128, 128, 64)).astype(np.float32)
    return csdg, rng.standard_normal((samples, *latent)).astype(np.float32)


@pytest.mark.parametrize(
    ("bundle", "conditions", "samples"), [(TOY, 1, 1), (TOY, 1, 3), (TOY, 2, 2), ("compact", 1, 1)]
)
def test_the_loop_on_the_device_is_the_loop_on_the_host(bundle, conditions, samples):
    host = open_engine(load_bundle(bundle), "onnx", "cpu", 1)
    bound = BoundOnnxEngine(host, HostMemory())
    assert isinstance(bound, Generates)
    assert not isinstance(host, Generates)
    csdg, noise = inputs(host, conditions, samples)
    wanted = generate(host, csdg, noise, LEVELS, BARS, Clock(), host.blend)
    clock = Clock()
    found = generate(bound, csdg, noise, LEVELS, BARS, clock)
    assert found.shape == (samples, 128, 128, 64)
    np.testing.assert_allclose(found, wanted, atol=2e-4)
    assert list(clock.seconds) == ["denoise"]
    np.testing.assert_array_equal(noise, inputs(host, conditions, samples)[1])


def test_engines_on_a_device_have_the_blend_of_their_bundle(toy):
    assert BoundOnnxEngine(toy, HostMemory()).resident._blend == Blend(0.0, 10.0)
    blended = replace(load_bundle(TOY), manifest=replace(load_bundle(TOY).manifest, csdg_share=0.25))
    host = open_engine(blended, "onnx", "cpu", 1)
    csdg, noise = inputs(host, 1, 1)
    found = BoundOnnxEngine(host, HostMemory()).generate(csdg, noise, LEVELS, BARS)[:, 0]
    np.testing.assert_allclose(found, generate(host, csdg, noise, LEVELS, BARS, Clock(), Blend(0.25)), atol=2e-4)


def test_single_graphs_run_as_before(toy):
    bound = BoundOnnxEngine(toy, HostMemory())
    assert (bound.name, bound.device, bound.threads) == ("onnx", "cpu", 1)
    z = inputs(toy, 1, 2)[1]
    assert np.array_equal(bound.run("decode", {"z": z})["sdg"], toy.run("decode", {"z": z})["sdg"])


class Padded(OnnxExecutor):
    """Runs 2 rows at a time, no more and no fewer, and may be recorded."""

    def __init__(self, engine):
        super().__init__(engine.sessions, engine.specs, "cpu")
        self.recordable = True
        self.sizes = []

    def rows(self, _wanted):
        return 2

    def bind(self, graph, tensors):
        self.sizes.append((graph, *{len(a) for a in tensors.values()}))
        return super().bind(graph, tensors)


@pytest.mark.parametrize(("conditions", "samples"), [(1, 1), (1, 5), (3, 3)])
def test_batches_are_cut_and_padded(toy, conditions, samples):
    memory, executor = HostMemory(), Padded(toy)
    resident = Resident(memory, executor, toy.specs)
    csdg, noise = inputs(toy, conditions, samples)
    found = resident.generate(csdg, noise, LEVELS, BARS)
    wanted = generate(toy, csdg, noise, LEVELS, BARS, Clock())
    np.testing.assert_allclose(found[:, 0], wanted, atol=2e-4)
    assert executor.sizes == [("encode", 2), ("denoise", 2), ("decode", 2)]


@pytest.mark.parametrize(("conditions", "samples"), [(1, 1), (1, 5), (3, 3)])
def test_the_blend_on_the_device_is_the_blend_on_the_host(toy, conditions, samples):
    memory, blend = HostMemory(), Blend(0.5)
    resident = Resident(memory, Padded(toy), toy.specs, blend)
    csdg, noise = inputs(toy, conditions, samples)
    wanted = generate(toy, csdg, noise, LEVELS, BARS, Clock(), blend)
    for _ in range(2):  # what is recorded is used again
        np.testing.assert_allclose(resident.generate(csdg, noise, LEVELS, BARS)[:, 0], wanted, atol=2e-4)
    assert np.abs(wanted - generate(toy, csdg, noise, LEVELS, BARS, Clock())).max() > 1


def test_one_upload_and_one_download_a_batch_and_one_recording_for_all(toy):
    memory = HostMemory()
    resident = Resident(memory, Padded(toy), toy.specs)
    csdg, noise = inputs(toy, 1, 2)
    first = resident.generate(csdg, noise, LEVELS, BARS)
    assert memory.calls == ["record", "push", "push", "replay", "pull", "wait"]
    memory.calls.clear()
    second = resident.generate(csdg, 2 * noise, LEVELS, BARS)
    assert memory.calls == ["push", "push", "replay", "pull", "wait"]
    assert not np.array_equal(first, second)
    assert np.array_equal(resident.generate(csdg, noise, LEVELS, BARS), first)


def test_another_number_of_steps_is_another_recording(toy):
    memory = HostMemory()
    resident = Resident(memory, Padded(toy), toy.specs)
    csdg, noise = inputs(toy, 1, 2)
    for levels in (LEVELS, ddim.timesteps(2), LEVELS):
        wanted = generate(toy, csdg, noise, levels, BARS, Clock())
        np.testing.assert_allclose(resident.generate(csdg, noise, levels, BARS)[:, 0], wanted, atol=2e-4)
    assert memory.calls.count("record") == 2


def test_buffers_of_many_batch_sizes_do_not_pile_up(toy):
    class Any(Padded):
        def rows(self, wanted):
            return wanted

    executor = Any(toy)
    resident = Resident(HostMemory(), executor, toy.specs)
    slices = np.zeros((12, 1, 128, 128, 12), np.float32)
    for rows in range(1, 13):
        resident.run("mc", {"slices": slices[:rows], "pool": np.zeros((rows, 12, 3), np.float32)})
    assert len(resident._plans) <= 8


@pytest.mark.parametrize("graph", GRAPHS)
def test_graphs_with_inputs_from_the_host(toy, graph):
    rng = np.random.default_rng(1)
    given = {
        t.name: np.array([999, 5, 0]) if t.dtype == "int64" else rng.standard_normal((3, *t.shape[1:]), np.float32)
        for t in toy.specs[graph].inputs
    }
    found = Resident(HostMemory(), Padded(toy), toy.specs).run(graph, given)
    for name, wanted in toy.run(graph, given).items():
        np.testing.assert_allclose(found[name], wanted, atol=1e-5)


def test_what_does_not_fit_is_refused(toy):
    resident = Resident(HostMemory(), Padded(toy), toy.specs)
    csdg, noise = inputs(toy, 2, 3)
    with pytest.raises(ValueError, match="2 conditions for 3 samples"):
        resident.generate(csdg, noise, LEVELS, BARS)
    with pytest.raises(ValueError, match="csdg"):
        resident.generate(csdg.astype(np.float64), noise[:2], LEVELS, BARS)
    noise[1, 0, 0, 0, 0] = np.nan
    with pytest.raises(NotFinite):
        resident.generate(csdg[:1], noise, LEVELS, BARS)


def test_coefficients_are_the_step():
    z, eps = np.random.default_rng(0).standard_normal((2, 50))
    for steps in (1, 2, 10):
        levels = ddim.timesteps(steps)
        following = [*(BARS[t] for t in levels[1:]), 1.0]
        for (a, b), t, bar_next in zip(ddim.coefficients(levels, BARS), levels, following, strict=True):
            np.testing.assert_allclose(z * a + eps * b, ddim.step(z, eps, BARS[t], bar_next), rtol=1e-9, atol=1e-9)
