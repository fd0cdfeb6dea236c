"""The ceiling of a spread's rank correlation, on samples whose ceiling is known."""

from types import ModuleType

import numpy as np
import pytest
from benchmarked import benchmark

from m2s_runtime.grid import GRID

FROM_CENTRE = np.moveaxis(np.indices(GRID), 0, -1) - np.array([63.5, 63.5, 31.5])
RADIUS = np.linalg.norm(FROM_CENTRE * (1, 1, 2), axis=-1)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return benchmark("spread_ceiling")


def balls(offsets: np.ndarray, slope: float) -> np.ndarray:
    """Balls that lie apart by offsets which grow along z, from one end of the ball to the other."""
    growth = np.exp(slope * FROM_CENTRE[..., 2] / 15)
    return np.stack([RADIUS - 30 + offset * growth for offset in offsets]).astype(np.float32)


def test_where_samples_lie_apart_by_law_the_spread_ranks_every_error(script: ModuleType):
    found = list(script.correlations(balls(np.array([-0.9, -0.6, 0.7, 0.9, 0.6]), 1.0)))
    assert len(found) == 5
    assert min(found) > 0.9


def test_where_the_spread_is_the_same_everywhere_it_ranks_nothing(script: ModuleType):
    rng = np.random.default_rng(0)
    sdgs = balls(np.zeros(6), 0.0) + 0.5 * rng.standard_normal((6, *GRID)).astype(np.float32)
    assert abs(np.mean(list(script.correlations(sdgs)))) < 0.1
