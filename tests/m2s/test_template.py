"""The template is closed and even at every thickness; self-intersections are counted as libigl counts them."""

import igl.predicates
import numpy as np
import pytest
import trimesh
from scipy.spatial import KDTree

from m2s.data.phantom import shell
from m2s.data.self_intersection import orientation, self_intersections
from m2s.data.template import BASE_MM, LENGTH_MM, WALL_MM, WIDTH_MM, make_template
from m2s_runtime.surface import Mesh


def igl_count(mesh: Mesh) -> int:
    _, pairs, _ = igl.predicates.find_self_intersections(
        np.asfortranarray(mesh.vertices), np.asfortranarray(mesh.faces.astype(np.int64))
    )
    return len(pairs)


@pytest.fixture(scope="module")
def template():
    return make_template()


@pytest.mark.parametrize("wall", [3.0, WALL_MM, 25.0])
def test_closed_without_handles_and_embedded(template, wall):
    body = trimesh.Trimesh(template.vertices(wall), template.faces, process=False)
    assert body.is_watertight
    assert body.is_winding_consistent
    assert body.volume > 0
    assert body.euler_number == 2
    assert body.body_count == 1
    assert self_intersections(Mesh(template.vertices(wall), template.faces)) == 0


def test_even_triangles(template):
    body = trimesh.Trimesh(template.vertices(), template.faces, process=False)
    assert 4000 < len(body.vertices) < 8000
    assert np.degrees(body.face_angles).min() > 35
    assert body.area_faces.max() / body.area_faces.min() < 3


def test_it_lies_on_both_ellipsoids_and_the_cut(template):
    vertices = template.vertices()
    middle = (template.depth > 0) & (template.depth < 1)
    np.testing.assert_allclose(vertices[middle, 2], BASE_MM, atol=1e-9)
    for depth in (0.0, 1.0):
        x, y, z = vertices[template.depth == depth].T
        width, length = WIDTH_MM + depth * WALL_MM, LENGTH_MM + depth * WALL_MM
        np.testing.assert_allclose((x**2 + y**2) / width**2 + z**2 / length**2, 1, atol=1e-9)
        assert z.min() == pytest.approx(BASE_MM)
        assert z.max() == pytest.approx(length)
    fine, faces = shell(WIDTH_MM, LENGTH_MM, WALL_MM, BASE_MM)
    surface = trimesh.Trimesh(fine, faces, process=False)
    assert trimesh.Trimesh(vertices, template.faces).volume == pytest.approx(surface.volume, rel=0.01)
    assert KDTree(vertices).query(fine)[0].max() < 3


def test_two_spheres_that_overlap_are_counted_as_libigl_does():
    one = trimesh.creation.icosphere(subdivisions=2, radius=10)
    turned = one.vertices @ trimesh.transformations.rotation_matrix(0.7, [1, 2, 3])[:3, :3].T + (9.13, 2.4, 1.7)
    both = Mesh(np.concatenate([one.vertices, turned]), np.concatenate([one.faces, one.faces + len(one.vertices)]))
    count = self_intersections(both)
    assert count == igl_count(both) > 20
    apart = Mesh(both.vertices + np.repeat([[0, 0, 0], [30, 0, 0]], len(one.vertices), axis=0), both.faces)
    assert self_intersections(apart) == 0


@pytest.mark.parametrize("noise", [0.2, 0.9])
def test_a_crumpled_template_is_counted_as_libigl_does(template, noise):
    rng = np.random.default_rng(3)
    crumpled = Mesh(template.vertices() + noise * rng.standard_normal((len(template.depth), 3)), template.faces)
    assert self_intersections(crumpled) == igl_count(crumpled)
    assert (self_intersections(crumpled) > 0) == (noise > 0.5)


def test_one_triangle_through_another_and_one_that_only_touches():
    flat = [[0, 0, 0], [4, 0, 0], [0, 4, 0]]
    faces = np.array([[0, 1, 2], [3, 4, 5]], np.int32)
    through = Mesh(np.array([*flat, [1, 1, -1], [1, 1, 2], [9, 9, 1]], float), faces)
    touching = Mesh(np.array([*flat, [1, 1, 0], [1, 1, 2], [9, 9, 1]], float), faces)
    assert self_intersections(through) == 1
    assert self_intersections(touching) == 0
    # A vertex of another fan pushed through a triangle that shares a corner with it.
    shared = Mesh(np.array([*flat, [2, 1, -1], [2, 1, 1]], float), np.array([[0, 1, 2], [0, 3, 4]], np.int32))
    assert self_intersections(shared) == 1


def test_one_stretched_triangle_does_not_hide_what_it_pierces(template):
    vertices = template.vertices()
    vertices[np.argmax(vertices[:, 2])] += (90.0, 15.0, -60.0)
    mesh = Mesh(vertices, template.faces)
    assert self_intersections(mesh) == igl_count(mesh) > 0


def test_signs_are_exact_where_rounding_would_decide():
    corner = np.array([[0.5, 0.5, 0.5]])
    a, b = np.array([[12.0, 12.0, 12.0]]), np.array([[24.0, 24.0, 24.0]])
    assert orientation(corner, a, b, np.array([[3.0, 1.0, 2.0]]))[0] == 0
    # Four points of one plane, moved by the least that a double can be.
    base = np.array([[0.1, 0.2, 0.3], [0.7, 0.1, 0.9], [0.3, 0.8, 0.4]])
    inside = base[0] + 0.25 * (base[1] - base[0]) + 0.25 * (base[2] - base[0])
    from fractions import Fraction

    for nudge in (-2, -1, 0, 1, 2):
        point = inside.copy()
        point[2] += nudge * np.spacing(point[2])
        rows = [[Fraction(float(v)) - Fraction(float(w)) for v, w in zip(r, point, strict=True)] for r in base]
        minors = ((0, 1, 2), (1, 2, 0), (2, 0, 1))
        exact = sum(rows[0][i] * (rows[1][j] * rows[2][k] - rows[1][k] * rows[2][j]) for i, j, k in minors)
        assert orientation(*(r[None] for r in base), point[None])[0] == np.sign(float(exact))
