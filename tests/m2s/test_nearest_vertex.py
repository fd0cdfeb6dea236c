"""The comparison of both C-SDGs on one heart: they differ, by no more than a vertex is away from its face."""

import pytest
from benchmarked import benchmark
from click.testing import CliRunner
from toy import TOY

from m2s_runtime.mesh_distance import KERNEL

pytest.importorskip("onnxruntime")


@pytest.mark.skipif(KERNEL != "native", reason="the compiled kernel is missing on this machine")
def test_one_heart():
    module = benchmark("nearest_vertex")
    told = CliRunner().invoke(module.main, ["--model", str(TOY), "--hearts", "1"], catch_exceptions=False)
    assert told.exit_code == 0
    rows = {row.split("|")[1].strip(): row.split("|")[2].strip() for row in told.output.splitlines()}
    assert rows["hearts"] == "1"
    assert 0.05 < float(rows["largest difference of the C-SDG, mm"]) < 0.3
    assert 0.5 < float(rows["Dice with the truth, exact / nearest vertex"].split(" / ")[1]) <= 1
