"""What `benchmarks/device_csdg.py` counts, on distances that are known."""

import numpy as np
import pytest
from benchmarked import benchmark


@pytest.fixture(scope="module")
def script():
    return benchmark("device_csdg")


class Rounding:
    """Its codes are the distances, rounded; all else it leaves as it is."""

    name, device, threads, description = "onnx", "cpu", 1, "rounds"

    def run(self, graph, inputs):
        return {"zc": np.round(inputs["csdg"])} if graph == "encode" else dict(inputs)


def test_what_the_device_changes_is_counted(script):
    csdg = np.array([-2.4, 0.4, 1.0, 3.0], np.float32).reshape(1, 1, 1, 2, 2)  # one heart

    def measure(walls):
        assert walls.tolist() == [[[[True, False], [False, False]]]]
        return csdg[:, 0] + np.float32(0.2)

    engine = script.Replacing(Rounding(), measure)
    assert engine.run("sr", {"x": csdg})["x"] is csdg
    found = engine.run("encode", {"csdg": csdg})["zc"]
    np.testing.assert_array_equal(found.ravel(), [-2, 1, 1, 3])
    assert engine.off_mm == pytest.approx(0.2, abs=1e-6)
    assert engine.codes_agree == 0.75
    np.testing.assert_array_equal(engine.walls[0].ravel(), [True, False, False, False])


def test_the_table_holds_the_worst_and_the_means(script):
    effects = [
        script.Effect(1e-6, 1.0, 1.0, 0.0, (0.9, 0.8), (4.0, 5.0)),
        script.Effect(5e-6, 0.9, 0.99, 0.25, (0.7, 0.8), (6.0, 5.0)),
        script.Effect(2e-6, 1.0, 1.0, 0.0, (), ()),
    ]
    rows = dict(line.strip("| ").split(" | ") for line in script.table(effects).splitlines())
    assert rows["hearts"] == "3"
    assert rows["C-SDG, largest difference, mm"] == "5.0e-06"
    assert rows["codes that agree, least"] == "90.000%"
    assert rows["Dice with the truth, host and device"] == "0.80000, 0.80000"
    assert rows["cd_paper, mm2, host and device"] == "5.00000, 5.00000"
