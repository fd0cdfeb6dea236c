"""Text from outside (file names, library messages) made safe for terminals and spreadsheets."""

import re
import unicodedata
from typing import Final

_UNSAFE: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_FORMULA: Final = re.compile(r"""(^|[;|][\s"]*)(?=[=+\-@＝＋－＠])""")
"""Where a formula would begin, in wide letters too: at the start, or behind what some countries separate cells with."""

_FOLDERS: Final = re.compile(r"""(?<![\w.:/\\-])([A-Za-z]:)?[/\\]{1,2}([^\s/\\'":,;()]+[/\\])+""")
"""The folders of an absolute path."""


def clean(text: str) -> str:
    """One printable line: white space becomes one blank; control, bidirectional and undecodable characters become `?`.

    Without this a file name could move the cursor, recolour the terminal or fake a second line of a log.
    """
    line = " ".join(text.split())
    return line if line.isprintable() else "".join("?" if unicodedata.category(c) in _UNSAFE else c for c in line)


def without_folders(text: str) -> str:
    """A library's message with only the last part of each absolute path: where files lie is nobody else's business."""
    return _FOLDERS.sub("", text)


def csv_cell(value: object) -> str:
    """A value as one CSV field: numbers shortened, None empty, text cleaned and kept from being read as a formula."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int):
        return str(value)
    return _FORMULA.sub(r"\1'", clean(str(value)))
