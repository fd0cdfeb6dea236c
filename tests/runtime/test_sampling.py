import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates
from toy import TOY

from m2s_runtime.bundle import load_bundle
from m2s_runtime.ddim import draw_noise
from m2s_runtime.errors import UsageProblem
from m2s_runtime.grid import GRID, SPACING
from m2s_runtime.manifest import Manifest
from m2s_runtime.options import Options
from m2s_runtime.sampling import Sampling, chosen_sampling, mean_sdg, start_noise, vertex_spread
from m2s_runtime.surface import extract_surface

KEY = hashlib.sha256(b"a").hexdigest()
SHAPE = (8, 4, 4, 2)
AFFINE = np.array([[0, -1.0, 0, 30], [0.8, 0, 1.2, -5], [-0.6, 0, 1.6, 12], [0, 0, 0, 1]])
RADIUS = np.linalg.norm((np.moveaxis(np.indices(GRID), 0, -1) - np.array([63.5, 63.5, 31.5])) * SPACING, axis=-1)
OFFSETS = np.array([-1.0, 0.5, 0.2, 0.9])


def balls(slope: float = 1.0) -> np.ndarray:
    return np.stack([slope * (RADIUS - 30 + offset) for offset in OFFSETS]).astype(np.float32)


def test_one_sample_starts_as_it_always_did() -> None:
    np.testing.assert_array_equal(start_noise(KEY, 3, 1, SHAPE)[0], draw_noise(KEY, 3, 0, SHAPE))
    assert start_noise(KEY, 3, 1, SHAPE).dtype == np.float32


def test_samples_do_not_depend_on_their_number() -> None:
    many = start_noise(KEY, 0, 4, SHAPE)
    assert many.shape == (4, *SHAPE)
    np.testing.assert_array_equal(many[:2], start_noise(KEY, 0, 2, SHAPE))
    np.testing.assert_array_equal(many[3], draw_noise(KEY, 0, 3, SHAPE))
    assert len({sample.tobytes() for sample in many}) == 4


def test_temperature_cools_a_single_sample_only() -> None:
    one = start_noise(KEY, 0, 1, SHAPE)
    np.testing.assert_array_equal(start_noise(KEY, 0, 1, SHAPE, 0.5), one / 2)
    assert not start_noise(KEY, 0, 1, SHAPE, 0.0).any()
    np.testing.assert_array_equal(start_noise(KEY, 0, 2, SHAPE, 0.5), start_noise(KEY, 0, 2, SHAPE))


def test_the_mean_of_one_is_itself_and_of_several_their_mean() -> None:
    sdgs = np.random.default_rng(0).normal(size=(3, 4, 4, 4)).astype(np.float32)
    sdgs[0, 0, 0, 0] = -0.0
    assert mean_sdg(sdgs[:1]).tobytes() == sdgs[0].tobytes()
    np.testing.assert_allclose(mean_sdg(sdgs), (sdgs[0].astype(float) + sdgs[1] + sdgs[2]) / 3, atol=1e-6)
    assert mean_sdg(sdgs).dtype == np.float32


@pytest.mark.parametrize("slope", [0.6, 1.0, 1.8])
def test_spread_of_concentric_balls_is_that_of_their_radii(slope: float) -> None:
    """Whatever the slope of the distances and the affine, the surface itself lies std(radii) away."""
    sdgs = balls(slope)
    mesh = extract_surface(mean_sdg(sdgs), AFFINE)
    spread = vertex_spread(mesh.vertices, AFFINE, sdgs)
    assert spread.shape == (len(mesh.vertices),)
    assert spread.dtype == np.float32
    np.testing.assert_allclose(spread, OFFSETS.std(ddof=1), rtol=0.03)
    np.testing.assert_allclose(vertex_spread(mesh.vertices, AFFINE, sdgs, 2.5), 2.5 * spread, rtol=1e-5)


def test_spread_is_larger_where_samples_differ_more() -> None:
    sdgs = balls()
    sdgs[0, :, :, 32:] += 3.0
    sdgs[1, :, :, 32:] -= 3.0
    mesh = extract_surface(mean_sdg(sdgs), np.diag([*SPACING, 1.0]))
    spread = vertex_spread(mesh.vertices, np.diag([*SPACING, 1.0]), sdgs)
    far = mesh.vertices[:, 2] > 80
    assert spread[far].min() > 2 * spread[mesh.vertices[:, 2] < 46].max()


def test_few_samples_are_pooled_with_their_neighbours() -> None:
    """Of fields that vary by 0.5 mm everywhere a few samples find 0.5 mm nearly everywhere."""
    rng = np.random.default_rng(0)
    fields = [gaussian_filter(rng.normal(size=GRID), (2, 2, 1), mode="wrap") for _ in range(6)]
    sdgs = np.stack([RADIUS - 30 + 0.5 * field / field.std() for field in fields]).astype(np.float32)
    affine = np.diag([*SPACING, 1.0])
    mesh = extract_surface(mean_sdg(sdgs), affine)
    alone = map_coordinates(sdgs.std(axis=0, ddof=1), mesh.vertices.T / np.array(SPACING)[:, None], order=1)
    spread = vertex_spread(mesh.vertices, affine, sdgs)
    assert spread.mean() == pytest.approx(0.5, rel=0.1)
    assert spread.std() < 0.5 * alone.std()


@pytest.mark.parametrize(("slope", "counted"), [(0.1, 0.5), (4.0, 2.0)])
def test_extreme_slopes_are_limited(slope: float, counted: float) -> None:
    sdgs = balls(slope)
    mesh = extract_surface(mean_sdg(sdgs), np.eye(4))
    np.testing.assert_allclose(
        vertex_spread(mesh.vertices, np.eye(4), sdgs), slope * OFFSETS.std(ddof=1) / counted, rtol=0.03
    )


def manifest(**changed: object) -> Manifest:
    return replace(load_bundle(TOY).manifest, **{"steps": 2, "temperature": 0.0, "sample_steps": 7, **changed})


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({}, Sampling(2, 0.0)),
        ({"quality": "fast"}, Sampling(2, 0.0)),
        ({"quality": "exact"}, Sampling(10, 1.0)),
        ({"quality": "exact", "samples": 3}, Sampling(10, 1.0)),
        ({"steps": 2}, Sampling(2, 0.0)),
        ({"steps": 5}, Sampling(5, 1.0)),
        ({"samples": 3}, Sampling(7, 1.0)),
        ({"samples": 3, "steps": 2}, Sampling(2, 1.0)),
    ],
)
def test_options_become_steps_and_a_temperature(asked: dict[str, Any], wanted: Sampling) -> None:
    assert chosen_sampling(manifest(), **{"steps": None, "quality": None, "samples": 1, **asked}) == wanted


def test_a_bundle_of_ten_damped_steps_is_exact_undamped_and_has_nothing_fast() -> None:
    damped = manifest(steps=10, temperature=0.25)
    assert chosen_sampling(damped, None, None, 1) == Sampling(10, 0.25)
    assert chosen_sampling(damped, None, "exact", 1) == Sampling(10, 1.0)
    with pytest.raises(UsageProblem, match="has 10 steps, no fewer; say how many with --steps"):
        chosen_sampling(damped, None, "fast", 1)


@pytest.mark.parametrize(
    ("asked", "match"),
    [({"quality": "exact", "steps": 10}, "contradict"), ({"quality": "fast", "samples": 2}, "copies")],
)
def test_options_that_contradict_each_other_are_refused(asked: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageProblem, match=match):
        Options(**asked)


def test_what_counts_for_resuming_is_what_the_options_came_to() -> None:
    bound = {"engine": "onnx", "steps": 10, "temperature": 1.0}
    assert Options(quality="exact").fingerprint(**bound) == Options(steps=10).fingerprint(**bound)
    assert Options(steps=10).fingerprint(**bound) != Options().fingerprint(**{**bound, "temperature": 0.5})
