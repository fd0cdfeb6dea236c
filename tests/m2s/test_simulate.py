import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from m2s.data.phantom import phantom
from m2s.data.simulate import PAPER, FoldedNormal, Mixture, Normal, draw_rng, simulate_stack
from m2s_runtime.slices import signed_distance


class Fixed:
    def __init__(self, shift):
        self.shift = shift

    def draw(self, _rng, slices):
        return np.tile(np.asarray(self.shift, float), (slices, 1))


@pytest.fixture(scope="module")
def heart():
    return phantom(3)


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def realigned(stack):
    """corrected(p) = slices(p + t), on distances as the networks do it, moved by SciPy."""
    distance = signed_distance(stack.slices, 12.0)
    moved = [ndimage.shift(distance[:, :, s], -stack.shifts[s], order=1, mode="nearest") < 0 for s in range(12)]
    return np.stack(moved, axis=2)


def test_true_shifts_realign_the_stack(heart):
    stack = simulate_stack(heart.mask, draw_rng(heart.id, 0, 1), PAPER)
    assert dice(stack.slices, stack.clean) < 0.85
    assert dice(realigned(stack), stack.clean) > 0.99
    wrong = np.float32(-1) * stack.shifts
    assert dice(realigned(type(stack)(stack.slices, wrong, stack.clean)), stack.clean) < 0.7


def test_whole_pixel_shifts_realign_exactly(heart):
    stack = simulate_stack(heart.mask, np.random.default_rng(0), Fixed((3, -2)))
    np.testing.assert_array_equal(np.roll(stack.slices, (-3, 2), axis=(0, 1)), stack.clean)
    np.testing.assert_array_equal(stack.clean, heart.mask[:, :, [5 * k + 2 for k in range(12)]])


@settings(max_examples=20, deadline=None)
@given(shift=st.tuples(st.floats(-9, 9), st.floats(-9, 9)))
def test_bilinear_as_scipy(heart, shift):
    stack = simulate_stack(heart.mask, np.random.default_rng(0), Fixed(shift))
    middle = 6
    oracle = ndimage.shift(stack.clean[:, :, middle].astype(float), shift, order=1)
    decided = np.abs(oracle - 0.5) > 1e-5
    np.testing.assert_array_equal(stack.slices[:, :, middle][decided], oracle[decided] >= 0.5)


def test_empty_slices_have_no_shift(heart):
    stack = simulate_stack(heart.mask, draw_rng(heart.id, 0, 1), PAPER)
    wall = stack.slices.any(axis=(0, 1))
    assert 3 <= wall.sum() < 12
    assert not stack.shifts[~wall].any()
    assert stack.shifts[wall].all()


def test_wall_pushed_out_of_view_is_lost_not_wrapped(heart):
    stack = simulate_stack(heart.mask, np.random.default_rng(0), Fixed((300.5, 0)))
    assert not stack.slices.any()
    assert not stack.shifts.any()
    half = simulate_stack(heart.mask, np.random.default_rng(0), Fixed((60, 0)))
    assert not half.slices[:60].any()


def test_the_paper_law():
    rng = np.random.default_rng(0)
    shifts = PAPER.draw(rng, 20000)
    assert abs(np.abs(shifts).mean() - 3.45) < 0.03
    assert abs(np.abs(shifts).std() - 1.30) < 0.03
    assert abs((shifts > 0).mean() - 0.5) < 0.01
    assert (FoldedNormal(3.45, 1.305, "positive").draw(rng, 1000) >= 0).all()


def test_normal_and_mixture():
    rng = np.random.default_rng(0)
    assert abs(Normal(2.0).draw(rng, 20000).std() - 2) < 0.03
    only_others = Mixture(share=0.0, sd_mm=(1.0, 1.0), outlier=0.1)
    far = np.linalg.norm(np.concatenate([only_others.draw(rng, 12) for _ in range(2000)]), axis=1) > 5
    assert 0.08 < far.mean() < 0.12
    near_zero = np.concatenate([np.abs(Mixture().draw(rng, 12)).ravel() for _ in range(500)]) < 0.5
    assert near_zero.mean() > 5 * (np.abs(PAPER.draw(rng, 5000)) < 0.5).mean()


def test_draws_are_a_function_of_heart_draw_and_seed(heart):
    again = [simulate_stack(heart.mask, draw_rng(heart.id, 4, 7), Mixture(), noise=0.5) for _ in range(2)]
    np.testing.assert_array_equal(again[0].slices, again[1].slices)
    np.testing.assert_array_equal(again[0].shifts, again[1].shifts)
    for other in (("x", 4, 7), (heart.id, 5, 7), (heart.id, 4, 8)):
        assert (PAPER.draw(draw_rng(*other), 12) != PAPER.draw(draw_rng(heart.id, 4, 7), 12)).any()


@pytest.mark.parametrize("rms", [0.5, 1.0])
def test_noise_moves_the_contour_by_about_its_rms(heart, rms):
    """Mean displacement of a contour = changed area over its length; of a normal variable it is 0.8 rms."""
    stack = simulate_stack(heart.mask, np.random.default_rng(1), Fixed((0, 0)), noise=rms)
    changed, length = 0, 0.0
    for s in np.flatnonzero(stack.clean.any(axis=(0, 1))[:-1]):
        changed += (stack.slices[:, :, s] ^ stack.clean[:, :, s]).sum()
        edge = stack.clean[:, :, s]
        length += np.abs(np.diff(edge.astype(int), axis=0)).sum() + np.abs(np.diff(edge.astype(int), axis=1)).sum()
    # Crofton: lines along x and y cross a contour 4 / pi times its length.
    assert 0.4 * rms < changed / (length * np.pi / 4) < 1.2 * rms
