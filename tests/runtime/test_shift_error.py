"""Draws of the error that motion correction leaves, against the covariance that they are meant to have."""

import numpy as np
from scipy.special import eval_legendre

from m2s_runtime.shift_error import draw_shift_errors

KEY = "c0ffee"
DEVIATIONS = (0.3, 1.0, 0.6, 0.0, 0.2)
HELD = np.isin(np.arange(12), [2, 3, 4, 6, 7, 8])


def test_the_covariance_is_that_of_the_polynomials() -> None:
    draws = draw_shift_errors(HELD, DEVIATIONS, KEY, 0, 20_000).astype(np.float64)
    position = np.array([-1, -2 / 3, -1 / 3, 1 / 3, 2 / 3, 1])
    modes = np.stack([deviation * eval_legendre(k + 1, position) for k, deviation in enumerate(DEVIATIONS[1:])])
    expected = modes.T @ modes + 0.3**2 * np.eye(6)
    for axis in range(2):
        np.testing.assert_allclose(np.cov(draws[:, HELD, axis].T), expected, atol=0.05)
    assert abs((draws[:, HELD, 0] * draws[:, HELD, 1]).mean()) < 0.02


def test_slices_without_wall_do_not_move() -> None:
    draws = draw_shift_errors(HELD, DEVIATIONS, KEY, 0, 3)
    assert draws.shape == (3, 12, 2)
    assert draws.dtype == np.float32
    assert not draws[:, ~HELD].any()
    assert draws[:, HELD].all()


def test_a_sample_is_the_same_however_many_there_are() -> None:
    few, many = (draw_shift_errors(HELD, DEVIATIONS, KEY, 0, n) for n in (2, 5))
    np.testing.assert_array_equal(few, many[:2])
    assert (draw_shift_errors(HELD, DEVIATIONS, KEY, 1, 2) != few).any()
    assert (draw_shift_errors(HELD, DEVIATIONS, "c0ffed", 0, 2) != few).any()


def test_a_single_slice_is_no_trouble() -> None:
    assert np.isfinite(draw_shift_errors(np.arange(12) == 4, DEVIATIONS, KEY, 0, 2)).all()
