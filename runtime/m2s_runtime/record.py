"""What is put on record of a case: its line of `cases.csv`, and the hashes of what made it and of the files it has."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from m2s_runtime import strict_json
from m2s_runtime.nifti_files import files_of

SCHEMA: Final[Literal[1]] = 1

Seen = tuple[int, ...]
"""How a file looks without being read."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of `cases.csv`; None where a value does not apply.

    Attributes:
        case: case id.
        input: input file, relative to the folder that was given.
        frame: frame of a cine, from 0.
        time_ms: when it was taken after frame 0, where the header tells.
        status: `ok` (outputs are complete), `failed`, or `skipped` (a frame without wall).
        error: short code of the refusal.
        message: the refusal, or warnings of a case that is ok.
        labels: what was taken for the wall, and why.
        slices: acquired slices that hold wall and were used.
        step_mm: distance between them.
        volume_ml: volume of the wall.
        mass_g: its mass; this and the next as in `measurements.Measurements`.
        cavity_ml: volume that the wall encloses below the base plane.
        length_mm: of the wall, from the base plane to the apex.
        thickness_mean_mm: mean thickness of the wall.
        thickness_max_mm: its 99th percentile.
        segments_mm: mean thickness in the AHA segments 1 to 17, separated by blanks, `NA` where one is withheld.
        closed: whether the surface is closed.
        components: connected parts of the surface.
        genus: handles of the surface, 0 for the wall of a cup.
        common_shift_x_mm: area-weighted mean of the shifts along x, which the placement adds back; near zero because
            `canonicalise` already centres the pool. Where a cine shares its shifts: what centring the pool added.
        common_shift_y_mm: the same along y.
        mean_shift_mm: mean |component| of the shifts without it, over the slices with wall.
        max_shift_mm: length of the longest of them.
        shift_right_mm: mean |move| of these slices along the scanner's axis from left to right.
        shift_anterior_mm: the same from posterior to anterior.
        shift_superior_mm: the same from inferior to superior.
        agreement_mean: Dice of re-aligned slice and reconstruction in its plane, mean over the slices with wall.
        agreement_least: the same of the worst slice.
        expected_dice: Dice that reconstructions of such stacks have had, see `expected_dice.DiceModel`.
        spread_mean_mm: spread of the posterior samples, mean over the vertices; None with a single sample.
        spread_p95_mm: its 95th percentile.
        volume_sd_ml: standard deviation of `volume_ml` over the posterior samples.
        mass_sd_g: the same of `mass_g`.
        withheld: names of the measurements that would mislead, separated by blanks; their file says why.
        flags: what deserves a look, separated by blanks.
        seconds: time spent on the case.
    """

    case: str
    input: str
    frame: int | None = None
    time_ms: float | None = None
    status: str = "ok"
    error: str | None = None
    message: str | None = None
    labels: str | None = None
    slices: int | None = None
    step_mm: float | None = None
    volume_ml: float | None = None
    mass_g: float | None = None
    cavity_ml: float | None = None
    length_mm: float | None = None
    thickness_mean_mm: float | None = None
    thickness_max_mm: float | None = None
    segments_mm: str | None = None
    closed: bool | None = None
    components: int | None = None
    genus: int | None = None
    common_shift_x_mm: float | None = None
    common_shift_y_mm: float | None = None
    mean_shift_mm: float | None = None
    max_shift_mm: float | None = None
    shift_right_mm: float | None = None
    shift_anterior_mm: float | None = None
    shift_superior_mm: float | None = None
    agreement_mean: float | None = None
    agreement_least: float | None = None
    expected_dice: float | None = None
    spread_mean_mm: float | None = None
    spread_p95_mm: float | None = None
    volume_sd_ml: float | None = None
    mass_sd_g: float | None = None
    withheld: str | None = None
    flags: str | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Record:
    """The completion record of a case: its row, the hashes (hex) of what made it and of the files it has.

    `seen` is how the input looked, `looks` the size and time of each output.
    """

    schema: Literal[1]
    row: Row
    stamp: dict[str, str]
    outputs: dict[str, str]
    seen: Seen = ()
    looks: dict[str, Seen] = dataclasses.field(default_factory=dict[str, Seen])


def read_record(path: Path) -> Record | None:
    """Read a completion record; None when it is missing, cut short, of another schema or made by someone else."""
    try:
        record = strict_json.loads(Record, path.read_bytes())
    except (OSError, strict_json.Misfit):
        return None
    plain = all(Path(name).name == name for name in record.outputs)
    return record if plain and path.name == f"{record.row.case}.json" else None


def source_seen(path: Path) -> Seen:
    """Size, times of change (ns) and inode of an input, or of both files of a pair; nothing when one is out of reach.

    The second time is the file system's own, which no copying program sets: inputs that were unpacked with equal times
    are told apart by it.
    """
    try:
        looks = [file.stat() for file in files_of(path)]
    except OSError:
        return ()
    return tuple(n for seen in looks for n in (seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino))
