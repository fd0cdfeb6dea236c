"""The rows of an evaluation on disk: added as they come, so that a killed run goes on where it stopped."""

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from m2s.evaluate.scores import Row
from m2s_runtime.atomic import write_text
from m2s_runtime.errors import OutputError, UsageProblem
from m2s_runtime.text import csv_cell

ITEM: Final = "item"
"""Column with the name of the unit of work that a row belongs to."""

RUN: Final = "run"
"""Column that says under which model and options a row was made."""

_TEXT: Final = frozenset({ITEM, RUN, "method", "subject", "law", "setting"})
"""Columns that stay text even where they look like numbers."""


def check_place(file: Path | None) -> None:
    """Before hours of work: what they write has a place.

    Raises:
        OutputError: it has none.
    """
    if file is None or (file.is_file() and os.access(file, os.W_OK)):
        return
    if not os.access(file.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{file}: {file.parent} is no folder that can be written in; choose another place")


class RowFile:
    """A table in a CSV file (or in memory only), extended row by row.

    A new column rewrites the file in one step; anything else is appended and flushed. A last line that a killed run
    left unfinished is dropped, and with it the other rows of its unit of work, which is then done again.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Read what is there already.

        Raises:
            UsageProblem: the file is not such a table.
            OutputError: it cannot be read, or there is no place for it.
        """
        check_place(path)
        self._path = path
        self.rows: list[Row] = []
        self._fields: list[str] = []
        if path is not None and path.exists():
            self._read(path)

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows.

        Raises:
            OutputError: the file cannot be written.
        """
        self.rows += rows
        new = list(dict.fromkeys(name for row in rows for name in row if name not in self._fields))
        self._fields += new
        if self._path is None or not rows:
            return
        if new:
            write_text(self._path, ",".join(self._fields) + "\n" + self._text(self.rows))
        else:
            _append(self._path, self._text(rows))

    def _text(self, rows: Iterable[Row]) -> str:
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([csv_cell(row.get(name)) for name in self._fields] for row in rows)
        return text.getvalue()

    def _read(self, path: Path) -> None:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise OutputError(f"{path}: cannot be read ({error}); choose another --out") from error
        whole = text[: text.rfind("\n") + 1]
        reader = csv.DictReader(io.StringIO(whole, newline=""))
        self._fields = list(reader.fieldnames or [])
        if text and (ITEM not in self._fields or RUN not in self._fields):
            raise UsageProblem(f"{path} is there and is no table of m2s-eval: choose another --out or remove it")
        lines = list(reader)
        if any(None in line for line in lines):
            raise UsageProblem(f"{path}: a line has more cells than the first: choose another --out or mend it")
        self.rows = [{name: _value(name, cell or "") for name, cell in line.items()} for line in lines]
        if whole != text:
            self._drop_unit(text.removeprefix(whole))
            write_text(path, ",".join(self._fields) + "\n" + self._text(self.rows))

    def _drop_unit(self, torn: str) -> None:
        """Drop the last rows that are of the unit whose line is torn, in which its name may be torn too."""
        while self.rows:
            cell = self._text([{ITEM: self.rows[-1][ITEM]}]).removesuffix("," * (len(self._fields) - 1) + "\n")
            if not torn.startswith(cell) and not cell.startswith(torn):
                return
            self.rows.pop()


def _append(path: Path, text: str) -> None:
    try:
        with path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error}); free some space") from error


def _value(column: str, cell: str) -> str | int | float | bool | None:
    """What `csv_cell` made a cell of, but for the digits that it rounded off."""
    if column in _TEXT or not cell:
        return cell.removeprefix("'") if cell else None
    if cell in ("true", "false"):
        return cell == "true"
    try:
        number = float(cell)
    except ValueError:
        return cell.removeprefix("'")
    return int(number) if number.is_integer() and "." not in cell and "e" not in cell else number
