"""A beating heart whose slices moved once: every frame is told the same, and lies where the others lie."""

import hashlib

import numpy as np
import pytest
from runtime.shells import AXIS, BASE, FRAME, Shell, scan, world_points

from m2s_runtime.bundle import load_bundle
from m2s_runtime.cine import by_source, by_stack, shared_shifts
from m2s_runtime.engines import open_engine
from m2s_runtime.pipeline import Pipeline
from m2s_runtime.placement import canonicalise
from m2s_runtime.surface import Mesh

KEY = hashlib.sha256(b"cine").hexdigest()
SIZES = (1.0, 0.92, 0.84)


def moved(size: float, shifts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A heart of `size`, its apex held, whose slice k lies `shifts[k]` mm (x, y of the array) off; and its affine."""
    affine, shape = scan()
    apex = BASE + AXIS * 85.0
    seen = world_points(affine, shape) - shifts @ FRAME[:, :2].T
    return Shell().labels((seen - apex) / size + apex) == 2, affine


@pytest.fixture(scope="module")
def shifts() -> np.ndarray:
    return np.random.default_rng(5).normal(0, 3, (11, 2))


@pytest.fixture(scope="module")
def reconstructor() -> Pipeline:
    pytest.importorskip("onnxruntime")
    bundle = load_bundle()
    return Pipeline(bundle, open_engine(bundle), steps=1)


def test_polish_separates_slices_from_frames() -> None:
    rng = np.random.default_rng(0)
    slices, frames = rng.normal(0, 4, (9, 2)), rng.normal(0, 1, (7, 1, 2))
    frames -= frames.mean(axis=0)
    table = slices + frames
    table[2:5, :2] = np.nan  # the base has left
    table[:, 7] = np.nan  # never used
    table[1, 4] += 9.0  # one frame is wrong about one slice
    found = shared_shifts(list(table))
    np.testing.assert_allclose(np.delete(found, 7, axis=0), np.delete(slices, 7, axis=0), atol=1e-3)
    assert np.isnan(found[7]).all()


def test_one_frame_shares_with_itself() -> None:
    alone = np.array([[np.nan, np.nan], [1.0, 2.0], [3.0, -4.0]])
    np.testing.assert_array_equal(shared_shifts([alone]), alone)


def test_shifts_go_by_the_slices_of_the_file(shifts) -> None:
    """Stored the other way round the stack has the same canonical slices, with other numbers."""
    wall, affine = moved(1.0, 0 * shifts)
    turned = affine.copy()
    turned[:3, 3] += 10 * turned[:3, 2]
    turned[:3, 2] *= -1
    for array, matrix in ((wall, affine), (wall[:, :, ::-1], turned)):
        stack = canonicalise(array, matrix)
        numbers = np.stack([np.arange(12.0), -np.arange(12.0)], axis=1).astype(np.float32)
        found = by_source(numbers, stack, 11)
        assert all(found[s][0] == k for k, s in enumerate(stack.placement.slices) if s >= 0)
        back = by_stack(found, stack)
        used = np.array(stack.placement.slices) >= 0
        np.testing.assert_array_equal(back[used], numbers[used])
        assert not back[~used].any()


def test_shared_shifts_are_used_as_they_are(reconstructor, shifts) -> None:
    wall, affine = moved(1.0, shifts)
    stack = canonicalise(wall, affine)
    given = by_stack(-shifts, stack)
    result = reconstructor.reconstruct(stack, KEY, given)
    np.testing.assert_allclose(result.shifts - result.common_shift, given, atol=1e-5)
    own = reconstructor.reconstruct(stack, KEY)
    np.testing.assert_allclose(reconstructor.estimate(stack, KEY), own.shifts - own.common_shift, atol=1e-4)


def test_frames_share_their_shifts_and_their_place(reconstructor, shifts) -> None:
    """The base of the smaller hearts is out of the first slices: each by itself would lie elsewhere."""
    stacks = [canonicalise(*moved(size, shifts)) for size in SIZES]
    assert len({stack.placement.slices for stack in stacks}) > 1
    estimates = [by_source(reconstructor.estimate(stack, KEY), stack, 11) for stack in stacks]
    shared = shared_shifts(estimates)
    held = np.isfinite(shared[:, 0])
    error = (shared - shifts)[held]
    assert np.abs(error - error.mean(axis=0)).mean() < 1.0
    together, alone = [], []
    for stack, size in zip(stacks, SIZES, strict=True):
        truth, affine = moved(size, 0 * shifts)
        middle = world_points(affine, truth.shape)[truth].mean(axis=0)
        result = reconstructor.reconstruct(stack, KEY, by_stack(shared, stack))
        together.append((enclosed_centre(result.mesh) - middle) @ FRAME)
        alone.append((enclosed_centre(reconstructor.reconstruct(stack, KEY).mesh) - middle) @ FRAME)
    apart = np.ptp(together, axis=0)[:2]
    assert apart.max() < 0.5
    assert np.linalg.norm(apart) < 0.7 * np.linalg.norm(np.ptp(alone, axis=0)[:2])


def enclosed_centre(mesh: Mesh) -> np.ndarray:
    """Centroid of what a closed surface encloses, from tetrahedra about its vertices' mean."""
    about = mesh.vertices.mean(axis=0)
    corners = (mesh.vertices - about)[mesh.faces]
    volumes = np.linalg.det(corners)
    return about + volumes @ corners.sum(axis=1) / (4 * volumes.sum())
