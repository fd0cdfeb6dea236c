"""Hearts through all lines in turn, so that what else the machine does meets all of them alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from m2s.bench.lines import Heart, Line
from m2s.bench.result import HeartTimes, Ratio
from m2s.bench.statistics import quantiles, ratio
from m2s_runtime.inputs import Source

WARM_UP = 2
"""Hearts that each line does before any is counted."""


@dataclass
class Samples:
    """Line to the hearts of each file, a round after the other; files that failed on any line are in `excluded`."""

    hearts: dict[str, dict[str, list[Heart]]] = field(default_factory=dict[str, dict[str, list[Heart]]])
    excluded: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])

    def exclude(self, case: str, failure: tuple[str, str]) -> None:
        """Drop a file from every line."""
        self.excluded[case] = failure
        for cases in self.hearts.values():
            cases.pop(case, None)

    def join(self, other: "Samples") -> None:
        """Take in the lines of another measurement of the same files."""
        self.hearts |= other.hearts
        for case, failure in {**self.excluded, **other.excluded}.items():
            self.exclude(case, failure)

    def times(self, line: str) -> HeartTimes | None:
        """What a line came to; None where no file is left."""
        hearts = [heart for cases in self.hearts[line].values() for heart in cases]
        if not hearts:
            return None
        names = dict.fromkeys(name for heart in hearts for name in heart.stages or ())
        return HeartTimes(
            quantiles([heart.wall for heart in hearts]),
            quantiles([heart.cpu for heart in hearts]),
            quantiles([heart.networks for heart in hearts]),
            {name: quantiles([(heart.stages or {}).get(name, 0.0) for heart in hearts]) for name in names},
        )

    def ratios(self, line: str, first: str) -> list[Ratio]:
        """How many times longer `line` takes than `first`, file by file; the mean over rounds counts."""
        pairs = [(self.hearts[line][case], self.hearts[first][case]) for case in self.hearts[first]]
        if not pairs:
            return []
        made: list[Ratio] = []
        apart = all("c-sdg" in (heart.stages or {}) for a, b in pairs for heart in (*a, *b))  # a card does all at once
        exchanged = [("same c-sdg", None)] if apart else []
        for what, pick in (("whole", _wall), ("CPU", _cpu), *exchanged, ("networks", _networks)):
            slow = [_mean(a, pick) if pick else _exchanged(a, b) for a, b in pairs]
            fast = [_mean(b, pick or _wall) for _, b in pairs]
            made.append(Ratio(line, first, what, *ratio(slow, fast), len(pairs)))
        return made


def warm_up(line: Line, sources: Sequence[Source]) -> None:
    """Let a line do the first hearts that it can, uncounted."""
    done = 0
    for source in sources:
        done += line.heart(source).failure is None
        if done == min(WARM_UP, len(sources)):
            return


def one_round(lines: Sequence[Line], sources: Sequence[Source], samples: Samples, turn: int = 0) -> None:
    """Let each line do every file before the next file's turn; who begins changes each time.

    Args:
        lines: open ones, warm.
        sources: files; one that fails on a line is left out on all.
        samples: to which the hearts are added.
        turn: number of the round.
    """
    for line in lines:
        samples.hearts.setdefault(line.spec.name, {})
    for number, source in enumerate(sources):
        if source.case not in samples.excluded:
            start = (turn + number) % len(lines)
            _one_file([*lines[start:], *lines[:start]], source, samples)


def _one_file(lines: Sequence[Line], source: Source, samples: Samples) -> None:
    for line in lines:
        heart = line.heart(source)
        if heart.failure:
            samples.exclude(source.case, heart.failure)
            return
        samples.hearts[line.spec.name].setdefault(source.case, []).append(heart)


def _wall(heart: Heart) -> float:
    return heart.wall


def _cpu(heart: Heart) -> float:
    return heart.cpu


def _networks(heart: Heart) -> float:
    return heart.networks


def _distance(heart: Heart) -> float:
    return (heart.stages or {}).get("c-sdg", 0.0)


def _mean(hearts: Sequence[Heart], pick: Callable[[Heart], float]) -> float:
    return float(np.mean([pick(heart) for heart in hearts]))


def _exchanged(slow: Sequence[Heart], fast: Sequence[Heart]) -> float:
    """Seconds of the slow line, had it the distances of the fast one."""
    return _mean(slow, _wall) - _mean(slow, _distance) + _mean(fast, _distance)
