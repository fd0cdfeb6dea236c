"""The compiled parts of surface, slices, apex and handles: equal to what stands in for them, bit for bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from skimage.measure import euler_number, marching_cubes

from m2s_runtime import apex, handles, slices, surface
from m2s_runtime.surface import Mesh, contour, topology

_surface = pytest.importorskip("m2s_runtime._surface", reason="built without a C compiler")
_voxels = pytest.importorskip("m2s_runtime._voxels", reason="built without a C compiler")

MASKS = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6))
FACES = hnp.arrays(np.int32, st.tuples(st.integers(1, 12), st.just(3)), elements=st.integers(0, 6))


def smooth(seed: int, shape: tuple[int, int, int] = (24, 20, 16), sigma: float = 2.0) -> np.ndarray:
    field = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma)
    return (field / field.std()).astype(np.float32)


def scikit(field: np.ndarray, level: float, outside: float, tables: str) -> tuple[np.ndarray, np.ndarray]:
    vertices, faces, _, _ = marching_cubes(np.pad(field, 1, constant_values=outside), level, method=tables)
    return vertices - 1, faces


@settings(max_examples=150, deadline=None)
@given(MASKS, st.sampled_from(["lewiner", "lorensen"]))
def test_any_mask_has_the_triangles_of_scikit_image(mask: np.ndarray, tables: surface.Tables):
    if not mask.any():
        return
    found = contour(mask.astype(np.float32), mask, 0.5, 0.0, tables)
    wanted = scikit(mask.astype(np.float32), 0.5, 0.0, tables)
    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_array_equal(found[1], wanted[1])


@pytest.mark.parametrize("tables", ["lewiner", "lorensen"])
def test_every_case_of_the_tables(tables: surface.Tables):
    """All 256 cells side by side, so that none depends on luck."""
    mask = np.zeros((2, 2, 3 * 256), bool)
    for case in range(256):
        mask[:, :, 3 * case : 3 * case + 2] = (case >> np.arange(8) & 1).reshape(2, 2, 2)
    found = contour(mask.astype(np.float32), mask, 0.5, 0.0, tables)
    wanted = scikit(mask.astype(np.float32), 0.5, 0.0, tables)
    np.testing.assert_allclose(found[0], wanted[0], rtol=0, atol=1e-4)  # other cells give other float32 offsets
    np.testing.assert_array_equal(found[1], wanted[1])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("level", [0.0, 0.37])
def test_distances_have_the_triangles_of_scikit_image(seed: int, level: float):
    field = smooth(seed)
    found = contour(field, field < level, level, 10.0, "lorensen")
    inside = np.pad(field < level, 1)
    box = [np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    cut = tuple(slice(side[0] - 1, side[-1] + 2) for side in box)
    vertices, faces, _, _ = marching_cubes(np.pad(field, 1, constant_values=10.0)[cut], level, method="lorensen")
    np.testing.assert_array_equal(found[0], vertices.astype(float) + [side.start - 1 for side in cut])
    np.testing.assert_array_equal(found[1], faces)


def test_tables_for_masks_are_not_used_for_anything_else(monkeypatch: pytest.MonkeyPatch):
    field = smooth(4, sigma=1.0)
    found = contour(field, field < 0, 0.0, 10.0, "lewiner")
    monkeypatch.setattr(surface, "_native", None)
    wanted = contour(field, field < 0, 0.0, 10.0, "lewiner")
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


@settings(max_examples=200, deadline=None)
@given(FACES)
def test_topology_of_any_soup_of_triangles_is_that_of_scipy(faces: np.ndarray):
    mesh = Mesh(np.zeros((7, 3)), faces)
    assert topology(mesh) == surface._scipy_topology(mesh)


@pytest.mark.parametrize("seed", range(4))
def test_topology_and_pieces_of_noise_are_those_of_scipy(seed: int, monkeypatch: pytest.MonkeyPatch):
    field = smooth(seed, sigma=1.0)
    vertices, faces = contour(field, field < -0.8, -0.8, 10.0, "lorensen")
    found = topology(Mesh(vertices, faces)), surface._labels(Mesh(vertices, faces))
    monkeypatch.setattr(surface, "_native", None)
    wanted = topology(Mesh(vertices, faces)), surface._labels(Mesh(vertices, faces))
    assert found[0] == wanted[0]
    assert found[0].closed
    np.testing.assert_array_equal(found[1], wanted[1])


@pytest.mark.parametrize("clip_mm", [3.0, 10.0, 20.0])
def test_distances_in_a_plane_are_those_of_scipy(clip_mm: float, monkeypatch: pytest.MonkeyPatch):
    masks = np.stack([smooth(seed, (60, 50, 3), 3.0)[:, :, 1] > 0.7 for seed in range(5)], axis=2)
    masks[:, :, 2] = False
    masks[:, :, 3] = True
    found = slices.signed_distance(masks, clip_mm)
    monkeypatch.setattr(slices, "_native", None)
    np.testing.assert_array_equal(found, slices.signed_distance(masks, clip_mm))
    assert found.dtype == np.float32


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 3))))
def test_crumbs_are_the_small_pieces_that_scipy_labels(side: np.ndarray):
    found = apex._small(side)
    for z in range(side.shape[2]):
        pieces, count = ndimage.label(side[:, :, z])
        sizes = np.bincount(pieces.ravel())
        small = [k for k in range(1, count + 1) if sizes[k] <= apex.CRUMB_MM2]
        np.testing.assert_array_equal(found[:, :, z], np.isin(pieces, small))


@pytest.mark.parametrize("seed", range(4))
def test_carving_is_the_same_in_numpy_and_keeps_the_pieces(seed: int, monkeypatch: pytest.MonkeyPatch):
    wall = smooth(seed, sigma=1.5)
    sdg = np.where(wall > 0.6, -1.0, 4 * np.maximum(0.6 - wall, 0.01)).astype(np.float32)
    found = handles.carve(sdg)
    monkeypatch.setattr(handles, "_native", None)
    np.testing.assert_array_equal(found, handles.carve(sdg))
    # A block without hole or tunnel, carved without changing that.
    assert euler_number(found, connectivity=3) == 1
    assert not (sdg < 0)[~found].any()


def test_native_code_guards_its_own_memory():
    field, face = np.zeros((2, 2, 2), np.float32), np.array([[0, 1, 2]], np.int32)
    mask, distance = np.zeros((3, 3, 3), bool), np.zeros((3, 3, 3), np.float32)
    for shape in ((2, 2, 3), (-1, -1, 8), (0, 2, 2), (2**62, 2, 2)):
        with pytest.raises(ValueError, match="does not fit"):
            _surface.contour(field, shape, 0.5, True, (0, 0, 0))
        with pytest.raises(ValueError, match="does not fit"):
            _voxels.signed_distances(mask, distance, shape, 10.0)
        with pytest.raises(ValueError, match="does not fit"):
            _voxels.crumbs(mask, mask.copy(), shape, True, 12)
        with pytest.raises(ValueError, match="does not fit"):
            _voxels.carve(mask, distance, shape, 0.5)
    for bad, count in ((face, 2), (face - 1, 3), (face.ravel()[:2], 3)):
        for function in (_surface.labels, _surface.topology):
            with pytest.raises(ValueError, match="does not exist"):
                function(bad, count)
    with pytest.raises(ValueError, match="no crumb"):
        _voxels.crumbs(mask, mask.copy(), mask.shape, True, 65)
    with pytest.raises(ValueError, match="out of range"):
        _voxels.signed_distances(mask, distance, mask.shape, np.inf)
    with pytest.raises(ValueError, match="does not fit"):
        _voxels.carve(mask[:2].copy(), distance[:2].copy(), (2, 3, 3), 0.5)  # no room for a border
    distance.setflags(write=False)
    with pytest.raises((BufferError, TypeError)):
        _voxels.signed_distances(mask, distance, mask.shape, 10.0)
