"""What `run.json` tells a reader of the report; names of machines, commands and paths stay out of it."""

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from m2s_runtime.options import Options
from m2s_runtime.report.entries import Entry
from m2s_runtime.run_file import RUN

_PLAIN: Final = (str, int, float, bool)
_UNUSUAL: Final = ("overwrite", "anonymise", "limits", "report")
"""Options that say nothing about the results."""


def summary(out: Path, found: Iterable[Entry]) -> dict[str, Any]:
    """Counts of the cases, and of the run what is known: `run.json` may be missing, or another's."""
    run = _read(out / RUN)
    words = ("failed", "flagged", "warned", "fine", "skipped")
    counts = Counter(words[entry.concern] for entry in found)
    return {
        "counts": {word: counts[word] for word in words if counts[word]},
        **_picked(run, ("version", "started", "finished", "python", "platform", "distance_kernel"), (str,)),
        **_picked(run, ("exit_code",)),
        "bundle": _picked(run.get("bundle"), ("name", "sha256"), (str,)),
        "engine": _picked(run.get("engine"), ("name", "device", "threads", "description")),
        "packages": _picked(run.get("packages"), None),
        "seconds": _picked(run.get("seconds"), None),
        "options": _changed(run.get("options")),
        "shards": len(run["shards"]) if isinstance(run.get("shards"), list) else 1,
    }


def _read(path: Path) -> dict[str, Any]:
    """The object in a file that anyone may have edited; an empty one where there is none."""
    try:
        found = json.loads(path.read_bytes(), parse_constant=str, parse_float=_finite)
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _finite(text: str) -> float | str:
    """A number; one that no float can hold stays text, for JSON could not carry it on."""
    value = float(text)
    return value if math.isfinite(value) else text


def _picked(value: object, names: Iterable[str] | None, kinds: tuple[type, ...] = _PLAIN) -> dict[str, Any]:
    """The plain values of an object, of all names or of some."""
    if not isinstance(value, dict):
        return {}
    return {name: value[name] for name in (names or sorted(value)) if isinstance(value.get(name), kinds)}


def _changed(options: object) -> dict[str, Any]:
    """The options that are not as they are unless one asks."""
    if not isinstance(options, dict):
        return {}
    usual = Options()
    changed: dict[str, Any] = {}
    for field in fields(Options):
        value, default = options.get(field.name), getattr(usual, field.name)
        default = list(default) if isinstance(default, tuple) else default
        if field.name in options and field.name not in _UNUSUAL and value != default:
            changed[field.name] = ", ".join(map(str, value)) if isinstance(value, list) else value
    return changed
