"""Metrics against analytic shapes, libigl and MONAI."""

import igl
import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from m2s.metrics import (
    SampledSurface,
    best_inplane_shift_dice,
    cd_floor,
    cd_paper,
    dice,
    shift_error,
    surface_distance,
)
from m2s.triangles import TriangleIndex, point_triangle_squared, sample_surface
from m2s_runtime.surface import Mesh


def _mesh(body: trimesh.Trimesh) -> Mesh:
    return Mesh(np.asarray(body.vertices, np.float64), np.asarray(body.faces, np.int32))


def _sphere(radius: float, subdivisions: int = 4) -> Mesh:
    return _mesh(trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius))


def test_dice_equals_monai_and_treats_empty_masks_as_equal():
    metrics = pytest.importorskip("monai.metrics")
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 9, 8, 7)) < 0.4
    expected = metrics.compute_dice(*(torch.from_numpy(m[None, None].astype(np.float32)) for m in (a, b))).item()
    assert dice(a, b) == pytest.approx(expected, abs=1e-6)
    assert dice(np.zeros_like(a), np.zeros_like(a)) == 1
    with pytest.raises(ValueError, match="different shapes"):
        dice(a, b[1:])


def test_point_triangle_distance_equals_libigl_for_every_region_and_degenerate_triangles():
    rng = np.random.default_rng(2)
    corners = rng.normal(size=(300, 3, 3)) * 5
    corners[::10, 2] = corners[::10, 0]  # a segment
    corners[::25] = corners[::25, :1]  # a point
    corners[5::10, 2] = corners[5::10].mean(axis=1) + 1e-9  # a sliver
    points = rng.normal(size=(300, 3)) * 8
    found = point_triangle_squared(points, corners)
    for point, triangle, value in zip(points, corners, found, strict=True):
        expected = igl.point_mesh_squared_distance(point[None], triangle, np.array([[0, 1, 2]]))[0]
        assert value == pytest.approx(np.ravel(expected)[0], rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("body", ["fine", "box", "cylinder"])
def test_indexed_distance_equals_libigl_near_and_far(body):
    shapes = {
        "fine": trimesh.creation.icosphere(subdivisions=4, radius=30),
        "box": trimesh.creation.box(extents=(60, 40, 0.5)),
        "cylinder": trimesh.creation.cylinder(radius=20, height=90),
    }
    mesh = _mesh(shapes[body])
    points = np.random.default_rng(3).uniform(-60, 60, (300, 3))
    expected = np.sqrt(igl.point_mesh_squared_distance(points, mesh.vertices, mesh.faces.astype(np.int64))[0])
    np.testing.assert_allclose(TriangleIndex.of(mesh).distance(points), np.ravel(expected), atol=1e-9)


def test_samples_lie_on_the_surface_and_follow_the_area():
    mesh = _mesh(trimesh.creation.box(extents=(10, 20, 30)))
    points = sample_surface(mesh, 20_000, np.random.default_rng(4))
    np.testing.assert_allclose(TriangleIndex.of(mesh).distance(points[:500]), 0, atol=1e-9)
    on_largest_pair = np.isclose(np.abs(points[:, 0]), 5)
    assert on_largest_pair.mean() == pytest.approx(20 * 30 / (10 * 20 + 10 * 30 + 20 * 30), abs=0.015)
    with pytest.raises(ValueError, match="without area"):
        sample_surface(Mesh(np.zeros((3, 3)), np.array([[0, 1, 2]], np.int32)), 10, np.random.default_rng(5))


def test_concentric_spheres_are_their_gap_apart():
    inner, outer = SampledSurface.of(_sphere(30), "prediction"), SampledSurface.of(_sphere(32), "truth")
    distance = surface_distance(inner, outer)
    assert distance.assd == pytest.approx(2, abs=0.02)
    assert distance.hd95 == pytest.approx(2, abs=0.1)
    # Nearest samples miss by the gap and by the scatter of the samples, which is what the floor measures.
    assert cd_paper(inner, outer) == pytest.approx(2 * 2**2 + cd_floor(4 * np.pi * 31**2), rel=0.05)


def test_hd95_is_the_worse_direction_and_equals_libigl_on_the_same_samples():
    small, large = _mesh(trimesh.creation.box(extents=(30, 30, 5))), _mesh(trimesh.creation.box(extents=(30, 30, 20)))
    a, b = SampledSurface.of(small, "prediction"), SampledSurface.of(large, "truth")

    def directed(points, mesh):
        squared = igl.point_mesh_squared_distance(points, mesh.vertices, mesh.faces.astype(np.int64))[0]
        return np.sqrt(np.ravel(squared))

    there, back = directed(a.points, large), directed(b.points, small)
    found = surface_distance(a, b)
    assert found.hd95 == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), abs=1e-6)
    assert found.assd == pytest.approx((there.mean() + back.mean()) / 2, abs=1e-6)


def test_a_surface_against_itself_scores_its_floor():
    sphere = _sphere(50)
    prediction, truth = SampledSurface.of(sphere, "prediction"), SampledSurface.of(sphere, "truth")
    assert cd_paper(prediction, truth) == pytest.approx(cd_floor(truth.area), rel=0.05)
    assert cd_floor(34_000) == pytest.approx(4.33, abs=0.01)  # as measured on the paper's hearts
    assert surface_distance(prediction, truth).assd == pytest.approx(0, abs=1e-9)


def test_same_mesh_scores_the_same_twice():
    meshes = _sphere(30), _sphere(31)
    first, second = (
        cd_paper(SampledSurface.of(meshes[0], "prediction"), SampledSurface.of(meshes[1], "truth")) for _ in range(2)
    )
    assert first == second


def test_shift_error_separates_the_common_part():
    wall = np.array([False, True, True, True, False])
    true = np.array([[9, 9], [1, 0], [0, 1], [2, 2], [9, 9]], float)
    predicted = true + np.array([[7, 7], [3, -1], [2, -2], [4, 0], [7, 7]], float)
    error = shift_error(predicted, true, wall)
    assert error.raw == pytest.approx((3 + 1 + 2 + 2 + 4 + 0) / 6)
    assert error.relative == pytest.approx((0 + 0 + 1 + 1 + 1 + 1) / 6)
    assert error.common == pytest.approx((3 + 1) / 2)
    with pytest.raises(ValueError, match="holds wall"):
        shift_error(predicted, true, np.zeros(5, bool))
    with pytest.raises(ValueError, match="shifts"):
        shift_error(predicted[:4], true[:4], wall)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 3))
def test_best_shift_equals_trying_them_all(seed, radius):
    rng = np.random.default_rng(seed)
    a, b = rng.random((2, 10, 9, 2)) < 0.3
    steps = range(-radius, radius + 1)
    total = max(a.sum() + b.sum(), 1)
    tried = [2 * (ndimage.shift(a, (x, y, 0), order=0) & b).sum() / total for x in steps for y in steps]
    found, (x, y) = best_inplane_shift_dice(a, b, radius)
    assert found == pytest.approx(max(tried))
    assert 2 * (ndimage.shift(a, (x, y, 0), order=0) & b).sum() / total == pytest.approx(found)


def test_best_shift_finds_a_moved_ring_and_prefers_to_stay():
    x, y = np.mgrid[:60, :60]
    ring = (np.hypot(x - 25, y - 30) < 15) & (np.hypot(x - 25, y - 30) > 8)
    assert best_inplane_shift_dice(ring, np.roll(ring, (5, -3), (0, 1)), 6) == (1, (5, -3))
    empty = np.zeros_like(ring)
    assert best_inplane_shift_dice(ring, empty, 4) == (0, (0, 0))
    assert best_inplane_shift_dice(empty, empty, 4) == (1, (0, 0))
    with pytest.raises(ValueError, match="different shapes"):
        best_inplane_shift_dice(ring, ring[1:], 1)
