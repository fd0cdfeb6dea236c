"""The page around the data: markup, style and scripts of this package, and the policy that lets nothing else run."""

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Template
from typing import Final, Self

_HERE: Final = Path(__file__).parent

SCRIPTS: Final = (
    "dom", "arrays", "data", "words", "colours", "outlines", "sections", "bodies", "scene", "surface", "cuts", "slices",
    "bullseye", "numbers", "cine", "case", "table", "summary", "main",
)  # fmt: skip
"""In the order in which they build on each other; one scope holds them all."""
STYLES: Final = ("page", "case", "print")
PAGE: Final = _HERE / "page"
LIBRARY: Final = _HERE / "vendor" / "three.min.js"


@dataclass(frozen=True)
class Assets:
    """Style, library and script as they stand in the page, and the HTML around them."""

    style: str
    library: str
    script: str
    html: str

    @classmethod
    @cache
    def load(cls) -> Self:
        """Read them from the package."""
        style = "".join(_text(PAGE / f"{name}.css") for name in STYLES)
        script = "".join(_text(PAGE / f"{name}.js") for name in SCRIPTS)
        return cls(style, _text(LIBRARY), f'(() => {{\n"use strict";\n{script}}})();\n', _text(PAGE / "page.html"))

    def policy(self) -> str:
        """Content-Security-Policy: these scripts and this style, named by their hashes, and nothing from elsewhere."""
        return (
            f"default-src 'none'; script-src {_hash(self.library)} {_hash(self.script)}; "
            f"style-src {_hash(self.style)}; img-src data:; base-uri 'none'; form-action 'none'"
        )

    def head(self) -> str:
        """All that comes before the data."""
        return Template(self.html.partition("<!-- data -->\n")[0]).substitute(policy=self.policy(), style=self.style)

    def foot(self) -> str:
        """All that comes after the data."""
        return Template(self.html.partition("<!-- data -->\n")[2]).substitute(library=self.library, script=self.script)


def _text(path: Path) -> str:
    # Line ends must be those that a browser hashes, whatever the checkout made of them.
    return path.read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
