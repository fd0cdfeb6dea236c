"""Paired comparisons: the same hearts, the same stacks, and how sure the mean difference is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from m2s.evaluate.scores import COLUMNS, Row
from m2s_runtime.grid import NOMINAL_STEP

RIVALS: Final = ("mcsr", "coarse", "decode-zc", "unconditioned")
COMPARED: Final = ("dice", "assd", "roughness_error")
_RESAMPLES: Final = 10_000
_EVENLY_COVERED: Final = 0.99
"""Hearts of which less lies in the counted planes are left out where slice steps are compared."""


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences over people, with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    count: int


def bootstrap(differences: npt.ArrayLike, seed: int = 0) -> Difference:
    """Percentile bootstrap of a mean.

    Args:
        differences: (N,), one a heart.
        seed: of the resampling.

    Raises:
        ValueError: there is none.
    """
    values = np.asarray(differences, np.float64)
    if not len(values):
        raise ValueError("no pair to compare")
    chosen = np.random.default_rng(seed).integers(len(values), size=(_RESAMPLES, len(values)))
    low, high = np.percentile(values[chosen].mean(axis=1), [2.5, 97.5])
    return Difference(float(values.mean()), float(low), float(high), len(values))


def paired(first: Sequence[Row], second: Sequence[Row], column: str) -> npt.NDArray[np.float64]:
    """Per subject the mean difference, first less second, over the stacks that both have a figure for: (N,)."""
    other = {_stack_of(row): row.get(column) for row in second}
    differences: dict[object, list[float]] = {}
    for row in first:
        a, b = row.get(column), other.get(_stack_of(row))
        if isinstance(a, int | float) and isinstance(b, int | float):
            differences.setdefault(row["subject"], []).append(float(a) - float(b))
    return np.array([np.mean(d) for d in differences.values()], np.float64)


def paired_table(rows: Sequence[Row], first: str = "ours") -> str:
    """Markdown table of `first` less each of its rivals; empty where none was run."""
    mine = [row for row in rows if row["method"] == first]
    pairs = {f"{first} - {rival}": (mine, [r for r in rows if r["method"] == rival]) for rival in RIVALS}
    return _table("mean difference [95 % bootstrap over hearts]", pairs)


def steps_table(rows: Sequence[Row]) -> str:
    """Markdown table of each slice step less 10 mm, on the hearts that both steps cover; empty without 10 mm."""
    pairs: dict[str, tuple[list[Row], list[Row]]] = {}
    seen = [row for row in rows if float(row.get("covered") or 0) >= _EVENLY_COVERED]
    for name in dict.fromkeys(str(row["method"]) for row in rows):
        by_step: dict[float, list[Row]] = {}
        for row in seen:
            if row["method"] == name:
                by_step.setdefault(float(row["step_mm"] or 0), []).append(row)
        usual = by_step.pop(NOMINAL_STEP, [])
        pairs |= {f"{name}, {s:g} - {NOMINAL_STEP:g} mm": (by_step[s], usual) for s in sorted(by_step)}
    return _table("the same hearts [95 % bootstrap]", pairs)


def _stack_of(row: Row) -> tuple[object, ...]:
    return row["subject"], row.get("phase"), row.get("draw")


def _table(title: str, pairs: Mapping[str, tuple[list[Row], list[Row]]]) -> str:
    lines: list[str] = []
    for name, (first, second) in pairs.items():
        found = {c: paired(first, second, c) for c in COMPARED}
        if not len(found["dice"]):
            continue
        cells = " | ".join(_cell(bootstrap(found[c]), *COLUMNS[c][1:]) if len(found[c]) else "-" for c in COMPARED)
        lines.append(f"| {name} | {len(found['dice'])} | {cells} |")
    if not lines:
        return ""
    head = f"| {title} | hearts | " + " | ".join(COLUMNS[c][0] for c in COMPARED) + " |"
    return "\n".join(["", head, "|---" * (len(COMPARED) + 2) + "|", *lines])


def _cell(found: Difference, factor: float, digits: int) -> str:
    mean, low, high = (f"{v * factor:+.{digits}f}" for v in (found.mean, found.low, found.high))
    return f"{mean} [{low}, {high}]"
