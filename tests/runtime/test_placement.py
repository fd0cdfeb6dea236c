import csv
import os
from itertools import permutations
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from runtime.shells import AXIS, BASE, FRAME, LENGTH, Shell, dice, reoriented, scan, world_points

from m2s_runtime.errors import EmptyWall, WallOutOfRange
from m2s_runtime.grid import CENTRE, GRID
from m2s_runtime.placement import Canonical, canonicalise, slice_axis

SHARED = Path(os.environ.get("M2S_SHARED", Path(__file__).parents[2].parent / "shared"))
ACDC = SHARED / "data" / "acdc_masks"

# Columns: world directions of the three index axes.
RAS = np.eye(3)
LPS = np.diag([-1.0, -1.0, 1.0])
LAS = np.diag([-1.0, 1.0, 1.0])


def slice_points(canonical: Canonical) -> np.ndarray:
    """World mm of the pixels of the 12 slices, by the definition of the grid: middle plane 31.5, 2 mm a plane."""
    x, y, s = np.indices((128, 128, 12))
    planes = 31.5 + (s - 5.5) * canonical.placement.step_mm / 2
    return np.stack([x, y, planes], -1) @ canonical.placement.affine[:3, :3].T + canonical.placement.affine[:3, 3]


def straight_stack(n: int = 9, *, closed: bool = True, taper: float = 2.0, size: int = 128) -> np.ndarray:
    """Rings that shrink along the last axis."""
    i, j = np.indices((size, size))
    r = np.hypot(i - size / 2, j - size / 2)
    rings = [(r < 34 - taper * s) & (r > 24 - taper * s) & (closed | (i < size / 2 + 3)) for s in range(n)]
    return np.stack(rings, axis=2)


@pytest.mark.parametrize("spacing", [(1.4, 1.4, 10.0), (0.7, 1.25, 8.0), (1.9, 1.6, 6.5)])
@pytest.mark.parametrize("reversed_order", [False, True])
def test_canonical_pixels_lie_where_the_heart_is(spacing, reversed_order):
    affine, shape = scan(spacing, (150, 120, 16))
    wall = Shell().sample(affine, shape) == 2
    if reversed_order:
        wall, affine = reoriented(wall, affine, (2,), (0, 1, 2))
    canonical = canonicalise(wall, affine)
    assert canonical.placement.flipped == reversed_order
    truth = Shell().labels(slice_points(canonical)) == 2
    used = canonical.masks.any((0, 1))
    assert dice(canonical.masks[:, :, used], truth[:, :, used]) > 0.96
    assert canonical.flags == ()


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("flips", [(), (0,), (0, 1), (0, 1, 2), (2,)])
def test_storage_order_changes_nothing_in_the_world(order, flips):
    affine, shape = scan()
    wall = Shell().sample(affine, shape) == 2
    plain = canonicalise(wall, affine)
    stored = canonicalise(*reoriented(wall, affine, flips, order))
    assert stored.placement.slice_axis == order.index(2)
    truth = Shell().labels(slice_points(stored)) == 2
    assert dice(stored.masks, truth) > 0.96
    # The pool is in the middle of both grids, so they share the long axis whatever their in-plane axes.
    for q in (0, 63):
        p = np.array([*(np.array(GRID[:2]) - 1) / 2, q, 1])
        assert np.linalg.norm((stored.placement.affine - plain.placement.affine) @ p) < 0.1
    # In-plane axes keep their order and the base comes first: only in-plane mirrors change the handedness.
    in_plane = [a for a in order if a != 2]
    expected = (-1) ** (len([a for a in flips if a != 2]) + (in_plane != sorted(in_plane)))
    assert np.sign(np.linalg.det(stored.placement.affine) * np.linalg.det(plain.placement.affine)) == expected


@pytest.mark.parametrize("directions", [RAS, LPS, LAS, FRAME, FRAME[:, [1, 2, 0]], -FRAME])
def test_affines_compose(directions):
    """The same voxels under another affine land at B A^-1 of where they were."""
    wall = straight_stack()
    a = np.diag([1.5, 1.5, 8.0, 1.0])
    b = np.eye(4)
    b[:3, :3] = directions * [1.5, 1.5, 8.0]
    b[:3, 3] = [5, -70, 31]
    one, two = canonicalise(wall, a), canonicalise(wall, b)
    np.testing.assert_array_equal(one.masks, two.masks)
    np.testing.assert_allclose(two.placement.affine, b @ np.linalg.inv(a) @ one.placement.affine, atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(two.placement.affine[:3, :3], axis=0), [1, 1, 2], atol=1e-12)


@pytest.mark.parametrize("spacing", [(1.4, 1.4, 10.0), (1.0, 1.0, 5.0), (1.2, 1.2, 2.0)])
def test_centroid_comes_back(spacing):
    affine, shape = scan(spacing, (110, 110, round(110 / spacing[2])))
    wall = Shell().sample(affine, shape) == 2
    canonical = canonicalise(wall, affine)
    back = slice_points(canonical)[canonical.masks].mean(0) - world_points(affine, shape)[wall].mean(0)
    in_scan = FRAME.T @ back
    assert abs(in_scan[:2]).max() < 1
    assert abs(in_scan[2]) < 2


def test_pool_is_centred_to_a_tenth_of_a_millimetre_and_area_is_kept():
    affine, shape = scan((1.7, 1.3, 9.0))
    wall = Shell().sample(affine, shape) == 2
    canonical = canonicalise(wall, affine)
    weights = canonical.pool[:, 2]
    assert np.average(canonical.pool[:, :2], axis=0, weights=weights) == pytest.approx([CENTRE, CENTRE], abs=0.1)
    assert canonical.masks.sum() == pytest.approx(wall.sum() * 1.7 * 1.3, rel=0.01)


def test_world_adds_the_common_shift_in_plane():
    placement = canonicalise(straight_stack(), np.diag([1.5, 1.5, 8.0, 1.0])).placement
    p = np.array([10.0, 20.0, 30.0, 1.0])
    np.testing.assert_allclose(placement.world((3.0, -2.0)) @ p, placement.affine @ (p + np.array([3, -2, 0, 0])))
    np.testing.assert_array_equal(placement.world(), placement.affine)


def test_every_kth_slice_is_taken_evenly():
    canonical = canonicalise(straight_stack(60, taper=0.3), np.diag([1.0, 1.0, 2.0, 1.0]))
    assert canonical.placement.every == 5
    assert canonical.placement.slices == tuple(range(2, 60, 5))
    assert canonical.placement.step_mm == pytest.approx(10)
    # High-resolution plane p then is source plane p, and grid plane p + 2.
    np.testing.assert_allclose(canonical.placement.affine[2], [0, 0, 2, -4], atol=1e-9)


def aneurysm() -> np.ndarray:
    """A cavity that widens towards the apex while its wall thins."""
    i, j = np.indices((128, 128))
    r = np.hypot(i - 64, j - 64)
    return np.stack([(r >= 20 + 0.7 * s) & (r < 32 - 0.6 * s) for s in range(9)], axis=2)


def slanting_base() -> np.ndarray:
    """Rings whose first three slices are arcs, the first the shortest."""
    wall = straight_stack(taper=1.0)
    for s, kept in enumerate((92, 84, 72)):
        wall[:kept, :, s] = False
    return wall


@pytest.mark.parametrize("wall", [aneurysm(), slanting_base(), straight_stack(closed=False)])
def test_base_is_found_in_hearts_that_hide_it(wall):
    affine = np.diag([1.0, 1.0, 8.0, 1.0])
    there, back = canonicalise(wall, affine), canonicalise(wall[:, :, ::-1], affine)
    assert (there.placement.flipped, back.placement.flipped) == (False, True)
    assert "base_unclear" not in there.flags + back.flags
    np.testing.assert_array_equal(there.masks, back.masks)


def test_few_slices_sit_in_the_middle():
    placement = canonicalise(straight_stack(7), np.diag([1.5, 1.5, 8.0, 1.0])).placement
    assert placement.slices == (-1, -1, 0, 1, 2, 3, 4, 5, 6, -1, -1, -1)
    backwards = canonicalise(straight_stack(7)[:, :, ::-1], np.diag([1.5, 1.5, 8.0, 1.0])).placement
    assert backwards.slices == (-1, -1, 6, 5, 4, 3, 2, 1, 0, -1, -1, -1)


def test_slice_axis_needs_a_clear_lead():
    assert slice_axis(np.diag([1.5, 8.0, 1.5, 1.0])) == 1
    assert slice_axis(np.diag([1.3, 1.2, 1.2, 1.0])) == 2


@pytest.mark.parametrize(
    ("wall", "step", "flag"),
    [
        (straight_stack(closed=False), 8.0, "open_ring"),
        (straight_stack(taper=0.0), 8.0, "base_unclear"),
    ],
)
def test_flags(wall, step, flag):
    assert canonicalise(wall, np.diag([1.5, 1.5, step, 1.0])).flags == (flag,)


def test_gap_is_filled_and_flagged():
    wall = straight_stack()
    wall[:, :, 4] = False
    canonical = canonicalise(wall, np.diag([1.0, 1.0, 8.0, 1.0]))
    assert canonical.flags == ("gap",)
    assert canonical.masks.any((0, 1)).sum() == 9
    assert canonical.placement.slices[1:10] == tuple(range(9))
    whole = canonicalise(straight_stack(), np.diag([1.0, 1.0, 8.0, 1.0]))
    assert dice(canonical.masks[:, :, 5], whole.masks[:, :, 5]) > 0.97


def test_specks_are_removed_and_flagged():
    wall = straight_stack()
    clean = canonicalise(wall, np.diag([1.0, 1.0, 8.0, 1.0]))
    wall[2:4, 2:4, 5] = True
    specked = canonicalise(wall, np.diag([1.0, 1.0, 8.0, 1.0]))
    np.testing.assert_array_equal(specked.masks, clean.masks)
    assert specked.flags == ("specks_removed",)


@pytest.mark.parametrize(
    ("wall", "spacing", "told"),
    [
        (straight_stack(2), (1.5, 1.5, 8.0), "2 slices"),
        (straight_stack(12), (1.5, 1.5, 12.0), "132 mm"),
        (straight_stack(9), (3.0, 3.0, 8.0), "64 fit"),
    ],
)
def test_refusals_hold_numbers(wall, spacing, told):
    with pytest.raises(WallOutOfRange, match=told):
        canonicalise(wall, np.diag([*spacing, 1.0]))


def test_empty_is_its_own_error():
    with pytest.raises(EmptyWall):
        canonicalise(np.zeros((20, 20, 9), bool), np.eye(4))


@pytest.mark.data
@pytest.mark.skipif(not ACDC.is_dir(), reason=f"no ACDC masks under {SHARED}")
def test_real_stacks_are_accepted_base_first():
    with (ACDC / "cases.csv").open() as file:
        cases = list(csv.DictReader(file))
    assert len(cases) == 100
    for case in cases:
        image = nib.load(ACDC / case["file"])
        labels = np.asarray(image.dataobj)
        # The right ventricle ends before the apex of the left: an oracle that the wall alone does not hold.
        right, wall = (np.count_nonzero(labels == v, axis=(0, 1)) for v in (1, 2))
        slices = np.arange(labels.shape[2])
        right_ends_first = np.average(slices, weights=right) < np.average(slices, weights=wall > 0)
        canonical = canonicalise(labels == 2, image.affine)
        assert canonical.placement.flipped != right_ends_first, case["file"]
        assert not {"base_unclear", "open_ring"} & set(canonical.flags), case["file"]
        assert canonicalise(labels[:, :, ::-1] == 2, image.affine).placement.flipped == right_ends_first, case["file"]


def test_a_slice_without_wall_inside_the_stack_is_filled_and_flagged() -> None:
    affine, shape = scan()
    wall = Shell().sample(affine, shape) == 2
    torn = wall.copy()
    middle = int(np.flatnonzero(wall.any((0, 1)))[4])
    torn[:, :, middle] = False
    whole, found = canonicalise(wall, affine), canonicalise(torn, affine)
    assert "gap" in found.flags
    assert "gap" not in whole.flags
    gap = found.placement.slices.index(middle)
    assert dice(found.masks[:, :, gap], whole.masks[:, :, gap]) > 0.85


def test_isotropic_volumes_say_that_the_slice_axis_was_guessed() -> None:
    affine, shape = scan((2.0, 2.0, 2.0), (64, 64, 50))
    assert "slice_axis_unclear" in canonicalise(Shell().sample(affine, shape) == 2, affine).flags


def test_a_gap_between_rings_that_share_no_wall_is_a_ring():
    """Near the apex a thin wall narrows by more than its thickness from slice to slice."""
    x, y = np.mgrid[:128, :128] - 63.5
    radius = np.hypot(x, y)
    rings = [(radius < outer) & (radius > outer - 5) for outer in (34, 32, 28, 0, 15, 9)]
    labels = np.stack(rings, axis=2)
    found = canonicalise(labels, np.diag([1.0, 1.0, 10.0, 1.0]))
    slices = found.placement.slices
    gap = slices.index(3) if 3 in slices else slices.index(2) + 1
    expected = (radius < 21.5) & (radius > 16.5)
    assert dice(found.masks[:, :, gap], expected) > 0.95


def test_the_right_ventricle_comes_along_as_far_as_the_grid_reaches():
    affine, shape = scan()
    labels = Shell().sample(affine, shape)
    x, _, _ = np.moveaxis((world_points(affine, shape) - (BASE + AXIS * LENGTH / 2)) @ FRAME, -1, 0)
    beside = (x > 40) & (labels == 0)
    for flips, order in (((), (0, 1, 2)), ((0, 2), (2, 1, 0))):
        stored, turned = reoriented(labels == 2, affine, flips, order)
        right, _ = reoriented(beside, affine, flips, order)
        canonical = canonicalise(stored, turned, right)
        to_heart = canonical.placement.affine[:3, :3].T @ FRAME[:, 0]
        pixels = np.argwhere(canonical.right)
        assert {int(s) for s in pixels[:, 2]} == {k for k, s in enumerate(canonical.placement.slices) if s >= 0}
        across = (pixels[:, :2] - CENTRE) @ to_heart[:2]
        assert across.min() == pytest.approx(40, abs=3)
        assert not (canonical.right & canonical.masks).any()
    assert canonicalise(labels == 2, affine).right is None
