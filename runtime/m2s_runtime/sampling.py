"""Posterior samples: the noise they start from, their mean, and how far they lie apart on its surface."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from m2s_runtime.ddim import draw_noise
from m2s_runtime.grid import SPACING
from m2s_runtime.placement import Affine

Floats = npt.NDArray[np.float32]


def start_noise(
    key: str, seed: int, samples: int, shape: tuple[int, int, int, int], temperature: float = 1.0
) -> Floats:
    """Latents to start from, (samples, D, X, Y, Z) float32; sample i is the same however many there are.

    A sample that stands alone is drawn nearer to the mean: its noise is multiplied by `temperature`.
    """
    noise = np.stack([draw_noise(key, seed, index, shape) for index in range(samples)])
    return noise * np.float32(temperature if samples == 1 else 1.0)


def mean_sdg(sdgs: Floats) -> Floats:
    """(N, X, Y, Z) mm to (X, Y, Z) mm; one sample is its own mean, bit for bit."""
    return sdgs[0] if len(sdgs) == 1 else sdgs.mean(axis=0, dtype=np.float64).astype(np.float32)


def vertex_spread(vertices: npt.NDArray[np.float64], affine: Affine, sdgs: Floats, scale: float = 1.0) -> Floats:
    """Standard deviation of the surface along its normal, at each vertex of the mean surface.

    Args:
        vertices: (V, 3) world mm.
        affine: (4, 4) grid voxel index to world mm.
        sdgs: (N, X, Y, Z) mm, N > 1.
        scale: what the result is multiplied by; see `Manifest.spread_scale`.

    Returns:
        (V,) float32 mm: the standard deviation (N - 1) of the samples' distances, over the slope of their mean, for
        where distances grow slowly a small difference moves the surface far. Slopes count as 0.5 at least, 2 at most.
    """
    inverse = np.linalg.inv(affine)
    where = (vertices @ inverse[:3, :3].T + inverse[:3, 3]).T
    deviation = np.std([_at(sdg, where) for sdg in sdgs], axis=0, ddof=1)
    mean = mean_sdg(sdgs)
    slopes = [_at(np.gradient(mean, SPACING[axis], axis=axis), where) for axis in range(3)]
    steepness = np.sqrt(np.sum(np.square(slopes), axis=0)).clip(0.5, 2.0)
    return (scale * deviation / steepness).astype(np.float32)


def _at(field: Floats, where: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Trilinear; vertices half a voxel beyond the border (the lid of a wall that meets it) take its value."""
    return np.asarray(ndimage.map_coordinates(field, where, np.float64, order=1, mode="nearest"))
