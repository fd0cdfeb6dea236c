"""Every flag is raised by a stack that deserves it, and none by one that does not."""

import functools
from dataclasses import replace

import numpy as np
import pytest
from runtime.truth import distances, slices

from m2s_runtime.flags import LIMITS, length_to_width, measures, open_share, raised, step_flags, unknown
from m2s_runtime.placement import Canonical, Placement
from m2s_runtime.slices import pool_features
from m2s_runtime.surface import Mesh, extract_surface

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
MEASURED = {name: limit for name, limit in LIMITS.items() if name != "expected_dice"}
FAIR = np.full(12, 0.95, np.float32)


@pytest.fixture(scope="module")
def masks() -> np.ndarray:
    return slices(np.zeros((12, 2)))


@pytest.fixture(scope="module")
def sdg() -> np.ndarray:
    return distances()


def canonical(masks: np.ndarray, step: float = 10.0) -> Canonical:
    return Canonical(masks, Placement(AFFINE, step, tuple(range(12)), False, 1, 2, 0.0), pool_features(masks), ())


@functools.cache
def mesh() -> Mesh:
    return extract_surface(distances(), AFFINE)


def found(stack: Canonical, sdg: np.ndarray, agreement=FAIR, spread=None, **limits: float) -> tuple[str, ...]:
    return raised(measures(stack, mesh(), sdg, agreement, spread), limits)


def test_a_sound_case_has_none(masks, sdg) -> None:
    assert found(canonical(masks), sdg) == ()
    assert found(canonical(masks), sdg, spread=np.full(100, 0.4, np.float32)) == ()


def test_few_slices(masks, sdg) -> None:
    few, enough = masks.copy(), masks.copy()
    few[:, :, 6:] = False
    enough[:, :, 7:] = False
    assert np.count_nonzero(few.any((0, 1))) == 4
    assert "few_slices" in found(canonical(few), sdg)
    assert "few_slices" not in found(canonical(enough), sdg)


def test_torn_wall(masks, sdg) -> None:
    torn = masks.copy()
    torn[64:, 60:68, :] = False
    assert open_share(torn, pool_features(torn)) == pytest.approx(1.0, abs=0.13)
    assert found(canonical(torn), sdg) == ("torn_wall",)
    one = masks.copy()
    one[64:, 60:68, 3] = False
    assert open_share(one, pool_features(one)) == 1 / 8
    assert found(canonical(one), sdg) == ()


def test_a_solid_cap_is_not_torn() -> None:
    x, y = np.indices((128, 128)) - 63.5
    planes = [np.hypot(x, y) < 9, np.hypot(x / 2, y) < 6, np.hypot(x, y) < 0.8]
    masks = np.stack([*planes, *[np.zeros((128, 128), bool)] * 9], -1)
    assert open_share(masks, pool_features(masks)) == 0
    crescent = (np.hypot(x, y) < 30) & (np.hypot(x - 8, y) > 27)
    assert open_share(crescent[:, :, None], pool_features(crescent[:, :, None])) == 1


def scaled(masks: np.ndarray, factor: float) -> np.ndarray:
    where = np.round((np.arange(128) - 63.5) / factor + 63.5).astype(int)
    beyond = (where < 0) | (where > 127)
    moved = masks[where.clip(0, 127)][:, where.clip(0, 127)]
    moved[beyond] = False
    moved[:, beyond] = False
    return moved


def test_giant_and_tiny_hearts(masks, sdg) -> None:
    assert found(canonical(scaled(masks, 1.58), step=13.0), sdg) == ("large_wall",)
    assert found(canonical(scaled(masks, 0.45), step=5.0), sdg) == ("small_wall",)
    assert found(canonical(masks, step=60.0), sdg) == ("large_wall",)


def test_a_stack_that_is_cut_short_or_lies_about_its_step_is_short(masks, sdg) -> None:
    held = np.flatnonzero(masks.any((0, 1)))
    for lost in (held[:3], held[-3:]):
        short = masks.copy()
        short[:, :, lost] = False
        assert found(canonical(short), sdg) == ("short_wall",)
    assert found(canonical(masks, step=6.0), sdg) == ("short_wall",)


def test_length_to_width_of_a_cylinder_torn_or_whole() -> None:
    x, y = np.indices((128, 128)) - 63.5
    ring = (np.hypot(x, y) < 30) & (np.hypot(x, y) > 20)
    stack = np.zeros((128, 128, 12), bool)
    stack[:, :, 2:10] = ring[:, :, None]
    assert length_to_width(stack, 9.0) == pytest.approx(8 * 9 / 60)
    stack[64:, 60:68, :] = False  # a tear narrower than the wall is thick
    assert length_to_width(stack, 9.0) == pytest.approx(8 * 9 / 60, rel=0.02)
    stack[:, :, 5] = False  # what is missing in between is spanned all the same
    assert length_to_width(stack, 9.0) == pytest.approx(8 * 9 / 60, rel=0.02)


def test_disagreement_in_the_mean_or_of_one_slice(masks, sdg) -> None:
    one = FAIR.copy()
    one[4] = 0.4
    one[9:] = np.nan
    assert found(canonical(masks), sdg, one) == ("slices_disagree",)
    assert found(canonical(masks), sdg, np.full(12, 0.8, np.float32)) == ("slices_disagree",)


def test_high_spread_and_dropped_pieces(masks, sdg) -> None:
    spread = np.full(100, 0.2, np.float32)
    spread[:10] = 4.0
    assert found(canonical(masks), sdg, spread=spread) == ("spread_high",)
    broken = sdg.copy()
    broken[5:30, 5:30, 20:40] = -1.0
    assert found(canonical(masks), broken) == ("pieces_dropped",)


def test_a_bundle_may_move_every_limit(masks, sdg) -> None:
    spread = np.full(10, 0.3, np.float32)
    for name, limit in MEASURED.items():
        tight = 1e9 if limit.side == "below" else -1.0
        assert found(canonical(masks), sdg, spread=spread, **{name: tight}) == (limit.flag,)
    torn = masks.copy()
    torn[64:, 60:68, :] = False
    assert found(canonical(torn), sdg, torn_wall=1.0) == ()


def test_unknown_names_are_told() -> None:
    assert unknown(["torn_wall", "b", "a"]) == ["a", "b"]
    assert unknown(LIMITS) == []


@pytest.mark.parametrize(("step", "flagged"), [(4.9, True), (5.0, False), (8.0, False), (14.0004, False), (15, True)])
def test_steps_outside_the_trained_range(step, flagged) -> None:
    assert step_flags(step, (5.0, 14.0)) == (("step_out_of_range",) if flagged else ())


def test_measures_are_those_of_the_limits(masks, sdg) -> None:
    stack = canonical(masks)
    told = measures(stack, mesh(), sdg, FAIR, None)
    assert set(told) == set(MEASURED)
    assert told["small_wall_ml"] == pytest.approx(np.count_nonzero(masks) / 100)
    halved = replace(stack, placement=replace(stack.placement, step_mm=5.0))
    halves = measures(halved, mesh(), sdg, FAIR, None)
    assert halves["small_wall_ml"] == pytest.approx(told["small_wall_ml"] / 2)
