import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial import KDTree
from skimage.measure import marching_cubes

from m2s_runtime import csdg, mesh_distance
from m2s_runtime.csdg import coarse_sdg, to_grid
from m2s_runtime.errors import EmptyWall, EngineError, NotFinite
from m2s_runtime.grid import GRID, SPACING
from m2s_runtime.mesh_distance import KERNEL, bound_kernel

PLANES = (128, 128, 60)
TOLERANCE = 1e-4 if KERNEL == "native" else 0.3


def cup(top: int = 8) -> np.ndarray:
    """Half an ellipsoidal shell, opening at plane `top`."""
    x, y, z = np.indices(GRID, dtype=float)
    z = (z - top) * SPACING[2]
    outer = ((x - 60) / 31) ** 2 + ((y - 66) / 29) ** 2 + (z / 88) ** 2
    inner = ((x - 60) / 22) ** 2 + ((y - 66) / 20) ** 2 + (z / 79) ** 2
    return (z >= 0) & (outer < 1) & (inner > 1)


def speckle(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mask = ndimage.gaussian_filter(rng.standard_normal(GRID), 2) > 0.06
    mask[40:] = False
    return mask


@pytest.mark.parametrize("mask", [cup(), cup(top=0), speckle(0)], ids=["cup", "cup at the border", "speckle"])
def test_equals_libigl_on_the_padded_mesh(mask: np.ndarray):
    igl = pytest.importorskip("igl")
    found = coarse_sdg(mask)
    vertices, faces, _, _ = marching_cubes(np.pad(mask, 1).astype(np.float32), 0.5, spacing=SPACING)
    chosen = np.random.default_rng(1).choice(mask.size, 5000, replace=False)
    points = np.stack(np.unravel_index(chosen, GRID), axis=1) * np.array(SPACING)
    wanted = np.sqrt(igl.point_mesh_squared_distance(points, vertices - np.array(SPACING), faces.astype(np.int64))[0])
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.abs(found.ravel()[chosen]), wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("mask", [cup(), speckle(1)], ids=["cup", "speckle"])
def test_sign_is_the_label_of_every_voxel(mask: np.ndarray):
    found = coarse_sdg(mask)
    np.testing.assert_array_equal(found < 0, mask)
    assert np.abs(found).min() > 0.33  # a plane that cuts one corner of a cell of 1 x 1 x 2 mm passes at a third


@pytest.fixture
def no_kernel(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mesh_distance, "KERNEL", "scipy")
    monkeypatch.setattr(mesh_distance, "_native", None)
    mesh_distance.warn_once.cache_clear()


@pytest.mark.filterwarnings("ignore:the compiled distance kernel")
@pytest.mark.parametrize("mask", [cup(top=0), speckle(2)], ids=["cup at the border", "speckle"])
def test_without_the_kernel_it_is_the_nearest_vertex(mask: np.ndarray, no_kernel: None):
    found = coarse_sdg(mask)
    vertices, _, _, _ = marching_cubes(np.pad(mask, 1).astype(np.float32), 0.5, spacing=SPACING)
    chosen = np.random.default_rng(2).choice(mask.size, 3000, replace=False)
    points = np.stack(np.unravel_index(chosen, GRID), axis=1) * np.array(SPACING)
    wanted = KDTree(vertices - np.array(SPACING)).query(points)[0]
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.abs(found.ravel()[chosen]), wanted, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found < 0, mask)


def test_without_the_kernel_it_warns_once(no_kernel: None):
    with pytest.warns(RuntimeWarning, match="--exact"):
        coarse_sdg(cup())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        coarse_sdg(cup())


def test_without_the_kernel_exact_is_exact(no_kernel: None, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("igl")
    monkeypatch.setattr(csdg.grid, "GRID", (20, 18, 16))
    mask = ndimage.gaussian_filter(np.random.default_rng(3).standard_normal((20, 18, 16)), 2) > 0.03
    assert bound_kernel(exact=True) == "libigl"
    found = coarse_sdg(mask, exact=True)
    vertices, faces, _, _ = marching_cubes(np.pad(mask, 1).astype(np.float32), 0.5, spacing=SPACING)
    wanted = mesh_distance.grid_distance(vertices - np.array(SPACING), faces, mask.shape, SPACING)
    np.testing.assert_allclose(np.abs(found), wanted, rtol=0, atol=1e-5)
    monkeypatch.setitem(sys.modules, "igl", None)
    with pytest.raises(EngineError, match="pip install libigl"):
        bound_kernel(exact=True)


def test_one_voxel_is_an_octahedron():
    mask = np.zeros(GRID, bool)
    mask[50, 60, 30] = True
    found = coarse_sdg(mask)
    height = 1 / np.sqrt(1 / 0.5**2 + 1 / 0.5**2 + 1 / 1.0**2)  # its faces meet the axes at half a spacing
    np.testing.assert_allclose(found[50, 60, 30], -height, atol=1e-5)
    np.testing.assert_allclose(found[50:54, 60, 30][1:], [0.5, 1.5, 2.5], atol=1e-5)
    np.testing.assert_allclose(found[50, 60, 31:34], [1.0, 3.0, 5.0], atol=1e-5)


def test_plate_has_plane_distances_and_a_lid_at_the_border():
    mask = np.zeros(GRID, bool)
    mask[:, :, :11] = True
    found = coarse_sdg(mask)
    height = np.arange(64) * 2.0 - 21.0  # the surface lies midway between planes 10 and 11
    np.testing.assert_allclose(found[64, 64, 6:], height[6:], atol=1e-5)
    np.testing.assert_allclose(found[64, 64, :5], -1.0 - np.arange(5) * 2.0, atol=1e-5)


def test_threads_do_not_change_a_bit():
    if KERNEL != "native":
        pytest.skip("the compiled kernel is missing on this machine")
    np.testing.assert_array_equal(coarse_sdg(cup()), coarse_sdg(cup(), threads=2))


def test_no_wall_is_refused():
    with pytest.raises(EmptyWall, match="no voxel"):
        coarse_sdg(np.zeros(GRID, bool))


def test_ten_millimetres_is_a_shift_of_two_planes():
    probability = np.random.default_rng(0).random(PLANES, np.float32)
    found = to_grid(probability, 10.0)
    assert found.shape == GRID
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[:, :, 2:62], probability)
    assert not found[:, :, [0, 1, 62, 63]].any()


@settings(max_examples=40, deadline=None)
@given(st.floats(5, 14), st.integers(0, 127), st.integers(0, 127))
def test_other_steps_equal_numpy_interp(step: float, x: int, y: int):
    probability = np.random.default_rng(1).random(PLANES, np.float32)
    found = to_grid(probability, step)[x, y]
    plane_mm = (np.arange(-1, 61) - 29.5) * step / 5
    wanted = np.interp((np.arange(64) - 31.5) * 2, plane_mm, np.pad(probability[x, y], 1), left=0, right=0)
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_length_of_a_wall_is_kept():
    """Forty planes of 1.6 mm are 64 mm, so 32 planes of 2 mm."""
    probability = np.zeros(PLANES, np.float32)
    probability[:, :, 10:50] = 1
    assert np.count_nonzero(to_grid(probability, 8.0)[5, 5] >= 0.5) == 32


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_network_that_fails_is_told(value: float):
    probability = np.zeros(PLANES, np.float32)
    probability[3, 4, 5] = value
    with pytest.raises(NotFinite, match="super-resolution"):
        to_grid(probability, 10.0)
