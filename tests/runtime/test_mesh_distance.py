import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.measure import marching_cubes
from trimesh.creation import icosphere

from m2s_runtime import mesh_distance
from m2s_runtime.errors import BadMesh, NotFinite
from m2s_runtime.grid import GRID, SPACING
from m2s_runtime.mesh_distance import KERNEL, grid_distance

SMALL, FINE = (24, 20, 14), (1.0, 1.0, 2.0)
needs_native = pytest.mark.skipif(KERNEL != "native", reason="the compiled kernel is missing on this machine")


def centres(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> np.ndarray:
    return np.moveaxis(np.indices(shape), 0, -1).reshape(-1, 3) * np.array(spacing)


def oracle(vertices: np.ndarray, faces: np.ndarray, points: np.ndarray) -> np.ndarray:
    igl = pytest.importorskip("igl")
    squared = igl.point_mesh_squared_distance(points, np.asarray(vertices, float), np.asarray(faces, np.int64))[0]
    return np.sqrt(squared)


def noise_mesh(seed: int, shape: tuple[int, int, int] = SMALL) -> tuple[np.ndarray, np.ndarray]:
    """Marching cubes of random voxels: every case of the table, slanted patches and touching sheets."""
    mask = np.random.default_rng(seed).random(shape) < 0.3
    vertices, faces, _, _ = marching_cubes(np.pad(mask, 1).astype(np.float32), 0.5, spacing=FINE)
    return vertices.astype(float) - FINE, faces


@needs_native
def test_large_mesh_equals_libigl_all_over_the_grid():
    ball = icosphere(subdivisions=5, radius=30.0)
    wobble = 1 + 0.15 * np.sin(5 * ball.vertices[:, :1] / 30) * np.cos(4 * ball.vertices[:, 2:] / 30)
    vertices, faces = ball.vertices * wobble + [61.3, 66.1, 58.7], ball.faces
    found = grid_distance(vertices, faces, GRID, SPACING)
    assert found.dtype == np.float32
    assert found.shape == GRID
    chosen = np.random.default_rng(0).choice(found.size, 5000, replace=False)
    wanted = oracle(vertices, faces, centres(GRID, SPACING)[chosen])
    assert np.abs(found.ravel()[chosen] - wanted).max() < 1e-5 + 1e-7 * wanted.max()


@needs_native
@pytest.mark.parametrize("seed", range(3))
def test_noise_equals_libigl(seed: int):
    vertices, faces = noise_mesh(seed)
    wanted = oracle(vertices, faces, centres(SMALL, FINE)).reshape(SMALL)
    np.testing.assert_allclose(grid_distance(vertices, faces, SMALL, FINE), wanted, rtol=0, atol=1e-5)


@needs_native
@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(float, st.tuples(st.integers(1, 40), st.just(3), st.just(3)), elements=st.floats(-20, 60)),
    st.floats(1e-3, 1),
)
def test_any_soup_of_triangles_equals_libigl(triangles: np.ndarray, thin: float):
    triangles[:, 2] = triangles[:, 0] + thin * (triangles[:, 2] - triangles[:, 0])  # needles too
    sides = np.diff(triangles, axis=1)
    triangles = triangles[np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1) > 1e-3]  # libigl needs an area
    if not len(triangles):
        return
    vertices, faces = triangles.reshape(-1, 3), np.arange(3 * len(triangles)).reshape(-1, 3)
    shape, spacing = (7, 6, 5), (5.0, 6.0, 9.0)
    wanted = oracle(vertices, faces, centres(shape, spacing)).reshape(shape)
    np.testing.assert_allclose(grid_distance(vertices, faces, shape, spacing), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kernel", ["native", "libigl"])
def test_sphere(kernel: str, monkeypatch: pytest.MonkeyPatch):
    bind(kernel, monkeypatch)
    middle, radius = np.array([15.0, 14.0, 13.0]), 10.0
    ball = icosphere(subdivisions=4, radius=radius)
    found = grid_distance(ball.vertices + middle, ball.faces, SMALL, FINE)
    wanted = np.abs(np.linalg.norm(centres(SMALL, FINE) - middle, axis=1) - radius).reshape(SMALL)
    sagitta = radius - np.linalg.norm(ball.triangles_center, axis=1).min()
    assert np.abs(found - wanted).max() < sagitta + 0.02


@pytest.mark.parametrize("kernel", ["native", "libigl"])
def test_triangles_without_area_are_their_edges(kernel: str, monkeypatch: pytest.MonkeyPatch):
    bind(kernel, monkeypatch)
    vertices = np.array([[2.0, 3.0, 4.0], [8.0, 3.0, 4.0], [5.0, 3.0, 4.0]])
    points = centres((12, 9, 7), FINE)
    to_point = np.linalg.norm(points - vertices[0], axis=1)
    foot = np.stack(np.broadcast_arrays(points[:, 0].clip(2, 8), 3.0, 4.0), axis=1)
    to_segment = np.linalg.norm(points - foot, axis=1)
    for faces, wanted in (([[0, 0, 0]], to_point), ([[0, 1, 2]], to_segment), ([[0, 1, 1]], to_segment)):
        found = grid_distance(vertices, faces, (12, 9, 7), FINE)
        np.testing.assert_allclose(found.ravel(), wanted, rtol=0, atol=1e-5)


@needs_native
def test_threads_do_not_change_a_bit():
    vertices, faces = noise_mesh(7)
    alone = grid_distance(vertices, faces, (40, 20, 14), FINE)
    np.testing.assert_array_equal(alone, grid_distance(vertices, faces, (40, 20, 14), FINE, threads=3))


@needs_native
def test_order_of_faces_does_not_change_a_bit():
    vertices, faces = noise_mesh(8)
    shuffled = np.random.default_rng(0).permutation(faces)
    np.testing.assert_array_equal(
        grid_distance(vertices, faces, SMALL, FINE), grid_distance(vertices, shuffled, SMALL, FINE)
    )


def test_package_imports_without_the_kernel():
    code = (
        "import sys; sys.modules['m2s_runtime._mesh_distance'] = None\n"
        "from m2s_runtime import mesh_distance\n"
        "assert mesh_distance.KERNEL == 'scipy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_bad_meshes_are_refused():
    corners = np.eye(3)
    with pytest.raises(BadMesh, match="no face"):
        grid_distance(corners, np.empty((0, 3), int), SMALL, FINE)
    with pytest.raises(BadMesh, match="outside the 3"):
        grid_distance(corners, [[0, 1, 3]], SMALL, FINE)
    with pytest.raises(BadMesh, match="outside the 3"):
        grid_distance(corners, [[0, 1, -1]], SMALL, FINE)
    with pytest.raises(BadMesh, match=r"\(V, 3\)"):
        grid_distance(corners[:, :2], [[0, 1, 2]], SMALL, FINE)
    with pytest.raises(NotFinite):
        grid_distance(corners * np.nan, [[0, 1, 2]], SMALL, FINE)
    with pytest.raises(NotFinite):
        grid_distance(corners * 1e30, [[0, 1, 2]], SMALL, FINE)


@needs_native
def test_kernel_guards_its_own_memory():
    native = mesh_distance._native
    assert native is not None
    corners, face = np.eye(3, dtype=np.float32), np.array([[0, 1, 2]], np.int32)
    hollow = np.where(corners > 0, np.float32(np.nan), corners)
    far = corners * np.float32(1e13)
    for points, faces in ((corners, face + 1), (corners, face - 1), (hollow, face), (far, face), (corners, face[:0])):
        with pytest.raises(ValueError, match=r"face|vertex"):
            native.grow(points, faces, 1.0)
    tree = native.grow(corners, face, 1.0)
    out = np.empty((2, 2, 2), np.float32)
    for shape in ((2, 2, 3), (-1, -1, 8), (0, 2, 2), (2**62, 2, 2)):
        with pytest.raises(ValueError, match="does not fit"):
            native.fill(tree, out, shape, (0, 0, 0), FINE)
    with pytest.raises(ValueError, match="PyCapsule"):
        native.fill(object(), out, (2, 2, 2), (0, 0, 0), FINE)
    native.fill(tree, out, (2, 2, 2), (np.nan, np.inf, 0), FINE)  # nonsense, but it returns
    out.setflags(write=False)
    with pytest.raises((BufferError, TypeError)):
        native.fill(tree, out, (2, 2, 2), (0, 0, 0), FINE)


def bind(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernel == "native" and KERNEL != "native":
        pytest.skip("the compiled kernel is missing on this machine")
    if kernel == "libigl":
        pytest.importorskip("igl")
        monkeypatch.setattr(mesh_distance, "_native", None)


@needs_native
@pytest.mark.parametrize("threads", [1, 3])
def test_slabs_do_not_change_a_bit(threads: int, monkeypatch: pytest.MonkeyPatch):
    """Boxes are halved from the slab down, so another slab is another search."""
    vertices, faces = noise_mesh(9, (21, 18, 16))
    usual = grid_distance(vertices, faces, (21, 18, 16), FINE)
    monkeypatch.setattr(mesh_distance, "_SLAB", 21)
    np.testing.assert_array_equal(grid_distance(vertices, faces, (21, 18, 16), FINE, threads), usual)


@needs_native
def test_equidistant_from_everything():
    """In the middle of a ball no vertex can be ruled out: the worst that the search can meet."""
    ball = icosphere(subdivisions=4, radius=9.0)
    shape, spacing = (3, 3, 3), (1e-3, 1e-3, 1e-3)
    found = grid_distance(ball.vertices + 1e-3, ball.faces, shape, spacing)
    wanted = oracle(ball.vertices + 1e-3, ball.faces, centres(shape, spacing)).reshape(shape)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


@needs_native
def test_many_faces_round_one_vertex_and_vertices_without_faces():
    """More faces at a vertex than lanes in a fan; vertices that nothing uses are no surface."""
    angle = np.linspace(0, 2 * np.pi, 31)[:-1]
    rim = np.stack([8 * np.cos(angle), 8 * np.sin(angle), np.full(30, 3.0)], axis=1)
    vertices = np.vstack([[0.0, 0.0, 9.0], rim, [10.0, 9.0, 13.0]]) + np.array([11.0, 10.0, 0.0])
    faces = [[0, 1 + i, 1 + (i + 1) % 30] for i in range(30)]
    wanted = oracle(vertices, np.array(faces), centres(SMALL, FINE)).reshape(SMALL)
    np.testing.assert_allclose(grid_distance(vertices, faces, SMALL, FINE), wanted, rtol=0, atol=1e-5)
