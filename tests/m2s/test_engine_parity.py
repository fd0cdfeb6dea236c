"""The comparison of engines on one heart: an engine agrees with itself, and a spoilt one is found out."""

import json

import pytest
from benchmarked import benchmark
from click.testing import CliRunner
from toy import TOY

from m2s_runtime.bundle import load_bundle
from m2s_runtime.engines import open_engine
from m2s_runtime.manifest import GRAPHS

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def parity():
    return benchmark("engine_parity")


def test_an_engine_is_its_own_equal(parity, tmp_path):
    out = tmp_path / "parity.json"
    told = CliRunner().invoke(
        parity.main,
        ["onnx@cpu", "onnx:float32@cpu", "--model", str(TOY), "--hearts", "1", "--steps", "1", "--out", str(out)],
        catch_exceptions=False,
    )
    assert told.exit_code == 0
    assert told.output.count("onnxruntime") == 2
    _, again = json.loads(out.read_text())["engines"]
    assert again["largest"] == dict.fromkeys(GRAPHS, 0.0)
    assert (again["codes_agree"], again["dice"], again["p95_mm"]) == (1.0, [1.0], [0.0])
    assert 0.5 < again["truth"][0] <= 1


def test_a_spoilt_engine_is_found_out(parity):
    class Spoilt(parity.Recorded):
        def run(self, graph, inputs):
            outputs = super().run(graph, inputs)
            return {"sdg": outputs["sdg"] + 0.5} if graph == "decode" else outputs

    bundle = load_bundle(TOY)
    engine = open_engine(bundle, "onnx", "cpu", 1)
    spoilt = parity.compare(bundle, [engine, Spoilt(engine)], parity.hearts_of(None, 1), 1)[1]
    assert {graph for graph, off in spoilt.largest.items() if off} == {"decode"}
    assert spoilt.largest["decode"] == pytest.approx(0.5)
    assert spoilt.dice[0] < 0.97
    assert spoilt.p95_mm[0] > 0.4
