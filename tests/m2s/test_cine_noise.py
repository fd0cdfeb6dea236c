"""The unrest of a cine as `benchmarks/cine_noise.py` measures it, where it is known: balls that are too large."""

from types import SimpleNamespace

import numpy as np
import pytest
import trimesh
from benchmarked import benchmark
from runtime.stub import AFFINE, wall

from m2s_runtime.placement import canonicalise

TOO_LARGE = (0.0, 0.5, -0.3)
RADIUS = 30.0


@pytest.fixture(scope="module")
def script():
    return benchmark("cine_noise")


class Swollen:
    """Finds the shifts, misplaces all of the heart by as much in every frame, and gets its size wrong."""

    def __init__(self, balls, shifts, offset):
        self.balls, self.shifts, self.offset, self.calls = balls, shifts, np.array([*offset, 0.0]), 0

    def reconstruct(self, canonical, _noise_key, _shared=None):
        ball, sdg = self.balls[self.calls]
        self.calls += 1
        affine = np.diag([1.0, 1.0, 2.0, 1.0])
        affine[:3, 3] = self.offset
        mesh = SimpleNamespace(vertices=ball.vertices + self.offset, faces=ball.faces.astype(np.int32))
        # Slices taken for less shifted than they are leave the heart that much further on.
        sources = np.array(canonical.placement.slices)
        shifts = self.shifts[sources] - self.offset[:2]
        return SimpleNamespace(mesh=mesh, sdg=sdg, affine=affine, shifts=shifts, common_shift=np.zeros(2))


def test_what_is_measured_is_the_change_of_the_error(script):
    centre, sphere = np.array([63.5, 63.5, 63.0]), trimesh.creation.icosphere(4, RADIUS)
    distance = np.linalg.norm(np.moveaxis(np.indices((128, 128, 64)), 0, -1) * (1, 1, 2) - centre, axis=-1)
    balls = [
        (trimesh.creation.icosphere(4, RADIUS + more).apply_translation(centre), distance - RADIUS - more)
        for more in TOO_LARGE
    ]
    shifts = np.random.default_rng(0).normal(0, 3, (12, 2))
    frames = [canonicalise(wall() == 2, AFFINE)] * len(TOO_LARGE)
    cine = script.Cine(np.stack([sphere.vertices + centre] * len(TOO_LARGE)), frames, shifts)
    unrest, error, slip = script.measure(cine, Swollen(balls, shifts, (2.0, -1.0)), one_noise=True, one_shift=False)
    changes = [abs(a - b) for a, b in zip(TOO_LARGE, np.roll(TOO_LARGE, 1), strict=True)]
    assert unrest == pytest.approx(np.mean(changes), abs=0.01)
    assert error == pytest.approx(np.mean(np.abs(TOO_LARGE)), abs=0.01)
    assert slip == pytest.approx(0.0, abs=1e-6)
