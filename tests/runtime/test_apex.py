"""Walls that end as a ring become cups; walls that are closed stay as they are, bit for bit."""

import numpy as np
import pytest

from m2s_runtime.apex import CAP_PLANES, close_apex
from m2s_runtime.surface import extract_surface, signed_volume, topology

GRID_TO_MM = np.diag([1.0, 1.0, 2.0, 1.0])


def cup(end_mm: float) -> np.ndarray:
    """Half an ellipsoid shell, open at the base, cut off `end_mm` beyond the middle of the grid."""
    x, y, z = np.meshgrid(np.arange(128) - 63.5, np.arange(128) - 63.5, 2 * (np.arange(64) - 31.5), indexing="ij")
    outer = 30 * (np.sqrt((x / 30) ** 2 + (y / 30) ** 2 + ((z + 20) / 70) ** 2) - 1)
    inner = 20 * (1 - np.sqrt((x / 20) ** 2 + (y / 20) ** 2 + ((z + 20) / 60) ** 2))
    return np.maximum.reduce([outer, inner, -20 - z, z - end_mm]).astype(np.float32)


def test_a_closed_wall_is_left_alone():
    wall = cup(100)
    found, closed = close_apex(wall)
    assert not closed
    assert found is wall


@pytest.mark.parametrize("end_mm", [0, 11, 20, 30])
def test_a_tube_becomes_a_cup(end_mm):
    tube = cup(end_mm)
    assert topology(extract_surface(tube, GRID_TO_MM)).genus == 1
    found, closed = close_apex(tube)
    mesh = extract_surface(found, GRID_TO_MM)
    shape = topology(mesh)
    assert closed
    assert (shape.closed, shape.components, shape.genus) == (True, 1, 0)
    changed = np.flatnonzero((found != tube).any((0, 1)))
    assert len(changed) <= CAP_PLANES
    # A lid of the cavity's area, between one plane and one more than the cap thick.
    hole = np.pi * (20 * np.sqrt(1 - ((end_mm + 20) / 60) ** 2)) ** 2 / 1000
    gained = (signed_volume(mesh) - signed_volume(extract_surface(tube, GRID_TO_MM))) / 1000
    assert 2 * hole < gained < 2 * (CAP_PLANES + 1) * hole + 1


def test_a_hole_in_the_side_of_the_apex_is_closed():
    wall = cup(100)
    x, y, z = np.meshgrid(np.arange(128) - 63.5, np.arange(128) - 63.5, 2 * (np.arange(64) - 31.5), indexing="ij")
    drilled = np.maximum(wall, 3 - np.hypot(x, y) + 0 * z * (z < 0)).astype(np.float32)
    drilled[:, :, :25] = wall[:, :, :25]
    assert topology(extract_surface(drilled, GRID_TO_MM)).genus == 1
    found, closed = close_apex(drilled)
    assert closed
    assert topology(extract_surface(found, GRID_TO_MM)).genus == 0


def test_nothing_in_nothing_out():
    empty = np.full((128, 128, 64), 10.0, np.float32)
    assert close_apex(empty)[1] is False
    solid = empty.copy()
    solid[50:60, 50:60, 20:30] = -5
    assert close_apex(solid)[1] is False


def test_pinholes_are_closed_and_crumbs_dropped():
    wall = cup(100)
    spoilt = wall.copy()
    plane = int(np.flatnonzero((wall < 0).any((0, 1)))[-2])
    i, j = np.argwhere(wall[:, :, plane] < 0).mean(0).round().astype(int)
    spoilt[i : i + 2, j : j + 2, plane] = 1.0
    spoilt[5:8, 5:8, 30] = -1.0
    found, closed = close_apex(spoilt)
    assert not closed
    assert np.array_equal(found < 0, wall < 0)
