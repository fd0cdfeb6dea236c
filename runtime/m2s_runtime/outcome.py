"""What became of a case: the line that its process hands to whoever reports it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from m2s_runtime.record import Row


@dataclass(frozen=True)
class Outcome:
    """What became of one case.

    Attributes:
        row: its line of `cases.csv`.
        state: `done` now, `complete` since an earlier run, `planned` (dry run), `empty` (a frame without wall) or
            `failed`.
        paths: its files, the mesh first.
        seconds: time per stage.
        trace: where an unforeseen error arose.
    """

    row: Row
    state: Literal["done", "complete", "planned", "empty", "failed"]
    paths: tuple[Path, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    trace: str = ""
