"""Slices in, distances out, and nothing of it on the host in between: against the same steps on the host."""

import logging

import numpy as np
import pytest
from runtime.device import HostMemory
from runtime.stub import AFFINE, wall
from toy import TOY

from m2s_runtime import ddim, device_csdg, mesh_distance
from m2s_runtime.blend import AS_DRAWN, Blend
from m2s_runtime.bundle import load_bundle
from m2s_runtime.clock import Clock
from m2s_runtime.csdg import coarse_sdg, to_grid
from m2s_runtime.engines import open_engine
from m2s_runtime.engines.base import Draws
from m2s_runtime.engines.drawing import DrawingEngine, drawing
from m2s_runtime.engines.onnx_bound import BoundOnnxEngine, OnnxExecutor
from m2s_runtime.engines.resident import Resident
from m2s_runtime.errors import EmptyWall, EngineError, NotFinite
from m2s_runtime.generate import generate
from m2s_runtime.grid import GRID
from m2s_runtime.one_pass import OnePass
from m2s_runtime.options import Options
from m2s_runtime.pipeline import Pipeline
from m2s_runtime.placement import canonicalise
from m2s_runtime.sampling import Sampling
from m2s_runtime.task import Task, TaskSpec
from runtime import host_kernels

pytest.importorskip("onnxruntime")
BARS = ddim.alpha_bars()
LEVELS = ddim.timesteps(1)
KEY = "ab" * 32

needs_cc = pytest.mark.skipif(not host_kernels.COMPILER, reason="no C compiler to run the kernels with")


@pytest.fixture(scope="module")
def toy():
    return open_engine(load_bundle(TOY), "onnx", "cpu", 1)


class Quick(HostMemory):
    """A device whose distances come from the host's kernel; those of its own take seconds on a CPU and have tests."""

    def compiled(self, source):
        launch = host_kernels.compiled(source)
        if f"#define X {GRID[0]}\n" not in source:
            return launch

        def quick(name, threads, *arguments):
            if name == "resample":
                self.walls = arguments[4]
            if name in ("resample", "sizes"):
                launch(name, threads, *arguments)
            if name == "measure":
                for wall, csdg in zip(self.walls, arguments[3], strict=True):
                    csdg[...] = coarse_sdg(wall >= 0.5) if (wall >= 0.5).any() else 0

        return quick


def shape(probability):
    """The toy network's noise made into a block of wall, which has few triangles."""
    probability *= 0.3
    probability[:, :, 40:80, 50:90, 10:40] += 0.6


class Executor(OnnxExecutor):
    """May be recorded; `spoil` alters what `sr` returns."""

    def __init__(self, engine, spoil=shape, rows=None):
        super().__init__(engine.sessions, engine.specs, "cpu")
        self.recordable, self.spoil, self.most = True, spoil, rows

    def rows(self, wanted):
        return self.most or wanted

    def bind(self, graph, tensors):
        run = super().bind(graph, tensors)
        return run if graph != "sr" else lambda: (run(), self.spoil(tensors["prob"]))


def stacks(engine, count, samples):
    rng = np.random.default_rng(3)
    slices = rng.normal(0, 5, (count, 1, 128, 128, 12)).astype(np.float32)
    shifts = rng.normal(0, 2, (count, 12, 2)).astype(np.float32)
    latent = engine.specs["denoise"].inputs[0].shape[1:]
    return slices, shifts, rng.standard_normal((samples, *latent)).astype(np.float32)


@needs_cc
@pytest.mark.parametrize("blend", [AS_DRAWN, Blend(0.5)])
def test_it_is_what_the_host_finds_and_an_empty_stack_is_told_alone(toy, blend):
    """Two stacks and one that the network leaves empty, each with a step of its own; one upload, one download."""

    def spoil(probability):
        shape(probability)
        probability[1] = 0.1

    memory, steps_mm = Quick(), np.array([10.0, 8.0, 6.5])
    resident = Resident(memory, Executor(toy, spoil), toy.specs, blend)
    slices, shifts, noise = stacks(toy, 3, 3)
    resident.prepare_csdg()
    found = resident.draw(slices, shifts, steps_mm, noise, LEVELS, BARS)
    assert memory.calls == ["record", *["push"] * 5, "replay", *["pull"] * 3, "wait"]
    assert found.states.tolist() == [[1, 0], [0, 0], [1, 0]]
    assert found.faulty.tolist() == [False, True, False]
    assert not found.sdgs[1].any()
    with pytest.raises(EmptyWall, match="no voxel"):
        found.check()
    probability = toy.run("sr", {"slices": slices, "shifts": shifts})["prob"]
    shape(probability)
    for k in (0, 2):
        wanted = to_grid(probability[k, 0], steps_mm[k])
        np.testing.assert_allclose(found.walls[k], wanted, rtol=0, atol=1e-6)
        csdg = coarse_sdg(found.walls[k] >= 0.5)[None, None]
        host = generate(toy, csdg, noise[k : k + 1], LEVELS, BARS, Clock(), blend)
        np.testing.assert_allclose(found.sdgs[k], host[0], rtol=0, atol=2e-3)


@needs_cc
def test_samples_share_one_stack_and_blocks_are_padded(toy):
    resident = Resident(Quick(), Executor(toy, rows=2), toy.specs, Blend(0.5))
    slices, shifts, noise = stacks(toy, 1, 3)
    found = resident.draw(slices, shifts, np.array([10.0]), noise, LEVELS, BARS)
    found.check()
    assert (found.walls.shape, found.sdgs.shape, found.states.tolist()) == (
        (1, 128, 128, 64),
        (3, 128, 128, 64),
        [[1, 0]],
    )
    csdg = coarse_sdg(found.walls[0] >= 0.5)[None, None]
    wanted = generate(toy, csdg, noise, LEVELS, BARS, Clock(), Blend(0.5))
    np.testing.assert_allclose(found.sdgs, wanted, rtol=0, atol=2e-3)


@needs_cc
def test_what_is_not_finite_is_the_fault_of_one(toy):
    def spoil(probability):
        probability[...] = 0
        probability[0, 0, 3, 4, 59] = np.nan

    resident = Resident(Quick(), Executor(toy, spoil), toy.specs)
    slices, shifts, noise = stacks(toy, 1, 1)
    found = resident.draw(slices, shifts, np.array([14.0]), noise, LEVELS, BARS)
    assert found.states.tolist() == [[0, 1]]
    with pytest.raises(NotFinite, match="network sr"):
        found.check()


@needs_cc
def test_stacks_that_do_not_fit_are_refused(toy):
    resident = Resident(HostMemory(), Executor(toy), toy.specs)
    slices, shifts, noise = stacks(toy, 2, 3)
    for steps in ([10.0, 10.0], [10.0]):
        with pytest.raises(ValueError, match=r"2 stacks"):
            resident.draw(slices, shifts, np.array(steps), noise, LEVELS, BARS)
    with pytest.raises(ValueError, match="shifts"):
        resident.draw(slices, shifts[:1], np.array([10.0, 10.0]), noise[:2], LEVELS, BARS)


class Refusing(HostMemory):
    def compiled(self, _source):
        raise EngineError("cuda:0 cannot compile the distance kernels (no NVRTC)")


class Erring(HostMemory):
    def compiled(self, source):
        return host_kernels.compiled(source.replace("value >= 0.5f;", "value >= 2.f;"))


@pytest.mark.parametrize(
    ("memory", "told"), [(Refusing, "no NVRTC"), pytest.param(Erring, "does not measure", marks=needs_cc)]
)
def test_without_kernels_that_can_be_trusted_the_host_measures(toy, memory, told, caplog):
    engine = BoundOnnxEngine(toy, memory())
    with caplog.at_level(logging.WARNING):
        assert drawing(engine) is engine
    assert told in caplog.text
    assert "on the host" in caplog.text
    assert not isinstance(engine, Draws)


def opened(spec, memory=Quick):
    bundle = load_bundle(TOY)
    engine = drawing(BoundOnnxEngine(open_engine(bundle, "onnx", "cpu", 1), memory()))
    return bundle, engine, Pipeline(bundle, engine, steps=1)


def opened_without(spec):
    return opened(spec, Refusing)


@needs_cc
def test_which_kernel_it_was_is_on_record(tmp_path):
    bound = {}
    for opener in (opened, opened_without):
        task = Task(TaskSpec(tmp_path, Options(), (), opener=opener))
        bound[task.bound.kernel] = task.bound.fingerprint
    assert list(bound) == [device_csdg.KERNEL, mesh_distance.KERNEL]
    assert len(set(bound.values())) == 2


class Counting(DrawingEngine):
    """Remembers what it was asked."""

    def run(self, graph, _inputs):
        raise AssertionError(f"{graph} is run by itself")

    def draw(self, slices, shifts, steps_mm, noise, levels, bars):
        self.asked = (len(slices), shifts, steps_mm.tolist(), len(noise))
        found = super().draw(slices[:1], shifts[:1], steps_mm[:1], noise[:1], levels, bars)
        return type(found)(*(array.repeat(rows, axis=0) for array, rows in (
            (found.walls, len(slices)), (found.sdgs, len(noise)), (found.states, len(slices)),
        )))  # fmt: skip


@needs_cc
def test_the_pipeline_hands_everything_over(toy):
    bundle, canonical = load_bundle(TOY), canonicalise(wall() > 0, AFFINE)
    rng = np.random.default_rng(3)
    distances = rng.normal(0, 5, (128, 128, 12)).astype(np.float32)
    bound = BoundOnnxEngine(toy, Quick())
    bound.resident = Resident(Quick(), Executor(toy), toy.specs)
    shifts, engine, clock = np.zeros((1, 12, 2), np.float32), Counting(bound), Clock()
    made = OnePass(bundle.manifest, engine, sampling=Sampling(1, 1.0), seed=0, threads=1, samples=2)
    found = made.run(canonical, distances, distances[None, None], shifts, KEY, clock)
    count, drawn, steps_mm, samples = engine.asked
    assert (count, samples) == (len(drawn), 2)
    assert steps_mm == [canonical.placement.step_mm] * count
    assert found.sdgs.shape == (2, 128, 128, 64)
    assert found.probability.shape == (128, 128, 64)
    assert not {"c-sdg", "super-resolution"} & set(clock.seconds)
