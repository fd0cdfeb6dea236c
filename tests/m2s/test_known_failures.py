"""The pictures of the model card: what they draw of a heart whose cuts are known."""

from types import ModuleType

import numpy as np
import pytest
from benchmarked import benchmark

from m2s.evaluate.methods import canonical_of, spacing_of
from m2s_runtime.grid import GRID, PADDING, PLANES

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure

CENTRE = 63.5
IN_PLANE = np.linalg.norm(np.moveaxis(np.indices(GRID[:2]), 0, -1) - CENTRE, axis=-1)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return benchmark("known_failures")


@pytest.fixture
def tube() -> np.ndarray:
    """(128, 128, 64) distances of a wall from 20 to 30 mm round the axis, as long as ten slices of 8 mm."""
    along = abs(np.arange(GRID[2]) - GRID[2] / 2 + 0.5) * 2 - 41
    return (np.maximum(abs(IN_PLANE - 25) - 5, 0)[:, :, None] + np.maximum(along, -0.5)).astype(np.float32)


def failure(script: ModuleType, tube: np.ndarray, **changes: object) -> object:
    mask = tube[:, :, PADDING : PADDING + PLANES] < 0
    slices = np.zeros((*GRID[:2], 12), np.bool_)
    slices[:, :, 1:11] = mask[:, :, 30:31]
    stack = canonical_of(slices, spacing_of(8.0))
    return script.Failure(**{"title": "tube", "stack": stack, "level": tube, "flags": (), "truth": mask} | changes)


def test_the_caption_is_measured(script: ModuleType, tube: np.ndarray):
    assert failure(script, tube).caption == "Dice 100.0 %, no flag"
    half = tube[:, :, PADDING : PADDING + PLANES] < 0
    half[64:] = False
    assert failure(script, tube, truth=half).caption == "Dice 66.7 %, no flag"
    assert failure(script, tube, truth=None, flags=("gap", "apex_closed")).caption == "gap apex_closed"


def test_slices_are_drawn_where_they_were_acquired(script: ModuleType, tube: np.ndarray):
    figure = Figure()
    side, across = figure.subplots(2)
    script.draw(failure(script, tube), side, across)
    heights = sorted(float(line.get_ydata()[0]) for line in side.lines)
    np.testing.assert_allclose(np.diff(heights), 8.0)
    drawn = np.concatenate([path.vertices[:, 1] for path in side.collections[-1].get_paths()])
    # Half a slice at either end lies beyond the first and the last.
    assert drawn.min() == pytest.approx(heights[0] - 4, abs=2)
    assert drawn.max() == pytest.approx(heights[-1] + 4, abs=2)
    assert (abs(abs(side.lines[0].get_xdata() - CENTRE) - 25) < 6).all()
    assert side.get_ylim()[0] > side.get_ylim()[1]
