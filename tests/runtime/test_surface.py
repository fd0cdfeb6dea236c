import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from m2s_runtime.errors import BadAffine, EmptyWall, NotFinite
from m2s_runtime.grid import GRID, SPACING
from m2s_runtime.surface import Mesh, Topology, extract_surface, signed_volume, surface_area, topology

TO_MM = np.diag([*SPACING, 1.0])
MIRRORED = np.diag([-1.0, 1.0, 2.0, 1.0])
OBLIQUE = np.array([[0.6, -0.8, 0.0, -210.0], [0.48, 0.36, 1.6, 35.0], [-0.64, -0.48, 1.2, 1480.0], [0, 0, 0, 1]])
CLOSED = Topology(closed=True, components=1, genus=0)


def as_trimesh(mesh: Mesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)


def as_mesh(body: trimesh.Trimesh) -> Mesh:
    return Mesh(np.asarray(body.vertices, np.float64), np.asarray(body.faces, np.int32))


def joined(*bodies: trimesh.Trimesh) -> Mesh:
    return as_mesh(trimesh.util.concatenate(list(bodies)))


def radius_from(middle: tuple[float, float, float], shape: tuple[int, int, int] = GRID) -> np.ndarray:
    offset = np.moveaxis(np.indices(shape), 0, -1) * np.array(SPACING) - middle
    return np.linalg.norm(offset, axis=-1).astype(np.float32)


BALL = radius_from((60.3, 66.1, 61.7)) - np.float32(30)


def noise(seed: int, sigma: float, digits: int) -> np.ndarray:
    field = np.random.default_rng(seed).standard_normal((16, 14, 12))
    field = ndimage.gaussian_filter(field, sigma) / 0.3**sigma
    return np.round(field, digits).astype(np.float32)


def test_ball_has_the_measures_of_a_ball():
    mesh = extract_surface(BALL, TO_MM)
    assert mesh.vertices.dtype == np.float64
    assert mesh.faces.dtype == np.int32
    assert topology(mesh) == CLOSED
    np.testing.assert_allclose(np.linalg.norm(mesh.vertices - [60.3, 66.1, 61.7], axis=1), 30, atol=0.02)
    assert signed_volume(mesh) == pytest.approx(4 / 3 * np.pi * 30**3, rel=2e-3)
    assert surface_area(mesh) == pytest.approx(4 * np.pi * 30**2, rel=2e-3)


def test_measures_equal_trimesh_far_from_the_origin():
    mesh = extract_surface(BALL, OBLIQUE)
    body = as_trimesh(mesh)
    assert signed_volume(mesh) == pytest.approx(body.volume, rel=1e-9)
    assert surface_area(mesh) == pytest.approx(body.area, rel=1e-12)
    assert body.is_watertight
    assert body.is_winding_consistent


@pytest.mark.parametrize("affine", [TO_MM, MIRRORED, OBLIQUE, OBLIQUE @ np.diag([1.0, 1, -1, 1])])
def test_every_affine_places_the_same_surface_with_outward_winding(affine: np.ndarray):
    mesh, plain = extract_surface(BALL, affine), extract_surface(BALL, np.eye(4))
    back = np.linalg.inv(affine)
    np.testing.assert_allclose(mesh.vertices @ back[:3, :3].T + back[:3, 3], plain.vertices, atol=1e-9)
    assert signed_volume(mesh) == pytest.approx(abs(np.linalg.det(affine)) * signed_volume(plain), rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0, 9]))
def test_noise_gives_one_closed_piece(seed: int, sigma: float, digits: int):
    """Rounding makes exact zeros and ties, on which tables disagree; walls meet the border of the grid too."""
    sdg = noise(seed, sigma, digits)
    if not (sdg < 0).any():
        return
    mesh = extract_surface(sdg, MIRRORED)
    found, body = topology(mesh), as_trimesh(mesh)
    assert found.closed
    assert found.components == 1
    assert signed_volume(mesh) > 0
    assert body.is_watertight
    assert len(np.unique(mesh.faces)) == len(mesh.vertices)
    single = mesh.vertices.astype(np.float32)
    assert len(np.unique(single, axis=0)) == len(single)


def test_only_the_largest_piece_stays():
    sdg = np.minimum(BALL, radius_from((20, 20, 20)) - 5)
    mesh = extract_surface(sdg, TO_MM)
    assert topology(mesh) == CLOSED
    assert np.linalg.norm(mesh.vertices - [60.3, 66.1, 61.7], axis=1).max() < 31


def test_wall_that_meets_the_border_is_closed_there():
    mesh = extract_surface(radius_from((60, 60, 0)) - 30, TO_MM)
    assert topology(mesh) == CLOSED
    assert -2 < mesh.vertices[:, 2].min() < 0


def test_whole_grid_inside_is_a_box():
    mesh = extract_surface(np.full((4, 5, 6), -10, np.float32), np.eye(4))
    assert topology(mesh) == CLOSED
    np.testing.assert_allclose(mesh.vertices.min(0), -0.5)
    np.testing.assert_allclose(mesh.vertices.max(0), [3.5, 4.5, 5.5])


@pytest.mark.parametrize("step", [1, -1])
def test_sign_of_the_volume_follows_the_winding(step: int):
    mesh = as_mesh(trimesh.creation.box((2, 3, 4)))
    assert signed_volume(Mesh(mesh.vertices, mesh.faces[:, ::step])) == pytest.approx(step * 24)


def test_topology_counts_handles_and_pieces():
    ring = trimesh.creation.torus(10, 3)
    ball = trimesh.creation.icosphere(subdivisions=2)
    assert topology(as_mesh(ball)) == CLOSED
    assert topology(as_mesh(ring)) == Topology(True, 1, 1)
    assert topology(joined(ring, ball.copy().apply_translation([50, 0, 0]))) == Topology(True, 2, 1)
    assert as_trimesh(as_mesh(ring)).euler_number == 0


def test_sheets_that_touch_in_a_vertex_are_two_pieces():
    low = trimesh.creation.cone(1, 2)
    faces = np.concatenate([low.faces, low.faces[:, ::-1] + len(low.vertices)])
    vertices = np.concatenate([low.vertices, low.vertices * [1, 1, -1] + [0, 0, 4]])
    tips = np.flatnonzero((vertices == [0, 0, 2]).all(axis=1))
    assert len(tips) == 2
    faces[faces == tips[1]] = tips[0]
    assert topology(Mesh(vertices, faces.astype(np.int32))) == Topology(True, 2, 0)


def test_open_or_crossed_meshes_are_not_closed():
    ball = as_mesh(trimesh.creation.icosphere(subdivisions=1))
    opened = Topology(False, 1, None)
    turned, doubled = ball.faces.copy(), np.concatenate([ball.faces, ball.faces])
    turned[0] = turned[0, ::-1]
    crumpled = ball.faces.copy()
    crumpled[0, 1] = crumpled[0, 0]
    for faces in (ball.faces[1:], turned, doubled, crumpled):
        assert topology(Mesh(ball.vertices, faces)) == opened
    assert not topology(Mesh(ball.vertices, ball.faces[:0])).closed


def test_what_cannot_be_a_surface_is_refused():
    empty = np.ones((5, 5, 5), np.float32)
    with pytest.raises(EmptyWall):
        extract_surface(empty, np.eye(4))
    with pytest.raises(EmptyWall):
        extract_surface(empty * 0, np.eye(4))
    for hole in (np.nan, np.inf, -np.inf):
        broken = empty.copy()
        broken[2, 2, 2] = hole
        with pytest.raises(NotFinite, match="decoder"):
            extract_surface(broken, np.eye(4))
    for affine in (np.diag([1.0, 1, 0, 1]), np.full((4, 4), np.nan)):
        with pytest.raises(BadAffine):
            extract_surface(-empty, affine)
