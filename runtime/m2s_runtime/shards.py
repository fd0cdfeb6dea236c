"""Parts of a run that different machines do, into one output folder."""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from m2s_runtime.errors import UsageProblem

_SLURM = "SLURM_ARRAY_TASK_"


@dataclass(frozen=True)
class Shard:
    """Part `number` (from 1) of `count`; the whole run is part 1 of 1."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str] = os.environ) -> "Shard":
        """Read `K/N`, or `auto`: the part that a SLURM array job has in it, the whole run outside of one.

        Raises:
            UsageProblem: anything else, or an array whose numbers have gaps.
        """
        if text.strip().lower() == "auto":
            return _slurm(environment)
        match = re.fullmatch(r"\s*(\d{1,6})/(\d{1,6})\s*", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise UsageProblem(
                f"--shard {text}: give K/N with K from 1 to N, such as 2/8, or auto in a SLURM array job"
            )
        return cls(int(match[1]), int(match[2]))

    @property
    def name(self) -> str:
        """As in the names of its files: `2-of-8`."""
        return f"{self.number}-of-{self.count}"

    @property
    def whole(self) -> bool:
        """Whether there is nothing but this part."""
        return self.count == 1

    def holds(self, case: str) -> bool:
        """Whether a source belongs here: by its case id alone, so that files which come or go move no other."""
        digest = hashlib.sha256(case.encode()).digest()
        return int.from_bytes(digest[:8]) % self.count == self.number - 1


def _slurm(environment: Mapping[str, str]) -> Shard:
    if f"{_SLURM}ID" not in environment:
        return Shard()
    try:
        task, first, last, count = (int(environment[_SLURM + name]) for name in ("ID", "MIN", "MAX", "COUNT"))
        step = int(environment.get(f"{_SLURM}STEP", "1"))
    except (KeyError, ValueError) as error:
        raise UsageProblem(f"--shard auto: SLURM's array variables are incomplete ({error}); give K/N") from error
    if step < 1 or last - first != step * (count - 1) or (task - first) % step:
        raise UsageProblem(
            f"--shard auto: the {count} array tasks from {first} to {last} are not evenly spaced, so that parts of the "
            "run would be missing; submit --array=1-N, or give K/N"
        )
    return Shard((task - first) // step + 1, count)
