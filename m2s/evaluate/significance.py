"""Paired tests over people, and their correction for having made several."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from scipy import stats


def wilcoxon(differences: npt.ArrayLike) -> float:
    """Two-sided p of the signed-rank test (Wilcoxon, Biometrics Bulletin 1(6), 1945) that differences centre on zero.

    Args:
        differences: (N,), one a person; zeros tell nothing and are left out.
    """
    values = np.asarray(differences, np.float64)
    values = values[values != 0]
    return float(cast("Any", stats.wilcoxon(values)).pvalue) if len(values) else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted by Holm's step-down procedure (Scand J Statist 6(2), 1979), in the order given."""
    order = np.argsort(p_values, kind="stable")
    adjusted, largest = np.ones(len(order)), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = largest
    return [float(p) for p in adjusted]
