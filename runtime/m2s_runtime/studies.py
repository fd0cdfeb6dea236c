"""`studies.csv`: what takes two phases of one heart, such as the ejection fraction.

Phases are put together only where that is certain: frames of one cine; two files named as ACDC does,
`patient001_frame01` and `patient001_frame12`; two files whose names differ in `ED` and `ES` alone.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Final

from m2s_runtime.nifti_files import split_suffix
from m2s_runtime.record import Row

STUDIES: Final = "studies.csv"

_MISSING: Final = 0.1
"""Share of the frames of a cine that may lack a cavity volume."""

_FRAME: Final = re.compile(r"(?<![a-z0-9])frame-?0*(\d+)(?![a-z0-9])", re.IGNORECASE)
_PHASE: Final = re.compile(r"(?<![a-z0-9])(e[ds])(?![a-z0-9])", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Study:
    """One line of `studies.csv`; None where a value is withheld.

    Attributes:
        study: the part of the names that its cases share.
        ed_case: case id of end-diastole.
        es_case: case id of end-systole.
        decided: how these two were told, or why they could not be.
        ed_cavity_ml: volume of the cavity at end-diastole.
        es_cavity_ml: the same at end-systole.
        stroke_ml: their difference.
        ef_percent: ejection fraction, the difference over the volume at end-diastole.
        ed_volume_ml: volume of the wall at end-diastole.
        es_volume_ml: the same at end-systole.
        volume_change_percent: their difference, end-systole less end-diastole, over that at end-diastole; muscle
            hardly changes its volume, so this says how far to trust both.
        ed_mass_g: mass of the wall at end-diastole.
        withheld: why what the cavities are needed for is missing.
    """

    study: str
    ed_case: str | None = None
    es_case: str | None = None
    decided: str
    ed_cavity_ml: float | None = None
    es_cavity_ml: float | None = None
    stroke_ml: float | None = None
    ef_percent: float | None = None
    ed_volume_ml: float | None = None
    es_volume_ml: float | None = None
    volume_change_percent: float | None = None
    ed_mass_g: float | None = None
    withheld: str | None = None


COLUMNS: Final = tuple(f.name for f in dataclasses.fields(Study))


@dataclass(frozen=True)
class _Group:
    """The cases of one heart; `named` when they are end-diastole and end-systole by their names, in this order."""

    name: str
    rows: list[Row]
    named: bool = False


def studies_of(rows: Iterable[Row]) -> list[Study]:
    """The studies among the rows of `cases.csv`, in the order of their names."""
    found = [row for row in rows if row.status != "skipped"]
    groups = sorted([*_cines(found), *_pairs(found)], key=lambda group: group.name)
    return [_study(group) for group in groups]


def _cines(rows: list[Row]) -> list[_Group]:
    """Inputs with several frames."""
    frames: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.frame is not None:
            frames[row.input].append(row)
    return [_Group(several[0].case.rpartition("_t")[0], several) for several in frames.values() if len(several) > 1]


def _pairs(rows: list[Row]) -> list[_Group]:
    """Files of single volumes whose names differ in a frame number, or in the phase, alone."""
    like: defaultdict[tuple[str, bool], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        path = PurePosixPath(row.input)
        stem = split_suffix(path.name)[0]
        for kind in (_FRAME, _PHASE):
            marks = kind.findall(stem)
            if row.frame is None and len(marks) == 1:
                name = kind.sub("*", stem) if path.parent == PurePosixPath() else f"{path.parent}/{kind.sub('*', stem)}"
                like[name, kind is _PHASE][marks[0].lower()].append(row)
                break
    groups: list[_Group] = []
    for (name, named), marked in like.items():
        several = [row for mark in sorted(marked) for row in marked[mark]]
        groups += [_Group(name, several, named)] if len(marked) == len(several) == 2 else []
    return groups


def _study(group: _Group) -> Study:
    known = [row for row in group.rows if row.cavity_ml is not None]
    count = len(group.rows)
    if not group.named and len(known) < 2:
        return Study(study=group.name, decided=f"{len(known)} of {count} volumes have a cavity volume: two are needed")
    if group.named:
        (ed, es), decided = group.rows, "names of the files"
    else:
        ed, es = (choice(known, key=lambda row: row.cavity_ml or 0.0) for choice in (max, min))
        decided = f"largest and smallest cavity of {len(known)} volumes"
        decided += f"; {count - len(known)} more have no cavity volume" if len(known) < count else ""
    study = Study(
        study=group.name, ed_case=ed.case, es_case=es.case, decided=decided, ed_cavity_ml=ed.cavity_ml,
        es_cavity_ml=es.cavity_ml, ed_volume_ml=ed.volume_ml, es_volume_ml=es.volume_ml, ed_mass_g=ed.mass_g,
    )  # fmt: skip
    if ed.volume_ml and es.volume_ml:
        study = replace(study, volume_change_percent=100 * (es.volume_ml - ed.volume_ml) / ed.volume_ml)
    if count - len(known) > _MISSING * count and not group.named:
        return replace(study, withheld="too many volumes have no cavity volume: a phase may be among them")
    return _with_ejection(study)


def _with_ejection(study: Study) -> Study:
    ed, es = study.ed_cavity_ml, study.es_cavity_ml
    if ed is None or es is None:
        return replace(study, withheld="a phase has no cavity volume; its case says why")
    if ed <= es:
        return replace(study, withheld="end-diastole by name has not the larger cavity")
    return replace(study, stroke_ml=ed - es, ef_percent=100 * (ed - es) / ed)
