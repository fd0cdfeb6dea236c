import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from m2s_runtime.grid import CENTRE
from m2s_runtime.slices import (
    centre_shifts,
    common_shift,
    pool_features,
    pool_weights,
    signed_distance,
    wall_slices,
)

GRID = np.indices((128, 128), dtype=float)


def ring(x: float, y: float, outer: float, inner: float) -> np.ndarray:
    r = np.hypot(GRID[0] - x, GRID[1] - y)
    return (r < outer) & (r >= inner)


def stack(*planes: np.ndarray) -> np.ndarray:
    return np.stack([*planes, *[np.zeros((128, 128), bool)] * (12 - len(planes))], axis=2)


def nearest_of_other_kind(plane: np.ndarray) -> np.ndarray:
    """Signed distance by looking at all pairs of pixels; the frame round the plane is no wall."""
    padded = np.pad(plane, 1)
    here = np.argwhere(np.ones_like(plane)) + 1
    to = {kind: np.argwhere(padded == kind) for kind in (False, True)}
    outside = np.linalg.norm(here[:, None] - to[True][None], axis=2).min(1)
    inside = np.linalg.norm(here[:, None] - to[False][None], axis=2).min(1)
    return np.where(plane.ravel(), 0.5 - inside, outside - 0.5).reshape(plane.shape)


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(bool, (14, 11, 2)), st.floats(1, 6))
def test_signed_distance_equals_brute_force(masks: np.ndarray, clip: float):
    result = signed_distance(masks, clip)
    assert result.dtype == np.float32
    for s in range(2):
        plane = masks[:, :, s]
        expected = nearest_of_other_kind(plane) if plane.any() else np.full(plane.shape, np.inf)
        np.testing.assert_allclose(result[:, :, s], np.clip(expected, -clip, clip), atol=1e-6)


def test_signed_distance_of_a_band_is_exact():
    plane = np.zeros((128, 128), bool)
    plane[30:60] = True
    expected = np.clip(abs(np.arange(128) - 44.5) - 15, -12, 12)
    np.testing.assert_array_equal(signed_distance(stack(plane), 12)[:, 64, 0], expected)


def test_signed_distance_of_a_disc_is_its_radius_within_a_pixel():
    masks = stack(ring(60.3, 66.8, 30, 0))
    expected = np.hypot(GRID[0] - 60.3, GRID[1] - 66.8) - 30
    assert abs(signed_distance(masks, 12)[:, :, 0] - expected.clip(-12, 12)).max() < 0.75


def test_pool_is_the_largest_hole():
    plane = ring(60, 70, 30, 20)
    plane[80 + 4, 70] = False
    x, y, area = pool_features(stack(plane))[0]
    assert (x, y) == pytest.approx((60, 70), abs=1e-4)
    assert area == np.count_nonzero(ring(60, 70, 20, 0))


def test_open_ring_gives_the_wall_and_empty_slice_the_centre():
    open_ring = ring(60, 70, 30, 20) & (GRID[0] < 75)
    features = pool_features(stack(open_ring))
    np.testing.assert_allclose(features[0], [*np.argwhere(open_ring).mean(0), 0], rtol=1e-6)
    np.testing.assert_array_equal(features[1], [CENTRE, CENTRE, 0])
    assert wall_slices(stack(open_ring)).tolist() == [True] + [False] * 11


def test_ring_cut_by_the_border_is_open():
    assert pool_features(stack(ring(5, 64, 30, 20)))[0, 2] == 0


def test_touching_corners_close_a_ring():
    diamond = abs(GRID[0] - 64) + abs(GRID[1] - 64) == 6
    assert pool_features(stack(diamond))[0, 2] == np.count_nonzero(abs(GRID[0] - 64) + abs(GRID[1] - 64) < 6)


@pytest.mark.parametrize("turn", [lambda m: m[::-1], lambda m: m[:, ::-1], lambda m: np.rot90(m)])
def test_flips_and_quarter_turns_keep_a_centred_pool_centred(turn):
    masks = stack(ring(CENTRE + 1.25, CENTRE - 2, 30, 20), ring(CENTRE - 1.25, CENTRE + 2, 30, 20))
    pool = pool_features(masks)
    assert (pool[:, :2] * pool[:, 2:]).sum(0) / pool[:, 2].sum() == pytest.approx([CENTRE, CENTRE], abs=0.02)
    turned = pool_features(turn(masks))
    assert (turned[:, :2] * turned[:, 2:]).sum(0) / turned[:, 2].sum() == pytest.approx([CENTRE, CENTRE], abs=0.02)


def random_case(seed: int, *lead: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shifts = rng.normal(0, 4, (*lead, 12, 2)).astype(np.float32)
    pool = np.concatenate([rng.normal(63.5, 5, (*lead, 12, 2)), rng.uniform(0, 2000, (*lead, 12, 1))], -1)
    return shifts, pool.astype(np.float32)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_centring_puts_the_mean_pool_in_the_middle_and_adds_one_vector(seed: int):
    shifts, pool = random_case(seed)
    centred = centre_shifts(shifts, pool)
    mean = np.average((pool[:, :2] - centred).astype(float), axis=0, weights=pool[:, 2].astype(float))
    assert mean == pytest.approx([CENTRE, CENTRE], abs=1e-3)
    np.testing.assert_allclose(centred - shifts, np.broadcast_to((centred - shifts)[0], (12, 2)), atol=1e-4)
    expected = np.average(shifts.astype(float), axis=0, weights=pool[:, 2].astype(float))
    assert common_shift(shifts, pool) == pytest.approx(expected, abs=1e-4)
    assert centred.dtype == np.float32


def test_a_common_motion_of_the_input_is_undone():
    shifts, pool = random_case(7)
    moved = pool + np.array([2.5, -1.5, 0], np.float32)
    np.testing.assert_allclose(
        centre_shifts(shifts, moved), centre_shifts(shifts, pool) + np.array([2.5, -1.5]), atol=1e-4
    )


def test_batch_members_do_not_mix_and_open_stacks_fall_back_to_wall_slices():
    shifts, pool = random_case(3, 3)
    pool[1, :, 2] = 0
    pool[1, 5:] = [CENTRE, CENTRE, 0]
    pool[2] = [CENTRE, CENTRE, 0]
    result = centre_shifts(shifts, pool)
    for b in range(3):
        np.testing.assert_allclose(result[b], centre_shifts(shifts[b], pool[b]), atol=1e-5)
    assert pool_weights(pool)[1, :, 0].tolist() == [1] * 5 + [0] * 7
    assert pool_weights(pool)[2, :, 0].tolist() == [1] * 12
    assert (pool[1, :5, :2] - result[1, :5]).mean(0) == pytest.approx([CENTRE, CENTRE], abs=1e-3)


def test_torch_and_numpy_agree_and_gradients_flow():
    torch = pytest.importorskip("torch")
    shifts, pool = random_case(11, 2, 4)
    pool[0, 0, :, 2] = 0
    tensor = torch.tensor(shifts, requires_grad=True)
    centred = centre_shifts(tensor, torch.tensor(pool))
    np.testing.assert_allclose(centred.detach().numpy(), centre_shifts(shifts, pool), atol=1e-4)
    np.testing.assert_allclose(
        common_shift(tensor, torch.tensor(pool)).detach().numpy(), common_shift(shifts, pool), atol=1e-5
    )
    centred.square().sum().backward()
    assert torch.isfinite(tensor.grad).all()
