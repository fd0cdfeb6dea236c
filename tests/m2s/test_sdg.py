import igl
import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import marching_cubes

from m2s.data.sdg import signed_distance_grid, voxelise
from m2s_runtime.errors import BadMesh, NotFinite
from m2s_runtime.grid import GRID, SPACING

SMALL = (24, 22, 13)
MIDDLE = np.array([63.2, 61.9, 64.4])


def centres(shape: tuple[int, int, int]) -> np.ndarray:
    return np.moveaxis(np.indices(shape), 0, -1) * np.array(SPACING)


def shell(outer: float, inner: float, subdivisions: int = 5) -> tuple[np.ndarray, np.ndarray]:
    ball = trimesh.creation.icosphere(subdivisions=subdivisions)
    vertices = np.concatenate([ball.vertices * outer, ball.vertices * inner]) + MIDDLE
    return vertices, np.concatenate([ball.faces, ball.faces[:, ::-1] + len(ball.vertices)])


def test_shell_equals_its_formula():
    vertices, faces = shell(40.0, 30.0)
    radius = np.linalg.norm(centres(GRID) - MIDDLE, axis=-1)
    found, wanted = signed_distance_grid(vertices, faces), np.abs(radius - 35) - 5
    assert found.dtype == np.float32
    assert np.abs(found - wanted).max() < 0.03  # the facets lie inside their sphere
    np.testing.assert_array_equal(found < 0, voxelise(vertices, faces, GRID, SPACING))
    clear = np.abs(wanted) > 0.03
    np.testing.assert_array_equal((found < 0)[clear], (wanted < 0)[clear])


def test_turned_body_equals_winding_numbers():
    body = trimesh.creation.annulus(4.0, 8.0, 15.0)
    body.apply_transform(trimesh.transformations.rotation_matrix(0.7, [1, 2, 0.5]))
    body.apply_translation([11.7, 10.9, 12.3])
    turns = igl.winding_number(np.array(body.vertices), np.array(body.faces), centres(SMALL).reshape(-1, 3))
    inside = turns.reshape(SMALL) > 0.5
    assert inside.any()
    np.testing.assert_array_equal(voxelise(body.vertices, body.faces, SMALL, SPACING), inside)


@pytest.mark.parametrize("seed", range(4))
def test_marching_cubes_of_any_voxels_gives_the_voxels_back(seed: int):
    """Vertices midway between centres: columns of voxels run straight through edges and corners of triangles."""
    mask = np.random.default_rng(seed).random(SMALL) < 0.5
    vertices, faces, _, _ = marching_cubes(np.pad(mask, 1).astype(np.float32), 0.5, spacing=SPACING, method="lorensen")
    np.testing.assert_array_equal(voxelise(vertices - np.array(SPACING), faces, SMALL, SPACING), mask)


def test_box_on_the_centres_is_half_open():
    """Corners exactly on voxel centres: of two opposite sides one belongs to the box."""
    box = trimesh.creation.box(bounds=[[4, 5, 6], [10, 12, 16]])
    found = voxelise(box.vertices, box.faces, SMALL, SPACING)
    wanted = np.zeros(SMALL, bool)
    wanted[4:10, 5:12, 3:8] = True
    np.testing.assert_array_equal(found, wanted)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.integers(-2, 26)] * 3), min_size=4, max_size=30), st.integers(1, 4))
def test_solids_that_share_a_wall_claim_every_centre_once(points: list[tuple[int, int, int]], parts: int):
    """Tetrahedra about a common point, corners on the lattice: the parity of the whole is the sum of its parts."""
    corners = np.array(points) / parts
    apex = corners.mean(axis=0)
    total, hull = np.zeros(SMALL, int), [corners[:3], corners[1:4]]
    for triangle in hull:
        vertices = np.concatenate([triangle, [apex]])
        total += voxelise(vertices, [[0, 1, 2], [0, 1, 3], [1, 2, 3], [2, 0, 3]], SMALL, SPACING)
    faces = [[0, 1, 2], [1, 2, 3], [0, 1, 4], [2, 0, 4], [2, 3, 4], [3, 1, 4]]
    both = voxelise(np.concatenate([corners[:4], [apex]]), faces, SMALL, SPACING)
    np.testing.assert_array_equal(both, total % 2 == 1)


def test_winding_and_what_lies_outside_the_grid_do_not_matter():
    vertices, faces = shell(40.0, 30.0, subdivisions=3)
    whole = voxelise(vertices, faces, GRID, SPACING)
    np.testing.assert_array_equal(voxelise(vertices, faces[:, ::-1], GRID, SPACING), whole)
    corner = (40, 50, 30)
    np.testing.assert_array_equal(voxelise(vertices, faces, corner, SPACING), whole[:40, :50, :30])
    assert not voxelise(vertices + 500, faces, GRID, SPACING).any()
    assert voxelise(vertices - MIDDLE, faces, (50, 50, 30), SPACING).any()


def test_mesh_without_an_inside_is_refused():
    vertices, faces = shell(40.0, 30.0, subdivisions=3)
    with pytest.raises(BadMesh, match="open"):
        voxelise(vertices, faces[:-300], GRID, SPACING)
    with pytest.raises(BadMesh, match="open"):
        signed_distance_grid(vertices, faces[:-300])
    with pytest.raises(BadMesh, match="names vertex"):
        voxelise(vertices, faces + 10_000, GRID, SPACING)
    with pytest.raises(BadMesh, match=r"\(V, 3\)"):
        voxelise(vertices[:, :2], faces, GRID, SPACING)
    with pytest.raises(NotFinite):
        voxelise(vertices * np.nan, faces, GRID, SPACING)
