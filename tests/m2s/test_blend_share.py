"""The benchmark of the C-SDG's share, on a phantom and a toy of a bundle."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from toy import TOY

from m2s.data.phantom import phantom
from m2s.evaluate.hearts import Subject, heart_truth
from m2s_runtime.bundle import load_bundle
from m2s_runtime.engines import open_engine
from m2s_runtime.pipeline import Pipeline

pytest.importorskip("onnxruntime")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "blend_share.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("blend_share", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["blend_share"] = module
    spec.loader.exec_module(module)
    return module


def test_every_share_is_scored_on_the_same_heart(script: ModuleType):
    bundle = load_bundle(TOY)
    heart = phantom(5)
    rows = script.scores(
        Pipeline(bundle, open_engine(bundle, "onnx", "cpu", 1)), Subject(heart.id, heart, heart_truth(heart))
    )
    assert list(rows) == [script.MASK, "0", "0.25", "0.5", "0.75", "1"]
    # The C-SDG alone is the mask, smoothed; what a toy draws is not.
    assert rows["1"]["dice"] == pytest.approx(rows[script.MASK]["dice"], abs=0.02)
    assert rows["1"]["roughness_error"] < rows[script.MASK]["roughness_error"]
    assert rows["0"]["dice"] != rows["1"]["dice"]


def test_differences_are_paired(script: ModuleType):
    ours = [{"dice": 0.9, "assd": 0.5, "roughness_error": 0.01}, {"dice": 0.8, "assd": 0.7, "roughness_error": 0.03}]
    theirs = [{"dice": 0.89, "assd": 0.5}, {"dice": 0.77, "assd": 0.6}]
    error = np.std([1.0, 3.0], ddof=1) / 2**0.5
    told = script.line("0.5", ours, theirs)
    assert told == f"| 0.5 | +2.000 ± {error:.3f} | +0.0500 ± 0.0500 | 20.0 |"
