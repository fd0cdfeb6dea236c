"""Posterior samples: the noise they start from, their mean, and how far they lie apart on its surface."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from m2s_runtime.ddim import DEFAULT_STEPS, draw_noise
from m2s_runtime.errors import UsageProblem
from m2s_runtime.grid import SPACING
from m2s_runtime.manifest import Manifest
from m2s_runtime.placement import Affine

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Sampling:
    """DDIM steps, and the factor on the noise that a sample that stands alone starts from."""

    steps: int
    temperature: float


EXACT: Final = Sampling(DEFAULT_STEPS, 1.0)
"""As in the paper."""

POOLED_MM: Final = 6.0
"""Standard deviation of the Gaussian that the samples' variance is averaged with."""


def chosen_sampling(manifest: Manifest, steps: int | None, quality: str | None, samples: int) -> Sampling:
    """What the bundle makes of the options of the same names.

    Raises:
        UsageProblem: a fast sampling that the bundle does not have.
    """
    if quality == "exact":
        return EXACT
    if quality == "fast" and manifest.steps >= EXACT.steps:
        raise UsageProblem(
            f"--quality fast: bundle {manifest.name} has {manifest.steps} steps, no fewer; say how many with --steps"
        )
    usual = manifest.steps if samples == 1 else manifest.sample_steps or manifest.steps
    count = steps or usual
    # A damped start goes with the number of steps that it was chosen for; any other is plain sampling.
    return Sampling(count, manifest.temperature if samples == 1 and count == manifest.steps else 1.0)


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
        (V,) float32 mm: the root of the variance (N - 1) of the samples' distances, averaged with a Gaussian of
        `POOLED_MM`, over the slope of their mean, for where distances grow slowly a small difference moves the surface
        far. Slopes count as 0.5 at least, 2 at most.
    """
    inverse = np.linalg.inv(affine)
    where = (vertices @ inverse[:3, :3].T + inverse[:3, 3]).T
    mean = mean_sdg(sdgs)
    # A variance of few samples is itself a draw; what lies near varies alike.
    widths = [POOLED_MM / s for s in SPACING]
    variance = np.asarray(ndimage.gaussian_filter(_variance(sdgs, mean), widths, mode="nearest"), np.float32)
    slopes = [_at(np.gradient(mean, SPACING[axis], axis=axis), where) for axis in range(3)]
    steepness = np.sqrt(np.sum(np.square(slopes), axis=0)).clip(0.5, 2.0)
    return (scale * np.sqrt(_at(variance, where)) / steepness).astype(np.float32)


def _variance(sdgs: Floats, mean: Floats) -> Floats:
    """(N, X, Y, Z) to (X, Y, Z), N - 1 in the denominator, one sample at a time."""
    total = np.zeros_like(mean)
    for sdg in sdgs:
        total += np.square(sdg - mean)
    return total / np.float32(len(sdgs) - 1)


def wall_volumes(sdgs: Floats) -> tuple[float, ...]:
    """Volume of the wall (ml) in each of (N, X, Y, Z) mm, by its voxels."""
    counts = np.count_nonzero(sdgs < 0, axis=(1, 2, 3))
    return tuple(float(count) * float(np.prod(SPACING)) / 1000 for count in counts)


def _at(field: Floats, where: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Trilinear; vertices half a voxel beyond the border (the lid of a wall that meets it) take its value."""
    return np.asarray(ndimage.map_coordinates(field, where, np.float64, order=1, mode="nearest"))
