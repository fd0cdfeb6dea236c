"""The benchmark of the C-SDG's share, on a phantom and a toy of a bundle."""

from types import ModuleType

import numpy as np
import pytest
from benchmarked import benchmark
from toy import TOY

from m2s.data.phantom import phantom
from m2s.data.simulate import draw_rng, simulate_stack
from m2s.evaluate.coarse import Shared
from m2s.evaluate.hearts import Subject, heart_truth
from m2s.evaluate.methods import canonical_from_stack
from m2s.evaluate.simulation import noise_key
from m2s_runtime.bundle import load_bundle
from m2s_runtime.engines import open_engine
from m2s_runtime.pipeline import Pipeline

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return benchmark("blend_share")


def test_every_share_is_scored_on_the_same_heart(script: ModuleType):
    bundle, heart = load_bundle(TOY), phantom(5)
    pipeline = Pipeline(bundle, open_engine(bundle, "onnx", "cpu", 1))
    stack, key = simulate_stack(heart.mask, draw_rng(heart.id, 0, 0)), noise_key(heart.id)
    result = pipeline.reconstruct(canonical_from_stack(stack), key)
    rows = script.scores(Shared(Subject(heart.id, heart, heart_truth(heart)), stack, pipeline, result, key))
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
