import numpy as np
import pytest
import trimesh

from m2s.data.heart import seat
from m2s.data.phantom import phantom, shell
from m2s_runtime.errors import WallOutOfRange
from m2s_runtime.slices import pool_features

SEEDS = range(6)


def cut_ellipsoid_ml(radius, height, base):
    """Integral of the cross-sections of an ellipsoid of revolution from `base` to the apex."""

    def primitive(z):
        return np.pi * radius**2 * (z - z**3 / (3 * height**2))

    return primitive(height) - primitive(base)


def test_shell_has_the_analytic_volume():
    vertices, faces = shell(25.0, 50.0, 10.0, -12.0)
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    expected = cut_ellipsoid_ml(35, 60, -12) - cut_ellipsoid_ml(25, 50, -12)
    assert mesh.volume == pytest.approx(expected, rel=0.003)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_phantom_is_a_seated_heart(seed):
    heart = phantom(seed)
    mesh = trimesh.Trimesh(heart.vertices, heart.faces, process=False)
    assert mesh.is_watertight
    assert mesh.euler_number == 2
    assert mesh.volume > 0
    assert heart.mask.sum() * 2 == pytest.approx(mesh.volume, rel=0.02)
    area = heart.mask.any(axis=2).sum()
    assert area < 128 * 128
    filled = [pool_features(heart.mask[:, :, [p]])[0, 2] for p in np.flatnonzero(heart.mask.any(axis=(0, 1)))]
    assert filled[len(filled) // 4] > filled[-len(filled) // 4]
    assert filled[-1] == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_mask_is_trimesh_inside(seed):
    heart = phantom(seed)
    mesh = trimesh.Trimesh(heart.vertices, heart.faces, process=False)
    rng = np.random.default_rng(seed)
    picked = np.stack([rng.integers(20, 108, 80), rng.integers(20, 108, 80), rng.integers(0, 60, 80)], axis=1)
    inside = np.abs(winding(mesh, picked * (1.0, 1.0, 2.0))) > 0.5
    np.testing.assert_array_equal(heart.mask[tuple(picked.T)], inside)


def winding(mesh, points):
    """Winding number by solid angles (van Oosterom and Strackee)."""
    a, b, c = (mesh.vertices[mesh.faces[:, k]][None] - points[:, None] for k in range(3))
    la, lb, lc = (np.linalg.norm(v, axis=2) for v in (a, b, c))
    above = np.einsum("pfc,pfc->pf", a, np.cross(b, c))
    below = (
        la * lb * lc
        + np.einsum("pfc,pfc->pf", a, b) * lc
        + np.einsum("pfc,pfc->pf", b, c) * la
        + np.einsum("pfc,pfc->pf", c, a) * lb
    )
    return np.arctan2(above, below).sum(axis=1) / (2 * np.pi)


@pytest.mark.parametrize("plane_mm", [1.4, 2.0, 2.8])
def test_same_seed_same_phantom_at_any_step(plane_mm):
    one, two = phantom(4, plane_mm), phantom(4, plane_mm)
    assert one.digest == two.digest
    assert one.digest != phantom(5, plane_mm).digest
    middle = (one.vertices[:, 2].min() + one.vertices[:, 2].max()) / 2
    assert 0 < middle < 60 * plane_mm
    # Planes p and the grid's share their middle: 29.5 planes here is plane 31.5 of 2 mm there.
    assert one.grid_vertices[:, 2] - 63.0 == pytest.approx(one.vertices[:, 2] - 29.5 * plane_mm)


def test_a_heart_too_small_for_the_step_is_refused():
    vertices, faces = shell(5.0, 8.0, 3.0, -1.0)
    with pytest.raises(WallOutOfRange, match="fewer than 3"):
        seat("tiny", vertices, faces, np.random.default_rng(0), plane_mm=2.8)


def test_a_heart_too_large_is_shrunk_to_the_grid():
    vertices, faces = shell(60.0, 150.0, 10.0, -20.0)
    heart = seat("giant", vertices, faces, np.random.default_rng(0))
    assert heart.vertices.min() > -1.5
    assert heart.vertices[:, 2].max() < 119.5
    assert heart.mask.sum() * 2 == pytest.approx(trimesh.Trimesh(heart.vertices, heart.faces).volume, rel=0.02)
