"""Batches across cases: who is answered with whom, what is filled up, and whose fault it is."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from runtime.device import HostMemory
from runtime.stub import AFFINE, wall
from toy import TOY

from m2s_runtime.bundle import load_bundle
from m2s_runtime.engines import batching, open_engine
from m2s_runtime.engines.base import Drawn, Draws, Generates
from m2s_runtime.engines.batching import Batched, BatchedDrawer, batched, usual_rows
from m2s_runtime.engines.onnx_bound import BoundOnnxEngine
from m2s_runtime.errors import EngineError, NotFinite
from m2s_runtime.pipeline import Pipeline
from m2s_runtime.placement import canonicalise
from m2s_runtime.seats import Seats

PATIENCE = 60


class Doubling:
    """Doubles what it is given, refuses NaN, and remembers the calls."""

    name, device, threads, description = "onnx", "cuda:0", 1, "doubles"

    def __init__(self):
        self.calls = []

    def run(self, graph, inputs):
        self.calls.append((graph, len(inputs["x"])))
        if (inputs["x"] < 0).any():
            raise EngineError("device lost")
        if np.isnan(inputs["x"]).any():
            raise NotFinite(f"network {graph} returned NaN")
        return {"y": inputs["x"] * 2}


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """No batch goes incomplete because this machine is slow."""
    monkeypatch.setattr(batching, "_PATIENCE_SECONDS", float(PATIENCE))


def ask(engine, *rows, graph="sr"):
    return lambda: engine.run(graph, {"x": np.array(rows, np.float32)})["y"].tolist()


def together(seats, *questions):
    """Ask in threads that all have a seat before the first one speaks; answers, or errors, in order."""
    ready = threading.Barrier(len(questions))

    def one(question):
        with seats.seat():
            ready.wait(PATIENCE)
            return question()

    with ThreadPoolExecutor(len(questions)) as pool:
        futures = [pool.submit(one, question) for question in questions]
    return [future.exception() or future.result() for future in futures]


def test_those_who_ask_for_the_same_are_answered_at_once():
    plain, seats = Doubling(), Seats(8)
    engine = Batched(plain, 4, seats)
    answers = together(seats, *(ask(engine, k) for k in range(8)))
    assert answers == [[2 * k] for k in range(8)]
    assert plain.calls == [("sr", 4)] * 2


def test_a_batch_waits_for_cases_that_may_join_it_and_is_filled_up_when_none_can():
    plain, seats = Doubling(), Seats(4)
    engine = Batched(plain, 4, seats)
    with ThreadPoolExecutor(1) as pool:
        with seats.seat():  # one more that reads, say
            lone = pool.submit(together, seats, ask(engine, 1), ask(engine, 2, graph="mc"))
            with pytest.raises(TimeoutError):
                lone.result(0.3)
            assert plain.calls == []
        assert lone.result(PATIENCE) == [[2], [4]]
    assert plain.calls == [("mc", 4), ("sr", 4)]  # those furthest behind first


def test_a_case_that_does_not_move_keeps_nobody_waiting_for_long(monkeypatch):
    monkeypatch.setattr(batching, "_PATIENCE_SECONDS", 0.05)
    seats = Seats(4)
    engine = Batched(Doubling(), 4, seats)
    with seats.seat():
        assert together(seats, ask(engine, 5)) == [[10]]


def test_nan_is_the_fault_of_one():
    plain, seats = Doubling(), Seats(4)
    engine = Batched(plain, 4, seats)
    a, bad, b, c = together(seats, *(ask(engine, k) for k in (1, np.nan, 3, 4)))
    assert isinstance(bad, NotFinite)
    assert (a, b, c) == ([2], [6], [8])
    assert plain.calls == [("sr", 4)] * 5


def test_a_device_that_is_lost_is_lost_for_all():
    seats = Seats(2)
    engine = Batched(Doubling(), 2, seats)
    assert all(isinstance(error, EngineError) for error in together(seats, ask(engine, -1), ask(engine, -2)))


def test_samples_are_cut_into_batches():
    plain, seats = Doubling(), Seats(4)
    engine = Batched(plain, 4, seats)
    answers = together(seats, ask(engine, *range(10)), ask(engine, 20, 21, 22), ask(engine, 30))
    assert answers == [list(range(0, 20, 2)), [40, 42, 44], [60]]
    assert {rows for _, rows in plain.calls} == {4}


def test_on_a_cpu_every_call_is_made_alone():
    plain = Doubling()
    plain.device = "cpu"
    engine = batched(plain, 4)
    assert (engine.rows, engine.seats.count) == (1, 4)
    assert together(engine.seats, ask(engine, 1), ask(engine, 2, 3)) == [[2], [4, 6]]
    assert sorted(plain.calls) == [("sr", 1), ("sr", 2)]


class Drawing(Doubling):
    """Draws as well: the wall is the mean of the slices, the second state that of NaN."""

    def generate(self, csdg, noise, _levels, _bars):
        return csdg + noise

    def draw(self, slices, shifts, steps_mm, noise, _levels, _bars):
        assert len(slices) == len(shifts) == len(steps_mm) == len(noise)
        self.calls.append(("draw", len(noise)))
        walls = slices + steps_mm[:, None]
        states = np.stack([np.ones(len(slices)), np.isnan(slices[:, 0])], axis=1)
        return Drawn(walls, walls + noise, states.astype(np.int32))


def test_an_engine_with_the_distances_on_its_device_is_asked_for_all_at_once():
    plain = Drawing()
    engine = batched(plain, 4)
    assert isinstance(engine, BatchedDrawer)
    assert isinstance(engine, Draws)

    def draw(value, samples):
        x = np.full((1, 1), value, np.float32)
        noise = np.arange(samples, dtype=np.float32)[:, None]
        return lambda: engine.draw(x, x, np.array([10.0]), noise, [999], np.ones(1))

    one, three = together(engine.seats, draw(1, 1), draw(np.nan, 3))
    assert plain.calls == [("draw", 4)]
    assert (one.walls.tolist(), one.sdgs.tolist()) == ([[11]], [[11]])
    one.check()
    assert (three.walls.shape, three.sdgs.shape, three.states.tolist()) == ((1, 1), (3, 1), [[1, 1]])


class OnCard(BoundOnnxEngine):
    """ONNX Runtime on host memory, which says that it is a GPU."""

    def __init__(self, engine):
        super().__init__(engine, HostMemory())
        self.device = "cuda:0"


@pytest.fixture(scope="module")
def stacks():
    pytest.importorskip("onnxruntime")
    scales = (1.0, 0.95, 0.9, 0.85, 0.8)
    return [canonicalise(wall(scale=scale) == 2, AFFINE) for scale in scales]


def bytes_of(result):
    return result.mesh.vertices.tobytes() + result.sdg.tobytes() + result.probability.tobytes()


def test_on_a_gpu_bytes_depend_neither_on_batch_mates_nor_on_their_number(stacks):
    bundle = load_bundle(TOY)
    assert usual_rows(OnCard(open_engine(bundle, "onnx", "cpu", 1)), bundle) == 16
    found = []
    for crowd in (stacks, stacks[:1], stacks[1:]):
        engine = batched(OnCard(open_engine(bundle, "onnx", "cpu", 1)), 2)
        assert isinstance(engine, Generates)
        assert engine.seats.count == 4
        pipeline = Pipeline(bundle, engine, steps=2)
        with ThreadPoolExecutor(4) as pool:

            def one(stack, pipeline=pipeline, seats=engine.seats):
                with seats.seat():
                    return bytes_of(pipeline.reconstruct(stack, f"{int(stack.pool.sum()):064x}"))

            found.append(list(pool.map(one, crowd)))
    assert found[0][:1] == found[1]
    assert found[0][1:] == found[2]
    assert len(set(found[0])) == 5


def test_on_a_cpu_bytes_are_those_of_one_case_after_the_other(stacks):
    bundle, keys = load_bundle(TOY), [f"{k:064x}" for k in range(3)]
    plain = Pipeline(bundle, open_engine(bundle, "onnx", "cpu", 1), steps=2, samples=2)
    wanted = [bytes_of(plain.reconstruct(stack, key)) for stack, key in zip(stacks[:3], keys, strict=True)]
    engine = batched(open_engine(bundle, "onnx", "cpu", 1), 3)
    crowded = Pipeline(bundle, engine, steps=2, samples=2)
    questions = [lambda s=s, k=k: bytes_of(crowded.reconstruct(s, k)) for s, k in zip(stacks[:3], keys, strict=True)]
    assert together(engine.seats, *questions) == wanted
