"""The whole pipeline with the shipped bundle: a heart given by a formula comes back where it was."""

import hashlib

import numpy as np
import pytest
import trimesh
from runtime.shells import FRAME, Shell, reoriented, scan, world_points

from m2s_runtime.bundle import load_bundle
from m2s_runtime.engines import open_engine
from m2s_runtime.pipeline import Pipeline, Reconstruction
from m2s_runtime.placement import canonicalise
from m2s_runtime.surface import signed_volume, topology

KEY = hashlib.sha256(b"shell").hexdigest()
RAS = np.eye(3)
LPS = np.diag([-1.0, -1.0, 1.0])
LAS = np.diag([-1.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def reconstructor() -> Pipeline:
    bundle = load_bundle()
    return Pipeline(bundle, open_engine(bundle), steps=2)


@pytest.fixture(scope="module")
def still(reconstructor: Pipeline) -> tuple[np.ndarray, np.ndarray, Reconstruction]:
    """An unshifted stack, its affine, its reconstruction."""
    affine, shape = scan()
    wall = Shell().sample(affine, shape) == 2
    return wall, affine, reconstructor.reconstruct(canonicalise(wall, affine), KEY)


def _centre(result: Reconstruction) -> np.ndarray:
    return trimesh.Trimesh(result.mesh.vertices, result.mesh.faces, process=False).center_mass


def test_an_unshifted_stack_stays_in_place(still) -> None:
    wall, affine, result = still
    centre = world_points(affine, wall.shape)[wall].mean(0)
    mesh = trimesh.Trimesh(result.mesh.vertices, result.mesh.faces, process=False)
    offset = FRAME.T @ (mesh.center_mass - centre)
    assert np.abs(offset[:2]).max() < 1.0
    assert abs(offset[2]) < 2.0
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(wall.sum() * abs(np.linalg.det(affine[:3, :3])), rel=0.08)


@pytest.mark.parametrize("directions", [RAS, LPS, LAS, FRAME, FRAME[:, [1, 2, 0]], -FRAME])
def test_the_same_voxels_under_another_affine_give_the_same_surface_there(still, reconstructor, directions) -> None:
    wall, a, expected = still
    b = np.eye(4)
    b[:3, :3] = directions * np.linalg.norm(a[:3, :3], axis=0)
    b[:3, 3] = (11.0, -7.0, 30.0)
    found = reconstructor.reconstruct(canonicalise(wall, b), KEY)
    move = b @ np.linalg.inv(a)
    np.testing.assert_allclose(found.mesh.vertices, expected.mesh.vertices @ move[:3, :3].T + move[:3, 3], atol=1e-3)
    assert signed_volume(found.mesh) > 0
    mirrored = np.linalg.det(move[:3, :3]) < 0
    np.testing.assert_array_equal(found.mesh.faces[:, ::-1] if mirrored else found.mesh.faces, expected.mesh.faces)


@pytest.mark.parametrize("order", [(2, 0, 1), (0, 2, 1)])
def test_a_transposed_file_gives_the_same_world_surface(still, reconstructor, order) -> None:
    wall, affine, expected = still
    found = reconstructor.reconstruct(canonicalise(*reoriented(wall, affine, (2,), order)), KEY)
    np.testing.assert_allclose(found.mesh.vertices, expected.mesh.vertices, atol=1e-3)
    assert topology(found.mesh).closed


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0), (1, 2, 0)])
def test_a_file_with_in_plane_axes_swapped_gives_a_surface_in_the_same_place(still, reconstructor, order) -> None:
    """The networks see a mirrored heart, so the surface may differ, but not where it lies."""
    wall, affine, expected = still
    found = reconstructor.reconstruct(canonicalise(*reoriented(wall, affine, (2,), order)), KEY)
    assert topology(found.mesh).closed
    assert signed_volume(found.mesh) > 0
    assert np.linalg.norm(_centre(found) - _centre(expected)) < 1.5


def test_slices_that_moved_are_brought_back(reconstructor) -> None:
    """Shifts of several millimetres: most of each must be found, and the surface stays at their mean."""
    affine, shape = scan((1.0, 1.0, 10.0), (128, 128, 11))
    labels = Shell().sample(affine, shape)
    rng = np.random.default_rng(3)
    moves = rng.integers(-4, 5, (shape[2], 2))
    moved = np.stack([np.roll(labels[:, :, k], moves[k], (0, 1)) for k in range(shape[2])], -1) == 2
    canonical = canonicalise(moved, affine)
    result = reconstructor.reconstruct(canonical, KEY)
    source = np.array(canonical.placement.slices)
    held = (source >= 0) & canonical.masks.any((0, 1))
    true = moves[source[held]] - moves[source[held]].mean(0)
    found = result.shifts[held] - result.shifts[held].mean(0)
    assert np.abs(found - true).mean() < 0.5 * np.abs(true).mean()


def test_same_input_same_bytes_and_the_seed_matters(still, reconstructor) -> None:
    wall, affine, expected = still
    again = reconstructor.reconstruct(canonicalise(wall, affine), KEY)
    assert again.mesh.vertices.tobytes() == expected.mesh.vertices.tobytes()
    other = Pipeline(load_bundle(), reconstructor.engine, steps=2, seed=1).reconstruct(canonicalise(wall, affine), KEY)
    assert other.mesh.vertices.tobytes() != expected.mesh.vertices.tobytes()


def test_every_stage_is_timed(still) -> None:
    names = ["shifts", "super-resolution", "c-sdg", "encode", "denoise", "decode", "agreement", "surface"]
    assert list(still[2].seconds) == names
    assert all(seconds > 0 for seconds in still[2].seconds.values())
