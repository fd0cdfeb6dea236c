"""Slices of a known wall, moved by known amounts, come back to the wall; what cannot be judged stays."""

from pathlib import Path

import numpy as np
import pytest

from m2s_runtime.agreement import agreement, sections
from m2s_runtime.bundle import load_bundle
from m2s_runtime.pipeline import Pipeline
from m2s_runtime.placement import canonicalise
from m2s_runtime.refine import STILL_MM, register
from m2s_runtime.slices import pool_features, signed_distance, wall_slices
from runtime import truth

STILL = np.zeros((12, 2), np.float32)


@pytest.fixture(scope="module")
def sdg() -> np.ndarray:
    return truth.distances()


def moved(seed: int, reach: float) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-reach, reach, (12, 2)).astype(np.float32)


@pytest.mark.parametrize("step", [7.0, 10.0])
@pytest.mark.parametrize("reach", [0.5, 1.5, 3.9])
def test_known_shifts_of_a_true_wall_are_found(sdg, step, reach) -> None:
    shifts = moved(4, reach)
    masks = truth.slices(shifts, step)
    held, cut = wall_slices(masks), sections(sdg, step)
    assert held.sum() >= 8
    distances = signed_distance(masks, 12.0)
    found = register(distances, STILL, cut)
    error = abs(found - shifts)
    assert error[held].mean() <= 0.03
    assert error[pool_features(masks)[:, 2] > 0].max() <= 0.1
    # A solid cap 20 mm across has few pixels along its contour.
    assert error[held].max() <= 0.15
    assert np.nanmean(agreement(distances, found, cut)) > 0.97
    np.testing.assert_array_equal(found[~held], 0)


def test_the_start_does_not_matter(sdg) -> None:
    masks, cut = truth.slices(moved(1, 2.0)), sections(sdg, 10.0)
    distances = signed_distance(masks, 12.0)
    found = [register(distances, start, cut)[wall_slices(masks)] for start in (STILL, moved(2, 1.5))]
    assert abs(found[0] - found[1]).max() < 0.02


def test_what_agrees_stays(sdg) -> None:
    masks = truth.slices(STILL)
    found = register(signed_distance(masks, 12.0), STILL, sections(sdg, 10.0))
    assert abs(found).max() < STILL_MM


def test_half_of_a_ring_is_enough(sdg) -> None:
    shifts = moved(5, 2.0)
    masks = truth.slices(shifts)
    masks[:60, :, 3] = False
    masks[:, 60:, 5] = False
    found = register(signed_distance(masks, 12.0), STILL, sections(sdg, 10.0))
    assert abs(found - shifts)[wall_slices(masks)].max() <= 0.3


def test_a_slice_that_misses_the_reconstruction_keeps_its_shift(sdg) -> None:
    masks, start = truth.slices(STILL), moved(6, 1.0)
    cut = sections(sdg, 10.0)
    cut[:, :, 3] = 5.0
    cut[:, :, 4] = np.inf
    found = register(signed_distance(masks, 12.0), start, cut)
    np.testing.assert_array_equal(found[[3, 4]], start[[3, 4]])
    assert abs(found[5:9]).max() < 0.1


def test_no_slice_moves_farther_than_four_millimetres(sdg) -> None:
    masks, start = truth.slices(np.full((12, 2), 9.0)), moved(7, 1.0)
    found = register(signed_distance(masks, 12.0), start, sections(sdg, 10.0))
    assert np.isfinite(found).all()
    assert abs(found - start).max() <= 4.0 + 1e-5


class _Fading:
    """Networks that know the answer, until super-resolution, asked again, finds no wall any more."""

    def __init__(self, sdg: np.ndarray) -> None:
        self.sdg, self.asked = sdg, 0

    def run(self, graph: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if graph == "sr":
            self.asked += 1
            planes = np.repeat(inputs["slices"] < 0, 5, axis=-1).astype(np.float32)
            return {"prob": planes * (self.asked == 1)}
        batch = len(next(iter(inputs.values())))
        answers = {"mc": ("shifts", np.zeros((batch, 12, 2), np.float32)), "decode": ("sdg", self.sdg[None, None])}
        answers |= {"encode": ("zc", np.zeros((batch, 1), np.float32)), "denoise": ("eps", np.zeros_like)}
        name, answer = answers[graph]
        return {name: answer(inputs["z"]) if callable(answer) else answer}


def test_a_pass_that_finds_no_wall_leaves_what_the_one_before_found(sdg) -> None:
    bundle = load_bundle(str(Path(__file__).parents[1] / "data" / "toy_bundle"))
    stack = canonicalise(truth.slices(moved(3, 2.0)), np.diag([1.0, 1.0, 10.0, 1.0]))
    engine = _Fading(sdg)
    result = Pipeline(bundle, engine, steps=1, refine=3).reconstruct(stack, "0" * 64)
    assert engine.asked == 2
    plain = Pipeline(bundle, _Fading(sdg), steps=1).reconstruct(stack, "0" * 64)
    np.testing.assert_array_equal(result.mesh.vertices, plain.mesh.vertices)
    np.testing.assert_array_equal(result.shifts, plain.shifts)
