"""How wrong the shifts may be: draws of the error that motion correction leaves, for posterior samples.

A stack says little about the tilt of its heart: slices that moved at random along a slanted axis look like slices of an
upright heart that moved otherwise. What is left after correction is therefore smooth along the stack, tilt first, bend
next, and largest at its ends. It is drawn as a sum of Legendre polynomials of the slice's position, with the
deviations that the bundle's MC-Net leaves on hearts it was not trained on.
"""

import hashlib
from typing import Final

import numpy as np
import numpy.typing as npt
from numpy.polynomial import legendre

from m2s_runtime.slices import BoolArray

Floats = npt.NDArray[np.float32]
Deviations = tuple[float, float, float, float, float]
"""mm: of each slice alone, then of the Legendre polynomials of degree 1 (tilt), 2 (bend), 3 and 4 over the stack."""

NO_ERROR: Final[Deviations] = (0.0, 0.0, 0.0, 0.0, 0.0)
"""Of a bundle that does not tell."""


def draw_shift_errors(held: BoolArray, deviations_mm: Deviations, key: str, seed: int, samples: int) -> Floats:
    """Errors of the shifts of one stack, sample by sample; the same however many samples there are.

    Args:
        held: (12,) which slices hold wall.
        deviations_mm: standard deviations, along x and y alike; the polynomials run from -1 to 1 over the stack.
        key: sha256 of the source, hex.
        seed: of the run.
        samples: how many.

    Returns:
        (samples, 12, 2) float32 mm along x and y, zero where there is no wall.
    """
    alone, *smooth = deviations_mm
    where = np.flatnonzero(held)
    position = np.linspace(-1, 1, int(np.ptp(where)) + 1)[where - where[0]]
    modes = legendre.legvander(position, len(smooth))[:, 1:] * smooth
    errors = np.zeros((samples, len(held), 2))
    for index in range(samples):
        rng = _generator(key, seed, index)
        errors[index, where] = modes @ rng.standard_normal((len(smooth), 2))
        errors[index, where] += alone * rng.standard_normal((len(where), 2))
    return errors.astype(np.float32)


def _generator(key: str, seed: int, index: int) -> np.random.Generator:
    digest = hashlib.sha256(f"shifts {key} {seed} {index}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
