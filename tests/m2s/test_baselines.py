"""Baselines on shapes whose answer is known in closed form."""

import numpy as np
import pytest

from m2s.baselines.nni import nearest_neighbour
from m2s.baselines.shape_based import shape_based, track_shifts
from m2s.metrics import dice

X, Y = np.mgrid[:128, :128].astype(float)


def _ring(x: float, y: float, outer: float, inner: float) -> np.ndarray:
    distance = np.hypot(X - x, Y - y)
    return (distance <= outer) & (distance > inner)


def _tube(planes, radius=lambda _: 30.0, centre=lambda _: (63.5, 63.5)) -> np.ndarray:
    """A tube of wall 10 mm thick, cut at the given plane coordinates."""
    return np.stack([_ring(*centre(p), radius(p), radius(p) - 10) for p in planes], axis=2)


def _with_ends(slices: np.ndarray) -> np.ndarray:
    """Slices 2..9 of twelve hold the tube."""
    stack = np.zeros((128, 128, 12), bool)
    stack[:, :, 2:10] = slices
    return stack


CENTRES = 5 * np.arange(2, 10) + 2


def test_nearest_neighbour_repeats_each_slice_through_its_block():
    stack = np.random.default_rng(1).random((6, 5, 12)) < 0.5
    volume = nearest_neighbour(stack)
    assert volume.shape == (6, 5, 60)
    for plane in range(60):
        np.testing.assert_array_equal(volume[:, :, plane], stack[:, :, plane // 5])


def test_shape_based_rebuilds_a_cone_between_its_slices_and_ends_with_the_blocks():
    def radius(plane):
        return 20 + 0.3 * plane

    volume = shape_based(_with_ends(_tube(CENTRES, radius)), degree=1).mask
    assert volume.any(axis=(0, 1)).nonzero()[0].tolist() == list(range(10, 50))
    inner = slice(12, 48)
    assert dice(volume[:, :, inner], _tube(range(60), radius)[:, :, inner]) > 0.985


def test_shape_based_finds_the_shifts_of_a_straight_tilted_tube():
    rng = np.random.default_rng(2)
    shifts = rng.uniform(-5, 5, (8, 2))
    tilt = np.array([0.2, -0.1])
    along = (CENTRES - CENTRES.mean())[:, None] * tilt
    moved = [_ring(*(63.5 + along[i] + shifts[i]), 30, 20) for i in range(8)]
    found = shape_based(_with_ends(np.stack(moved, axis=2)), degree=1)
    powers = np.vander(CENTRES, 2)
    off_line = shifts - powers @ np.linalg.lstsq(powers, shifts, rcond=None)[0]
    rest = found.shifts[2:10] - off_line
    # A line through shifted centroids can differ from the true one; what is left is common to all slices once centred.
    np.testing.assert_allclose(rest - rest.mean(axis=0), 0, atol=0.15)
    np.testing.assert_array_equal(found.shifts[[0, 1, 10, 11]], 0)


def test_constant_track_and_centring_put_a_moved_straight_tube_at_the_centre():
    centres = {p: 63.5 + np.array([9.0, -6.0]) + 4 * np.sin(p) for p in CENTRES}
    found = shape_based(_with_ends(_tube(CENTRES, centre=lambda p: centres[p])), degree=0)
    assert dice(found.mask[:, :, 10:50], _tube(range(10, 50))) > 0.97


def test_uncorrected_slices_stay_where_they_are():
    stack = _with_ends(_tube(CENTRES, centre=lambda _: (60, 66)))
    stack[:, :, 5] = _ring(70, 66, 30, 20)
    plain = shape_based(stack, centred=False, corrected=False)
    assert not plain.shifts.any()
    np.testing.assert_array_equal(plain.mask[:, :, 27], stack[:, :, 5])


@pytest.mark.parametrize("walls", [[], [4], [4, 5], [3, 6]])
def test_few_slices_or_a_gap_never_fail(walls):
    stack = np.zeros((128, 128, 12), bool)
    for s in walls:
        stack[:, :, s] = _ring(64, 60, 25, 15)
    found = shape_based(stack)
    held = found.mask.any(axis=(0, 1)).nonzero()[0]
    assert held.tolist() == (list(range(5 * walls[0], 5 * walls[-1] + 5)) if walls else [])
    assert track_shifts(stack, 3).shape == (12, 2)
