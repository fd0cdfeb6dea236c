"""Closing the loop: each acquired slice is registered, in its plane, to the reconstruction that the slices gave."""

from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from m2s_runtime.slices import FloatArray, wall_slices

Vector = npt.NDArray[np.float64]

STILL_MM: Final = 0.05
"""Moves smaller than this are the noise of 1 mm pixels; a stack without larger ones is left as it is."""

_REACH_MM: Final = 4.0
"""How far a slice may move along either axis: what is farther off is no slip of the estimate."""

_BAND_MM: Final = 4.0
"""Pixels nearer than this to the section's contour take part."""

_LEAST_PIXELS: Final = 40
_STEPS: Final = 15
_DAMPING: Final = 0.02
_COARSE_MM: Final = 8.0
_FINE_MM: Final = 2.0
"""Residuals beyond this count ever less, so that a tear, a papillary muscle or a missing arc does not pull; the first
steps are more tolerant (graduated non-convexity), so that a slice that is several millimetres off is still caught."""


def register(distances: FloatArray, shifts: FloatArray, cut: FloatArray) -> FloatArray:
    """Shifts under which each slice lies best on the section through the reconstruction in its plane.

    Damped Gauss-Newton on the difference of in-plane signed distances, Geman-McClure weights, sub-pixel.

    Args:
        distances: (128, 128, 12) mm from `slices.signed_distance`, of the slices as they were acquired.
        shifts: (12, 2) mm to start from.
        cut: (128, 128, 12) mm, the `agreement.sections` of the reconstruction.

    Returns:
        (12, 2) float32 mm, within 4 mm of `shifts`. A slice without wall, one that the reconstruction misses, and one
        that would not come to lie better, keep what they had.
    """
    found = shifts.astype(np.float32)
    for s in np.flatnonzero(wall_slices(distances < 0) & wall_slices(cut < 0)):
        found[s] = _registered(distances[:, :, s], _in_plane(cut[:, :, s]), shifts[s].astype(np.float64))
    return found


def _in_plane(section: FloatArray) -> Vector:
    """Distances within the plane, to first order, from distances in space: a wall that slants seems nearer there."""
    along_x, along_y = (np.gradient(section.astype(np.float64), axis=axis) for axis in (0, 1))
    return section / np.maximum(np.hypot(along_x, along_y), 0.3)


def _registered(seen: FloatArray, section: Vector, start: Vector) -> Vector:
    # Beyond the clipped range of the slice nothing can be compared.
    reach = float(np.abs(seen).max())
    pixels = np.argwhere(abs(section) < _BAND_MM).T
    if pixels.shape[1] < _LEAST_PIXELS:
        return start
    wanted = section[*pixels].clip(-reach, reach)
    fields = np.stack([seen.astype(np.float64), *np.gradient(seen.astype(np.float64))])
    shift = start
    for step in range(_STEPS):
        scale = max(_FINE_MM, _COARSE_MM / 2**step)
        move = _newton(fields, pixels, wanted, shift, scale)
        shift = np.clip(shift + move, start - _REACH_MM, start + _REACH_MM)
        if scale == _FINE_MM and abs(move).max() < STILL_MM / 20:
            break
    before, after = (_cost(fields, pixels, wanted, t) for t in (start, shift))
    return shift if after < before else start


def _newton(fields: Vector, pixels: npt.NDArray[np.intp], wanted: Vector, shift: Vector, scale: float) -> Vector:
    value, *slopes = _sampled(fields, pixels, shift)
    residual, slope = value - wanted, np.stack(slopes)
    weights = 1 / (1 + (residual / scale) ** 2) ** 2
    normal = (slope * weights) @ slope.T
    damped = normal + _DAMPING * (np.trace(normal) + 1e-9) * np.eye(2)
    return -np.linalg.solve(damped, slope @ (weights * residual))


def _cost(fields: Vector, pixels: npt.NDArray[np.intp], wanted: Vector, shift: Vector) -> float:
    squares = (_sampled(fields[:1], pixels, shift)[0] - wanted) ** 2 / _FINE_MM**2
    return float((squares / (1 + squares)).mean())


def _sampled(fields: Vector, pixels: npt.NDArray[np.intp], shift: Vector) -> list[Vector]:
    where = pixels + shift[:, None]
    return [np.asarray(ndimage.map_coordinates(field, where, order=1, mode="nearest")) for field in fields]
