"""What the report has to show: the cases of an output folder, worst first, and where their pictures are."""

import csv
import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from m2s_runtime.journal import Journal
from m2s_runtime.record import Record, Row
from m2s_runtime.report.case_report import REPORT
from m2s_runtime.studies import studies_of
from m2s_runtime.table import TABLE
from m2s_runtime.text import clean

LARGEST: Final = 2**21
"""Bytes of a picture beyond which it cannot be one of ours."""

MISSING: Final = "The picture of this case is missing from its folder; run again with --overwrite to have it back."
ALTERED: Final = "The picture of this case was altered or damaged; run again with --overwrite to have it back."
NEVER: Final = "This case was done without a report; run again with --overwrite to have its picture."

_TOLD: Final = ("case", "input", "frame", "status", "error", "message", "labels", "flags")
"""Columns of the table that a case without a surface can have."""

_SHOWN: Final = ("_measurements.json", REPORT)
"""Ends of the files that the page shows the contents of: no need to link to them."""


@dataclass(frozen=True)
class Entry:
    """A case.

    Attributes:
        row: its line of `cases.csv`, without what does not apply.
        files: its files, relative to the report.
        picture: the file with its picture; None when it has none.
        sha256: what that file should hash to (hex).
        size: its bytes, when it was written.
        study: of what it is a phase, see `studies.Study`, without what does not apply.
    """

    row: dict[str, Any]
    files: tuple[str, ...] = ()
    picture: Path | None = None
    sha256: str = ""
    size: int = 0
    study: dict[str, Any] | None = None

    @property
    def group(self) -> str:
        """What the frames of one cine share."""
        return self.row["input"] if "frame" in self.row else f"{self.row['input']}\0{self.row['case']}"

    @property
    def concern(self) -> int:
        """0 failed, 1 flagged, 2 with a warning, 3 fine, 4 nothing there."""
        if self.row["status"] != "ok":
            return 0 if self.row["status"] == "failed" else 4
        return 1 if self.row.get("flags") else 2 if self.row.get("message") else 3


def entries(journal: Journal) -> list[Entry]:
    """Every case of the folder: those on record, and what else the table of the last run tells of.

    The frames of a cine stand together, ordered by time; the most worrying cases come first.
    """
    found = [_recorded(journal.out, record) for record in journal.records()]
    cases = {entry.row["case"] for entry in found}
    found += [Entry(row) for row in _tabled(journal.out / TABLE) if row["case"] not in cases]
    found = _with_studies(found)
    worst: dict[str, int] = {}
    for entry in found:
        worst[entry.group] = min(worst.get(entry.group, 9), entry.concern)
    return sorted(found, key=lambda e: (worst[e.group], e.group, e.row.get("frame", -1), e.row["case"]))


def picture(entry: Entry) -> bytes | str:
    """The picture of a case (gzip), or why there is none."""
    if entry.row["status"] != "ok":
        return "There is no surface to show."
    if entry.picture is None:
        return NEVER
    if not entry.picture.is_file():  # a pipe would never end
        return MISSING
    try:
        with entry.picture.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError:
        return MISSING
    return data if hashlib.sha256(data).hexdigest() == entry.sha256 else ALTERED


def _with_studies(found: list[Entry]) -> list[Entry]:
    """The same, each with its study."""
    studies: dict[str, dict[str, Any]] = {}
    for study in studies_of(Row(**entry.row) for entry in found):
        told = {name: value for name, value in asdict(study).items() if value is not None}
        studies |= {name: told for name in (study.study, study.ed_case, study.es_case) if name}
    return [
        replace(entry, study=studies.get(case.rpartition("_t")[0] if "frame" in entry.row else case))
        for entry in found
        for case in [entry.row["case"]]
    ]


def _recorded(out: Path, record: Record) -> Entry:
    row = {name: value for name, value in asdict(record.row).items() if value is not None}
    case = record.row.case
    files = tuple(f"{case}/{name}" for name in record.outputs if not name.endswith(_SHOWN))
    name = f"{case}{REPORT}"
    if name not in record.outputs:
        return Entry(row, files)
    size = record.looks.get(name, (0,))[0]
    return Entry(row, files, out / case / name, record.outputs[name], size)


def _tabled(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of `cases.csv`, of cases that have no record: refusals of other inputs, frames without wall."""
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            for line in csv.DictReader(file, restkey="", restval=""):
                row: dict[str, Any] = {name: clean(line[name]) for name in _TOLD if line.get(name)}
                if row.get("status") not in ("failed", "skipped"):  # its folder is gone
                    continue
                frame = row.pop("frame", "")
                if frame.isdecimal() and len(frame) < 9:
                    row["frame"] = int(frame)
                yield {"case": "", "input": "", **row}
    except (OSError, csv.Error):
        return
