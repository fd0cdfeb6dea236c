"""Renders the report of an output folder: `report.html`, and further pages where one would be slow to open.

A page is a function of what the folder holds, so rendering it again gives the same bytes. Nothing that comes from
outside becomes HTML: it travels as JSON, and the page's own script puts it into text nodes.
"""

import base64
import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from m2s_runtime import atomic
from m2s_runtime.journal import Journal
from m2s_runtime.report.assets import Assets
from m2s_runtime.report.entries import Entry, entries, picture
from m2s_runtime.report.summary import summary

PAGE: Final = "report.html"
MOST_CASES: Final = 200
"""Cases on a page."""
MOST_BYTES: Final = 40 * 2**20
"""Pictures on a page, before base64 makes them a third larger."""

_FURTHER: Final = re.compile(r"report-(\d+)\.html")


def page_name(number: int) -> str:
    """Name of page `number`, from 1."""
    return PAGE if number == 1 else f"report-{number}.html"


def write_report(out: Path) -> Path:
    """Render the report of an output folder from its records, and drop pages of an earlier, longer one.

    Returns:
        The first page, whose table lists every case.

    Raises:
        OutputError: it cannot be written.
    """
    with contextlib.suppress(OSError):  # what a rendering that was killed left
        atomic.sweep(out)
    found = entries(Journal(out, bundle="", options=""))
    chapters = _chapters(found)
    head = {"summary": summary(out, found), "pages": len(chapters)}
    places = {id(entry): number for number, chapter in enumerate(chapters, 1) for entry in chapter}
    # The first page comes last: whoever finds it finds all that it links to.
    for number, chapter in reversed(list(enumerate(chapters, 1))):
        shown = found if number == 1 else chapter
        data = {**head, "page": number, "cases": [_listed(entry, places[id(entry)], number) for entry in shown]}
        atomic.write_bytes(out / page_name(number), _page(data, chapter))
    for path in out.glob("report-*.html"):
        match = _FURTHER.fullmatch(path.name)
        if match and int(match[1]) > len(chapters):
            with contextlib.suppress(OSError):
                path.unlink()
    return out / PAGE


def _chapters(found: Sequence[Entry]) -> list[list[Entry]]:
    """The cases of each page; the frames of a cine are not torn apart unless they alone fill a page."""
    chapters: list[list[Entry]] = [[]]
    size = 0
    for group in _groups(found):
        weight = sum(entry.size for entry in group)
        if chapters[-1] and (len(chapters[-1]) + len(group) > MOST_CASES or size + weight > MOST_BYTES):
            chapters.append([])
            size = 0
        chapters[-1] += group
        size += weight
    return chapters


def _groups(found: Sequence[Entry]) -> Iterator[list[Entry]]:
    group: list[Entry] = []
    for entry in found:
        if group and (entry.group != group[0].group or len(group) == MOST_CASES):
            yield group
            group = []
        group.append(entry)
    yield group


def _listed(entry: Entry, page: int, here: int) -> dict[str, Any]:
    """A case as the script of page `here` gets it: in full if it is shown there."""
    more = {"files": entry.files, "study": entry.study} if page == here else {}
    return {**entry.row, "page": page, "group": entry.group, **more}


def _page(data: dict[str, Any], chapter: Sequence[Entry]) -> Iterator[bytes]:
    """The page, piece by piece: its pictures are never held all at once."""
    assets = Assets.load()
    yield assets.head().encode()
    yield _block("application/json", "data", script_json(data))
    for number, entry in enumerate(chapter):
        shown = picture(entry)
        if isinstance(shown, bytes):
            yield _block("application/octet-stream", f"picture-{number}", base64.b64encode(shown))
        else:
            yield _block("text/plain", f"picture-{number}", script_json(shown))
    yield assets.foot().encode()


def _block(kind: str, name: str, data: bytes) -> bytes:
    return f'<script type="{kind}" id="{name}">'.encode() + data + b"</script>\n"


def script_json(value: object) -> bytes:
    """JSON that can stand inside a script element, whatever it holds."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026").encode()
