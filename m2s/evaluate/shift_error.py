"""How wrong the shifts of a bundle are, as `m2s_runtime.shift_error` draws them."""

from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt
from numpy.polynomial import legendre

from m2s_runtime.errors import UsageProblem
from m2s_runtime.shift_error import Deviations

Errors = npt.NDArray[np.float64]

_DEGREE: Final = 4


def deviations(errors: Iterable[Errors]) -> Deviations:
    """Root mean squares of the coefficients of a least-squares fit to each stack, and of what that leaves.

    Args:
        errors: for each stack (S, 2) mm, found less true shifts of its S slices with wall.

    Raises:
        UsageProblem: no stack has slices enough.
    """
    found: list[Errors] = []
    left: list[float] = []
    for error in errors:
        free = len(error) - _DEGREE - 1
        if free > 0:
            basis = legendre.legvander(np.linspace(-1, 1, len(error)), _DEGREE)
            coefficients = np.linalg.lstsq(basis, error, rcond=None)[0]
            found.append(np.square(coefficients[1:]))
            left.append(float(np.square(error - basis @ coefficients).sum() / (2 * free)))
    if not found:
        raise UsageProblem("no stack with slices enough to fit the error of the shifts on: raise --fit-limit")
    tilt, bend, third, fourth = (float(rms) for rms in np.sqrt(np.mean(found, axis=(0, 2))))
    return float(np.sqrt(np.mean(left))), tilt, bend, third, fourth
