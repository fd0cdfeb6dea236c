"""Percentiles, and how many times longer one thing takes than another."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from m2s.bench.result import Quantiles

_RESAMPLES: Final = 10_000


def quantiles(values: Sequence[float]) -> Quantiles:
    """Mean, median and 95th percentile (linear between neighbours).

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("nothing was measured")
    p50, p95 = np.percentile(values, [50, 95])
    return Quantiles(len(values), float(np.mean(values)), float(p50), float(p95))


def ratio(slow: Sequence[float], fast: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Ratio of two means over the same hearts, with its 95 % interval (percentile bootstrap over hearts).

    Args:
        slow: seconds of each heart on one line.
        fast: of the same hearts, in the same order, on the other.
        seed: of the resampling.

    Returns:
        Ratio, lower and upper end.

    Raises:
        ValueError: no heart, or not the same ones.
    """
    if len(slow) != len(fast) or not slow:
        raise ValueError(f"{len(slow)} and {len(fast)} hearts cannot be compared")
    a, b = np.asarray(slow), np.asarray(fast)
    drawn = np.random.default_rng(seed).integers(len(a), size=(_RESAMPLES, len(a)))
    low, high = np.percentile(a[drawn].mean(axis=1) / b[drawn].mean(axis=1), [2.5, 97.5])
    return float(a.mean() / b.mean()), float(low), float(high)
