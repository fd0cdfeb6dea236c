"""What the documentation tells people to type, so that tests can type it.

A block of commands is marked as `sh`, one of Python as `python`. A comment `<!-- not run: why -->` on the line before
it spares a block that cannot run here.
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
_BLOCK = re.compile(r"(<!-- not run: [^\n]+ -->\n)?^```(sh|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page: Path, kind: str) -> list[str]:
    """The blocks of one kind that are meant to run, in order."""
    return [text for spared, found, text in _BLOCK.findall(page.read_text()) if found == kind and not spared]


def commands(page: Path, program: str) -> list[str]:
    """The lines, or parts of lines joined by `&&`, that start with `program`; comments are left out."""
    lines = [re.sub(r"\s+# .*", "", line) for block in blocks(page, "sh") for line in block.splitlines()]
    return [part.strip() for line in lines for part in line.split("&&") if part.strip().startswith(program)]
