import numpy as np
import pytest
from scipy import ndimage

from m2s_runtime.agreement import agreement, realigned, sections
from m2s_runtime.grid import GRID
from m2s_runtime.slices import signed_distance

X, Y = np.indices((128, 128), dtype=float)
STILL = np.zeros((12, 2), np.float32)


def disc(x: float, y: float, radius: float) -> np.ndarray:
    return np.hypot(X - x, Y - y) < radius


def stack(**planes: np.ndarray) -> np.ndarray:
    masks = np.zeros((128, 128, 12), bool)
    for name, plane in planes.items():
        masks[:, :, int(name[1:])] = plane
    return masks


@pytest.mark.parametrize("step", [5.0, 7.3, 10.0])
def test_sections_of_a_field_linear_in_z_are_its_values_at_the_slices(step: float) -> None:
    height = (np.arange(GRID[2]) - 31.5) * 2.0
    sdg = np.broadcast_to(height, GRID).astype(np.float32)
    expected = (np.arange(12) - 5.5) * step
    np.testing.assert_allclose(sections(sdg, step)[3, 5], expected, atol=1e-4)


def test_at_ten_millimetres_slice_k_is_midway_in_its_block_of_five_planes() -> None:
    sdg = np.random.default_rng(0).normal(size=GRID).astype(np.float32)
    # Plane 5k + 2 of the 60, which is plane 5k + 4 of the padded 64.
    np.testing.assert_allclose(sections(sdg, 10.0), sdg[:, :, 4::5], atol=1e-6)


def test_slices_beyond_the_grid_see_its_border() -> None:
    sdg = np.random.default_rng(1).normal(size=GRID).astype(np.float32)
    cut = sections(sdg, 14.0)
    np.testing.assert_array_equal(cut[:, :, 0], sdg[:, :, 0])
    np.testing.assert_array_equal(cut[:, :, 11], sdg[:, :, 63])


def test_realignment_is_a_bilinear_shift() -> None:
    rng = np.random.default_rng(2)
    masks = np.stack([disc(*rng.uniform(50, 80, 2), 20) for _ in range(12)], -1)
    distances = signed_distance(masks, 12.0)
    shifts = rng.uniform(-6, 6, (12, 2)).astype(np.float32)
    found = realigned(distances, shifts)
    for s in range(12):
        expected = ndimage.shift(distances[:, :, s].astype(float), -shifts[s], order=1, cval=12.0)
        np.testing.assert_allclose(found[8:-8, 8:-8, s], expected[8:-8, 8:-8], atol=1e-4)


def test_agreement_is_the_dice_of_the_moved_slice() -> None:
    masks = stack(s3=disc(64, 64, 20), s4=disc(70, 61, 20), s5=disc(64, 64, 20), s6=disc(64, 64, 20))
    cut = signed_distance(stack(s3=disc(64, 64, 20), s4=disc(64, 64, 20), s5=disc(64, 64, 10)), 12.0)
    shifts = STILL.copy()
    shifts[4] = (6, -3)
    found = agreement(signed_distance(masks, 12.0), shifts, cut)
    a, b = np.count_nonzero(disc(64, 64, 20)), np.count_nonzero(disc(64, 64, 10))
    np.testing.assert_allclose(found[3:7], [1, 1, 2 * b / (a + b), 0], atol=1e-6)
    assert np.isnan(found[[0, 1, 2, 7, 8, 9, 10, 11]]).all()
    assert found.dtype == np.float32
