"""Traits of stacks whose shape is known in closed form, and what Dice a model makes of them."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
from toy import TOY, edit_manifest

from m2s_runtime.bundle import load_bundle
from m2s_runtime.engines import open_engine
from m2s_runtime.errors import BundleError
from m2s_runtime.expected_dice import TRAITS, DiceModel, traits
from m2s_runtime.pipeline import Pipeline
from m2s_runtime.placement import Canonical, Placement, canonicalise
from m2s_runtime.slices import pool_features

MEASURED = {
    "small_wall_ml": 80.0,
    "torn_wall": 0.25,
    "slices_disagree": 0.9,
    "slice_disagrees": 0.7,
    "pieces_dropped": 1.0,
}
X, Y = np.indices((128, 128)) - 63.5


def stack(masks, step=8.0, flags=()):
    return Canonical(masks, Placement(np.eye(4), step, tuple(range(12)), False, 1, 2, 0.0), pool_features(masks), flags)


def tube(outer=30.0, inner=20.0, squeeze=1.0):
    ring = (np.hypot(X, Y * squeeze) < outer) & (np.hypot(X, Y * squeeze) >= inner)
    masks = np.zeros((128, 128, 12), bool)
    masks[:, :, 2:10] = ring[:, :, None]
    return masks


def test_traits_of_a_tube():
    found = traits(stack(tube()), MEASURED, 88.0)
    assert tuple(found) == TRAITS
    assert math.exp(found["length"]) == pytest.approx(64)
    assert math.exp(found["width"]) == pytest.approx(30, rel=0.01)
    assert math.exp(found["thickness"]) == pytest.approx(10, rel=0.03)
    assert found["slenderness"] == pytest.approx(64 / 30, rel=0.01)
    assert math.exp(found["volume"]) == pytest.approx(80)
    assert math.exp(found["growth"]) == pytest.approx(1.1)
    for height in ("0.05", "0.5", "0.95"):
        assert found[f"outer_{height}"] == pytest.approx(0, abs=1e-9)
        assert found[f"inner_{height}"] == pytest.approx(20 / 30, rel=0.01)
    assert found["elongation_0.5"] == pytest.approx(1, abs=0.01)
    assert (found["torn"], found["pieces"]) == (0.25, 1.0)
    assert (found["disagreement"], found["worst_disagreement"]) == (pytest.approx(0.1), pytest.approx(0.3))
    assert (found["gap"], found["open_ring"], found["base_unclear"]) == (0, 0, 0)


def test_a_cone_narrows_and_an_ellipse_is_long():
    masks = tube()
    for k in range(8):
        masks[:, :, 2 + k] = (np.hypot(X, Y) < 40 - 4 * k) & (np.hypot(X, Y) >= 20 - 2 * k)
    found = traits(stack(masks), MEASURED, 80.0)
    # At height h of eight slices the outline lies at 40 - 4 (8 h - 1/2).
    for height in (0.25, 0.5, 0.75):
        assert math.exp(found[f"outer_{height:g}"]) == pytest.approx((42 - 32 * height) / 40, rel=0.02)
        assert found[f"inner_{height:g}"] == pytest.approx(0.5, rel=0.05)
    long = traits(stack(tube(squeeze=1.5)), MEASURED, 80.0)
    assert long["elongation_0.5"] == pytest.approx(1.5, rel=0.02)


@pytest.mark.parametrize("pixels", [[(60, 60)], [(60, k) for k in range(50, 90)]])
def test_nothing_is_too_small_to_have_traits(pixels):
    masks = np.zeros((128, 128, 12), bool)
    for x, y in pixels:
        masks[x, y, 4] = True
    found = traits(stack(masks, flags=("open_ring", "gap")), MEASURED, 1.0)
    assert np.isfinite(list(found.values())).all()
    assert (found["open_ring"], found["gap"], found["base_unclear"]) == (1, 1, 0)


def flat(**weights: float) -> DiceModel:
    return DiceModel(math.log(0.1), dict.fromkeys(TRAITS, 0.0) | weights)


def test_a_model_is_linear_in_the_logarithm_of_the_error_and_has_bounds():
    found = dict.fromkeys(TRAITS, 0.0) | {"torn": 0.5, "length": 4.0}
    assert flat().dice(found) == pytest.approx(0.9)
    assert flat(torn=2.0, length=-0.1).dice(found) == pytest.approx(1 - 0.1 * math.exp(1.0 - 0.4))
    assert flat(length=-9.0).dice(found) == pytest.approx(0.98)
    assert flat(length=9e9).dice(found) == pytest.approx(0.4)


def test_the_pipeline_tells_it_and_flags_what_is_below_the_limit():
    pytest.importorskip("onnxruntime")
    bundle = load_bundle(TOY)
    engine = open_engine(bundle, "onnx", "cpu", 1)
    canonical = canonicalise(tube()[:, :, 2:10], np.diag([1.0, 1.0, 8.0, 1.0]))

    def run(**changes: object):
        told = replace(bundle, manifest=replace(bundle.manifest, **changes))
        return Pipeline(told, engine, steps=1).reconstruct(canonical, "ab")

    assert run().expected_dice is None
    assert "doubtful" not in run().flags
    limits = bundle.manifest.flag_limits
    sure = run(dice_model=flat(), flag_limits=limits | {"expected_dice": 0.89})
    assert sure.expected_dice == pytest.approx(0.9)
    assert "doubtful" not in sure.flags
    assert "doubtful" in run(dice_model=flat(), flag_limits=limits | {"expected_dice": 0.91}).flags
    # It is the stack at hand that counts.
    wide = run(dice_model=flat(width=0.1)).expected_dice
    assert wide == pytest.approx(1 - 0.1 * 30**0.1, rel=0.002)


@pytest.mark.parametrize("changes", [{"step_range_mm": (9.0, 14.0)}, {"flag_limits": {"few_slices": 9}}])
def test_nothing_is_expected_outside_the_training_and_that_is_doubtful(changes):
    pytest.importorskip("onnxruntime")
    bundle = load_bundle(TOY)
    canonical = canonicalise(tube()[:, :, 2:10], np.diag([1.0, 1.0, 8.0, 1.0]))
    told = replace(bundle, manifest=replace(bundle.manifest, dice_model=flat(), **changes))
    found = Pipeline(told, open_engine(told, "onnx", "cpu", 1), steps=1).reconstruct(canonical, "ab")
    assert found.expected_dice is None
    assert found.flags[0] == "doubtful"
    plain = replace(bundle, manifest=replace(bundle.manifest, **changes))
    assert (
        "doubtful"
        not in Pipeline(plain, open_engine(plain, "onnx", "cpu", 1), steps=1).reconstruct(canonical, "ab").flags
    )


def test_a_manifest_with_the_traits_of_another_version_is_refused(tmp_path):
    toy, weights = shutil.copytree(TOY, tmp_path / "toy"), dict.fromkeys(TRAITS, 0.0)
    edit_manifest(toy, lambda d: d.update(dice_model={"intercept": -2, "weights": weights}))
    assert load_bundle(toy).manifest.dice_model == DiceModel(-2.0, weights)
    del weights["torn"]
    weights["tornness"] = 1.0
    edit_manifest(toy, lambda d: d.update(dice_model={"intercept": -2, "weights": weights}))
    with pytest.raises(BundleError, match="dice_model is of another version: torn, tornness"):
        load_bundle(toy)
    weights = dict.fromkeys(TRAITS, 0.0) | {"torn": 1e308, "growth": -1e308}
    edit_manifest(toy, lambda d: d.update(dice_model={"intercept": -2, "weights": weights}))
    with pytest.raises(BundleError, match="a weight beyond 1e"):
        load_bundle(toy)
