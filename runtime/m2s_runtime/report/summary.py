"""What `run.json` tells a reader of the report; names of machines, commands and paths stay out of it."""

import json
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
    try:
        run = json.loads((out / RUN).read_bytes(), parse_constant=str)
    except (OSError, ValueError):
        run = {}
    run = run if isinstance(run, dict) else {}
    words = ("failed", "flagged", "warned", "fine", "skipped")
    counts = Counter(words[entry.concern] for entry in found)
    return {
        "counts": {word: counts[word] for word in words if counts[word]},
        **_picked(run, ("version", "started", "finished", "exit_code", "python", "platform", "distance_kernel")),
        "bundle": _picked(run.get("bundle"), ("name", "sha256")),
        "engine": _picked(run.get("engine"), ("name", "device", "threads", "description")),
        "packages": _picked(run.get("packages"), None),
        "seconds": _picked(run.get("seconds"), None),
        "options": _changed(run.get("options")),
        "shards": len(run["shards"]) if isinstance(run.get("shards"), list) else 1,
    }


def _picked(value: object, names: Iterable[str] | None) -> dict[str, Any]:
    """The plain values of an object, of all names or of some."""
    if not isinstance(value, dict):
        return {}
    return {name: value[name] for name in (names or sorted(value)) if isinstance(value.get(name), _PLAIN)}


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
