"""`cases.csv`: the rows of all cases, for people."""

import csv
import dataclasses
import io
from collections.abc import Iterable, Sequence
from typing import Final

from m2s_runtime.record import Row
from m2s_runtime.text import csv_cell

TABLE: Final = "cases.csv"
COLUMNS: Final = tuple(f.name for f in dataclasses.fields(Row))


def order(row: Row) -> tuple[str, str, int]:
    """What rows are sorted by."""
    return row.case, row.input, -1 if row.frame is None else row.frame


def to_csv(rows: Iterable[object], columns: Sequence[str] = COLUMNS) -> str:
    """A table as text, with a header line; no field can be taken for a formula."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([csv_cell(getattr(row, column)) for column in columns] for row in rows)
    return text.getvalue()
