"""Publishing is all or nothing: a breach, a crash or a kill leaves the old bundle or none, never half of one."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from make_toy_bundle import toy_draft, toy_graphs, toy_plan
from onnx import numpy_helper

import m2s_export.bundle as under_test
from m2s_export import judge
from m2s_export.bundle import publish
from m2s_export.parity import ParityError
from m2s_runtime.bundle import load_bundle
from m2s_runtime.errors import OutputError
from m2s_runtime.manifest import GraphParity

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def modules():
    return toy_graphs()


@pytest.fixture(scope="module")
def converted(modules):
    return {name: under_test.to_onnx(graph) for name, graph in modules.items()}


@pytest.fixture
def again(converted):
    """Copies of graphs converted once: the conversion is the slow part and not what is tested here."""
    return lambda graph: onnx.ModelProto.FromString(converted[graph.name].SerializeToString())


@pytest.fixture
def quick(monkeypatch, again):
    monkeypatch.setattr(under_test, "to_onnx", again)


def put(modules, out, *, overwrite=False, surface_cases=0):
    plan = toy_plan(surface_cases=surface_cases)
    return publish(modules, toy_draft(plan), out, plan, overwrite=overwrite)


@pytest.mark.usefixtures("quick")
def test_what_is_published_is_whole(modules, tmp_path):
    bundle = put(modules, tmp_path / "models" / "toy", surface_cases=1)
    assert bundle.path == tmp_path / "models" / "toy"
    assert bundle.manifest.parity.surface_p95_mm <= 1e-3
    assert [p.name for p in bundle.path.parent.iterdir()] == ["toy"]
    assert bundle.path.stat().st_mode & 0o777 == 0o755


@pytest.fixture
def off(monkeypatch, again):
    """An exporter that gets one weight of `sr` wrong."""

    def wrong(graph):
        model = again(graph)
        if graph.name == "sr":
            for tensor in model.graph.initializer:
                values = numpy_helper.to_array(tensor)
                if values.shape == (12, 60):
                    tensor.CopyFrom(numpy_helper.from_array(np.float32(1.01) * values, tensor.name))
        return model

    monkeypatch.setattr(under_test, "to_onnx", wrong)


@pytest.mark.usefixtures("off")
def test_a_breach_publishes_nothing_and_leaves_nothing(modules, tmp_path):
    with pytest.raises(ParityError, match=r"graph sr on onnxruntime .* deviates from PyTorch"):
        put(modules, tmp_path / "toy")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("off")
def test_a_breach_leaves_the_old_bundle_as_it_was(modules, tmp_path, again, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(under_test, "to_onnx", again)
        old = put(modules, tmp_path / "toy").sha256
    with pytest.raises(ParityError):
        put(modules, tmp_path / "toy", overwrite=True)
    assert load_bundle(tmp_path / "toy").sha256 == old
    assert [p.name for p in tmp_path.iterdir()] == ["toy"]


@pytest.mark.usefixtures("quick")
def test_surfaces_that_part_are_a_breach(modules, tmp_path, monkeypatch):
    real = under_test.open_engine

    class Off:
        """A `decode` whose surfaces lie half a millimetre further out."""

        def __init__(self, engine):
            self.engine, self.threads, self.description = engine, engine.threads, engine.description

        def run(self, graph, inputs):
            found = self.engine.run(graph, inputs)
            return {"sdg": found["sdg"] - np.float32(0.5)} if graph == "decode" else found

    monkeypatch.setattr(under_test, "open_engine", lambda *a, **b: Off(real(*a, **b)))
    monkeypatch.setattr(judge, "check_graph", lambda *_, **__: GraphParity(0.0, (1,), None))
    with pytest.raises(ParityError, match="surface of stack 0"):
        put(modules, tmp_path / "toy", surface_cases=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_a_bundle_is_not_replaced_unless_told(modules, tmp_path):
    put(modules, tmp_path / "toy")
    with pytest.raises(OutputError, match="--overwrite"):
        put(modules, tmp_path / "toy")
    put(modules, tmp_path / "toy", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["toy"]


@pytest.mark.usefixtures("quick")
def test_of_two_runs_at_once_the_slower_one_is_refused(modules, tmp_path, monkeypatch):
    real, quicker = under_test.measure, []

    def while_measuring(*given):
        if not quicker:
            quicker.append("")
            quicker[0] = put(modules, tmp_path / "toy").sha256
        return real(*given)

    monkeypatch.setattr(under_test, "measure", while_measuring)
    with pytest.raises(OutputError, match="exists already"):
        put(modules, tmp_path / "toy")
    assert load_bundle(tmp_path / "toy").sha256 == quicker[0]
    assert [p.name for p in tmp_path.iterdir()] == ["toy"]


def test_an_out_that_cannot_be_written_is_an_output_error(modules, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        put(modules, tmp_path / "file" / "toy")


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import m2s_export.bundle as under_test
from make_toy_bundle import toy_draft, toy_graphs, toy_plan
from pathlib import Path
where, out = sys.argv[1], Path(sys.argv[2])
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
if where == "measure":
    under_test.measure = die
else:
    under_test.measure = lambda modules, bundle, plan: bundle.manifest
    rename = Path.rename
    calls = []
    def second_dies(self, target):
        calls.append(target)
        return die() if len(calls) == 2 else rename(self, target)
    Path.rename = second_dies
import onnx
under_test.to_onnx = lambda g: onnx.load(Path({tests!r}) / "data" / "toy_bundle" / (g.name + ".onnx"))
plan = toy_plan(surface_cases=0)
under_test.publish(toy_graphs(), toy_draft(plan), out, plan, overwrite=True)
"""


def kill_while(where, out):
    code = KILLED.format(tests=str(TESTS))
    done = subprocess.run([sys.executable, "-c", code, where, str(out)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.usefixtures("quick")
def test_a_kill_while_measuring_leaves_no_bundle_and_is_tidied_up(modules, tmp_path):
    out = tmp_path / "toy"
    kill_while("measure", out)
    assert not out.exists()
    assert len(list(tmp_path.iterdir())) == 1
    put(modules, out)
    assert [p.name for p in tmp_path.iterdir()] == ["toy"]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.usefixtures("quick")
def test_a_kill_between_the_renames_loses_nothing(modules, tmp_path):
    out = tmp_path / "toy"
    old = put(modules, out).sha256
    kill_while("rename", out)
    assert not out.exists()
    with pytest.raises(OutputError, match="--overwrite"):
        put(modules, out)
    assert load_bundle(out).sha256 == old
    assert [p.name for p in tmp_path.iterdir()] == ["toy"]
