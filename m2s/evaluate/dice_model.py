"""Fitting what Dice to expect: ridge regression of log(1 - Dice) on the traits of stacks spoilt on purpose."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from m2s.evaluate.scores import Row
from m2s_runtime import atomic, strict_json
from m2s_runtime.errors import UsageProblem
from m2s_runtime.expected_dice import ERRORS, TRAITS, DiceModel, faults

Floats = npt.NDArray[np.float64]

LIMIT: Final = "expected_dice"
"""Name of the limit that is fitted."""
PREFIX: Final = "trait_"
"""Of the columns that hold traits."""
_PENALTY: Final = 10.0
"""Of the squared weights of standardised traits; anything from 1 to 100 does as well."""
_FOLDS: Final = 10
_FALSE_ALARMS: Final = 0.08
"""Share of good stacks that lie under the limit where it is fitted; the bar is 10 % on other hearts."""


@dataclass(frozen=True)
class Fitted:
    """What `m2s-export --fitted` takes into a manifest, fields by their names there."""

    flag_limits: dict[str, float]
    dice_model: DiceModel

    def write(self, path: Path) -> None:
        """As JSON."""
        atomic.write_bytes(path, strict_json.dumps(self).encode())


def read_fitted(path: Path) -> Fitted:
    """What `Fitted.write` wrote.

    Raises:
        UsageProblem: no such file, or another kind of file.
    """
    try:
        fitted = strict_json.loads(Fitted, path.read_bytes())
    except (OSError, strict_json.Misfit) as error:
        raise UsageProblem(f"{path}: {error}; give the file that m2s-eval flags --fit wrote") from error
    wrong = faults(fitted.dice_model)
    if set(fitted.flag_limits) != {LIMIT} or not 0 <= fitted.flag_limits[LIMIT] <= 1:
        wrong.append(f"flag_limits is not {LIMIT} alone, between 0 and 1")
    if wrong:
        raise UsageProblem(f"{path}: {wrong[0]}; fit it anew with m2s-eval flags --fit")
    return fitted


def fit(rows: Sequence[Row], good: float) -> Fitted:
    """The model, and the limit under which 8 % of the good stacks lie when those of other hearts were fitted on.

    Args:
        rows: with `dice`, `subject` and traits; those with an `error` do not count.
        good: Dice above which a stack is good.

    Raises:
        UsageProblem: fewer hearts than folds, no good stack, or rows without traits.
    """
    rows = [row for row in rows if not row.get("error")]
    dice = np.array([float(row["dice"] or 0) for row in rows])
    hearts = np.unique([str(row["subject"]) for row in rows], return_inverse=True)[1]
    if hearts.max(initial=-1) + 1 < _FOLDS or not (dice > good).any():
        raise UsageProblem(f"too little to fit on: {_FOLDS} hearts and a good stack are the least; raise --fit-limit")
    table, errors = _table(rows), np.log((1 - dice).clip(*ERRORS))
    expected = np.empty_like(dice)
    for fold in range(_FOLDS):
        held = hearts % _FOLDS == fold
        model = _ridge(table[~held], errors[~held])
        expected[held] = [model.dice(dict(zip(TRAITS, one, strict=True))) for one in table[held].tolist()]
    limit = float(np.quantile(expected[dice > good], _FALSE_ALARMS))
    return Fitted({LIMIT: round(limit, 4)}, _ridge(table, errors))


def expected(row: Row, model: DiceModel) -> float:
    """Of one row."""
    return model.dice(dict(zip(TRAITS, _table([row])[0].tolist(), strict=True)))


def columns(traits: Mapping[str, float]) -> Row:
    """Traits as cells of a row."""
    return {PREFIX + name: value for name, value in traits.items()}


def _table(rows: Sequence[Row]) -> Floats:
    columns = [PREFIX + name for name in TRAITS]
    if missing := [name for name in columns for row in rows if row.get(name) is None]:
        raise UsageProblem(f"rows without {missing[0]}: they are of another version, give a new file to --out")
    return np.array([[float(row[name] or 0) for name in columns] for row in rows])


def _ridge(table: Floats, wanted: Floats) -> DiceModel:
    """Weights for the traits as they are, of a regression on traits of mean 0 and deviation 1."""
    mean, deviation = table.mean(axis=0), table.std(axis=0)
    deviation[deviation == 0] = 1.0
    scaled = (table - mean) / deviation
    gram = scaled.T @ scaled + _PENALTY * np.eye(len(mean))
    weights = np.linalg.solve(gram, scaled.T @ (wanted - wanted.mean())) / deviation
    # The mean of an error is more than the exponential of the mean of its logarithm (smearing, Duan 1983).
    smeared = np.log(np.exp(wanted - wanted.mean() - (table - mean) @ weights).mean())
    intercept = float(wanted.mean() - weights @ mean + smeared)
    return DiceModel(intercept, dict(zip(TRAITS, weights.tolist(), strict=True)))
