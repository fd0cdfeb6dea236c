"""Mean absolute curvature of shapes whose curvature is known."""

import numpy as np
import pytest
import trimesh

from m2s.curvature import area_gradient, mean_absolute_curvature
from m2s_runtime.surface import Mesh, extract_surface, surface_area


def _mesh(body):
    return Mesh(np.asarray(body.vertices, np.float64), np.asarray(body.faces, np.int32))


def _sphere_grid(radius):
    x, y, z = np.meshgrid(np.arange(64) - 31.3, np.arange(64) - 31.6, 2 * np.arange(32) - 30.9, indexing="ij")
    return (np.sqrt(x**2 + y**2 + z**2) - radius).astype(np.float32)


@pytest.mark.parametrize("radius", [5.0, 20.0])
def test_a_sphere_has_the_curvature_one_over_r(radius):
    sphere = _mesh(trimesh.creation.icosphere(subdivisions=4, radius=radius))
    assert mean_absolute_curvature(sphere) == pytest.approx(1 / radius, rel=1e-3)
    inside_out = Mesh(sphere.vertices + 100, sphere.faces[:, ::-1])
    assert mean_absolute_curvature(inside_out) == pytest.approx(1 / radius, rel=1e-3)


def test_marching_cubes_of_exact_distances_adds_little_and_of_a_mask_much():
    distance = _sphere_grid(20.0)
    to_mm = np.diag([1.0, 1.0, 2.0, 1.0])
    assert mean_absolute_curvature(extract_surface(distance, to_mm)) == pytest.approx(1 / 20, rel=0.01)
    steps = np.where(distance < 0, -0.5, 0.5).astype(np.float32)
    assert mean_absolute_curvature(extract_surface(steps, to_mm)) > 3 / 20


def test_a_torus_has_half_of_one_over_r_as_a_bent_cylinder():
    torus = _mesh(trimesh.creation.torus(30.0, 8.0, major_sections=128, minor_sections=64))
    assert mean_absolute_curvature(torus) == pytest.approx(1 / 16, rel=0.005)


def test_a_cylinder_has_half_of_one_over_r_at_every_vertex_of_its_side():
    radius, around, rings, step = 10.0, 128, 8, 0.5
    angle = 2 * np.pi * np.arange(around) / around
    circle = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    vertices = np.concatenate([np.column_stack([circle, np.full(around, step * k)]) for k in range(rings)])
    here = np.arange(around * (rings - 1))
    right = here - here % around + (here + 1) % around
    lower, upper = np.stack([here, right, here + around], 1), np.stack([right, right + around, here + around], 1)
    tube = Mesh(vertices, np.concatenate([lower, upper]).astype(np.int32))
    inner = slice(around, around * (rings - 1))
    curvature = np.linalg.norm(area_gradient(tube)[inner], axis=1) / (2 * 2 * np.pi * radius / around * step)
    np.testing.assert_allclose(curvature, 1 / (2 * radius), rtol=2e-3)


def test_the_gradient_is_that_of_the_area():
    body = _mesh(trimesh.creation.icosphere(subdivisions=1, radius=3.0))
    rng = np.random.default_rng(0)
    vertices = body.vertices + rng.normal(0, 0.2, body.vertices.shape)
    direction, small = rng.normal(size=vertices.shape), 1e-6
    there, back = (surface_area(Mesh(vertices + s * small * direction, body.faces)) for s in (1, -1))
    slope = float((area_gradient(Mesh(vertices, body.faces)) * direction).sum())
    assert slope == pytest.approx((there - back) / (2 * small), rel=1e-6)


def test_a_mesh_without_area_is_refused():
    with pytest.raises(ValueError, match="without area"):
        mean_absolute_curvature(Mesh(np.zeros((3, 3)), np.array([[0, 1, 2]], np.int32)))
