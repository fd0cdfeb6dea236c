import numpy as np
import pytest
import trimesh

from m2s.data.wall_mesh import Refinement, Sheet, at_least, closed_wall, cut, signed_volume, square_rim, warp


def ball_sheet(radius, meridians, rings, reach=2.2, height=1.0):
    """Points of an ellipsoid of revolution, apex up, to the polar angle `reach`."""
    around = 2 * np.pi * np.arange(meridians)[:, None] / meridians
    polar = reach * np.arange(1, rings + 1)[None] / rings
    z = np.broadcast_to(height * radius * np.cos(polar), (meridians, rings))
    points = radius * np.stack([np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), z / radius], axis=-1)
    return Sheet(points, np.array([0.0, 0.0, height * radius]))


def test_refined_sphere_is_a_sphere():
    fine = Refinement(28, 28, (3, 2))(ball_sheet(30.0, 28, 28))
    assert fine.points.shape == (84, 56, 3)
    np.testing.assert_allclose(np.linalg.norm(fine.points, axis=-1), 30.0, atol=2e-3)


def test_refinement_keeps_the_points_given():
    rng = np.random.default_rng(0)
    sheet = ball_sheet(30.0, 12, 9)
    sheet = Sheet(sheet.points + rng.normal(0, 1, sheet.points.shape), sheet.apex)
    np.testing.assert_allclose(Refinement(12, 9, (3, 2))(sheet).points[::3, 1::2], sheet.points, atol=1e-9)


def test_closed_wall_is_closed_and_right_side_out():
    vertices, faces = closed_wall(ball_sheet(25.0, 40, 30), ball_sheet(33.0, 40, 30))
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.euler_number == 2
    assert signed_volume(vertices, faces) == pytest.approx(mesh.volume)
    # The part of a ball within the polar angle a, seen from the centre, is (1 - cos a) / 2 of it.
    part = (1 - np.cos(2.2)) / 2
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * (33**3 - 25**3) * part, rel=0.01)


def test_cut_leaves_a_flat_closed_rest():
    vertices, faces = closed_wall(ball_sheet(25.0, 60, 50), ball_sheet(33.0, 60, 50))
    normal = np.array([np.sin(0.1), 0.0, np.cos(0.1)])
    kept, kept_faces = cut(vertices, faces, normal, 3.0)
    mesh = trimesh.Trimesh(kept, kept_faces, process=False)
    assert mesh.is_watertight
    assert (kept @ normal).min() == pytest.approx(3.0, abs=1e-6)

    def cap(radius):
        return np.pi * (2 * radius**3 / 3 - radius**2 * 3 + 3**3 / 3)

    assert mesh.volume == pytest.approx(cap(33) - cap(25), rel=0.01)


@pytest.mark.parametrize("thin", [1.0, -2.0])
def test_thin_and_inverted_walls_get_the_least_thickness(thin):
    endo = ball_sheet(25.0, 28, 28)
    epi = at_least(endo, ball_sheet(25.0 + thin, 28, 28), 2.5)
    thickness = np.linalg.norm(epi.points, axis=-1) - 25.0
    assert thickness.min() > 2.45
    assert thickness.max() < 3.1
    assert np.linalg.norm(epi.apex) - 25.0 > 2.45


def test_thick_walls_are_left_alone():
    endo, epi = ball_sheet(25.0, 28, 28), ball_sheet(35.0, 28, 28)
    moved = np.linalg.norm(at_least(endo, epi, 2.5).points - epi.points, axis=-1)
    assert moved.max() < 0.05


def test_rim_is_squared_and_the_rest_untouched():
    endo, epi = ball_sheet(25.0, 28, 28), ball_sheet(33.0, 28, 28, reach=2.0)
    squared = square_rim(endo, epi)
    along = endo.points[:, -1] - endo.points[:, -2]
    across = squared.points[:, -1] - endo.points[:, -1]
    np.testing.assert_allclose((along * across).sum(axis=-1), 0, atol=1e-9)
    np.testing.assert_array_equal(squared.points[:, :18], epi.points[:, :18])


def test_warp_has_the_rms_asked_for():
    rng = np.random.default_rng(0)
    points = rng.uniform(-300, 300, (4000, 3))
    moved = [np.sqrt(((warp(points, 2.0, rng) - points) ** 2).mean()) for _ in range(20)]
    assert np.mean(moved) == pytest.approx(2.0, rel=0.05)
