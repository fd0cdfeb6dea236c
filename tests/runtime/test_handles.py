"""Filling of tunnels, against shapes whose topology is known and against scikit-image's Euler number."""

import numpy as np
import pytest
from skimage.measure import euler_number

from m2s_runtime import handles
from m2s_runtime.handles import carve, simple, surface_without_handles

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
X, Y, Z = np.meshgrid(np.arange(48) - 23.5, np.arange(48) - 23.5, 2.0 * np.arange(32) - 8.0, indexing="ij")


def cup(wall: float = 6.0) -> np.ndarray:
    """Signed distance, roughly, of a cup open at low z: a half ball's shell, 20 mm outside."""
    radius = np.sqrt(X**2 + Y**2 + np.maximum(Z - 10, 0) ** 2)
    shell = np.maximum(radius - 20, 20 - wall - radius)
    return np.maximum(shell, -Z).astype(np.float32)


def rod(axis: np.ndarray, other: np.ndarray, radius: float) -> np.ndarray:
    return np.sqrt(axis**2 + other**2) - radius


def test_a_cup_is_left_as_it_is() -> None:
    surface = surface_without_handles(cup(), AFFINE)
    assert not surface.filled
    assert surface.mesh.topology.genus == 0


@pytest.mark.parametrize("radius", [1.5, 3.0])
def test_tunnels_through_the_wall_are_filled_at_their_narrowest(radius: float) -> None:
    sdg = cup()
    # Two tunnels on one side and one at the other; the cavity is open at the base all the while.
    for y, z, side in ((-6, 10.0, X > 0), (6, 10.0, X > 0), (0, 12.0, X < 0)):
        sdg = np.where(side, np.maximum(sdg, -rod(Y - y, Z - z, radius)), sdg).astype(np.float32)
    surface = surface_without_handles(sdg, AFFINE)
    assert surface.filled
    assert surface.mesh.topology.closed
    assert (surface.mesh.topology.components, surface.mesh.topology.genus) == (1, 0)
    added = carve(sdg) & (sdg >= 0)
    # Euler's number of the wall counts its tunnels: 1 - 3 before, 1 after.
    assert euler_number(sdg < 0, connectivity=3) == -2
    assert euler_number(carve(sdg), connectivity=3) == 1
    assert 0 < added.sum() <= 3 * 3 * np.pi * (radius + 1) ** 2  # three skins, hardly thicker than a voxel


def test_an_open_apex_gets_a_skin_and_the_base_stays_open() -> None:
    sdg = np.maximum(cup(), np.where(Z > 10, -rod(X, Y, 4.0), -np.inf)).astype(np.float32)
    surface = surface_without_handles(sdg, AFFINE)
    assert surface.mesh.topology.genus == 0
    skin = carve(sdg) & (sdg >= 0)
    assert Z[skin].min() > 10


def test_what_would_be_an_invention_is_not_filled() -> None:
    # A tube with two wide ends: its "tunnel" is the cavity itself.
    radius = np.sqrt(X**2 + Y**2)
    tube = np.maximum(np.maximum(radius - 20, 17 - radius), np.abs(Z - 20) - 6).astype(np.float32)
    surface = surface_without_handles(tube, AFFINE)
    assert not surface.filled
    assert surface.mesh.topology.genus == 1


def test_a_sponge_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    sdg = np.random.default_rng(1).normal(size=(24, 24, 24)).astype(np.float32)
    monkeypatch.setattr(handles, "carve", lambda _: pytest.fail("a sponge was carved"))
    surface = surface_without_handles(sdg, AFFINE)
    assert not surface.filled
    assert (surface.mesh.topology.genus or 0) > handles.MOST_TUNNELS


def test_simple_points_change_no_euler_number() -> None:
    """A simple point keeps the Euler number of its neighbourhood, by scikit-image's count."""
    rng = np.random.default_rng(5)
    cubes = rng.uniform(size=(400, 27)) < rng.uniform(0.1, 0.9, (400, 1))
    cubes[:, 13] = True
    found = simple(np.delete(cubes, 13, axis=1))
    assert 20 < found.sum() < 380
    for cube, is_simple in zip(cubes, found, strict=True):
        block = np.pad(cube.reshape(3, 3, 3), 1)
        without = block.copy()
        without[2, 2, 2] = False
        if is_simple:
            assert euler_number(block, connectivity=3) == euler_number(without, connectivity=3)


@pytest.mark.parametrize("alone", [True, False])
def test_an_isolated_voxel_and_the_middle_of_a_wall_are_not_simple(alone: bool) -> None:  # noqa: FBT001
    assert not simple(np.full((1, 26), not alone))[0]
