"""`run.json`: what a run was bound to and came to; shards write one each, and the last makes one of all."""

import contextlib
import dataclasses
import json
import platform
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from m2s_runtime import atomic
from m2s_runtime.errors import OK, SOME_FAILED
from m2s_runtime.record import SCHEMA, Row
from m2s_runtime.shards import Shard
from m2s_runtime.versions import installed, version

Document = dict[str, Any]

RUN: Final = "run.json"

_PACKAGES: Final = (
    "numpy", "scipy", "nibabel", "scikit-image", "trimesh", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt",
    "tensorrt_rtx", "cupy-cuda13x",
)  # fmt: skip
_FINISHED: Final = (OK, SOME_FAILED)
"""Exit codes of shards that went through all of their cases."""

_ROWS: Final = "rows"


def surroundings() -> Document:
    """Program, command and machine."""
    return {
        "schema": SCHEMA,
        "version": version(),
        "command": sys.argv,
        "host": platform.node(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: found for name in _PACKAGES if (found := installed(name))},
    }


def path_of(out: Path, shard: Shard) -> Path:
    """Where a shard, or the whole run, keeps its particulars."""
    return out / (RUN if shard.whole else f"run-{shard.name}.json")


def withdraw(out: Path, shard: Shard) -> None:
    """Take back what an earlier run of a shard left, so that no other shard takes it for finished."""
    if not shard.whole:
        path_of(out, shard).unlink(missing_ok=True)


def write(out: Path, shard: Shard, document: Mapping[str, Any], rows: Iterable[Row] = ()) -> None:
    """Write one run's file; that of a shard also keeps the `rows` that no completion record holds.

    Raises:
        OutputError: it cannot be written.
    """
    kept = {} if shard.whole else {_ROWS: [dataclasses.asdict(row) for row in rows]}
    atomic.write_text(path_of(out, shard), json.dumps({**document, **kept}, indent=1) + "\n")


def finished_shards(out: Path, count: int) -> list[Document] | None:
    """The files of all shards, once every one of them went through all of its cases; None before."""
    found: list[Document] = []
    for number in range(1, count + 1):
        exit_code = None
        with contextlib.suppress(OSError, ValueError, AttributeError):  # missing, cut short or no object
            found.append(json.loads(path_of(out, Shard(number, count)).read_bytes()))
            exit_code = found[-1].get("exit_code")
        if exit_code not in _FINISHED:
            return None
    return found


def rows_of(documents: Sequence[Document]) -> list[Row]:
    """Their rows that no completion record holds, each once: all shards tell of an input that holds nothing."""
    return list(dict.fromkeys(Row(**row) for document in documents for row in document[_ROWS]))


def joined(documents: Sequence[Document]) -> Document:
    """One document of those of all shards: that of the last one, with sums, and the others in short."""
    last = max(documents, key=lambda document: str(document["finished"]))
    short = ("shard", "host", "started", "finished", "exit_code", "cases", "seconds")
    return {
        **{name: value for name, value in last.items() if name not in (_ROWS, "shard", "host")},
        "started": min(str(document["started"]) for document in documents),
        "exit_code": max(int(document["exit_code"]) for document in documents),
        "cases": _summed(documents, "cases"),
        "seconds": _summed(documents, "seconds"),
        "shards": [{name: document[name] for name in short} for document in documents],
    }


def _summed(documents: Sequence[Document], name: str) -> dict[str, float]:
    total: Counter[str] = Counter()
    for document in documents:
        total.update(document[name])
    return {key: round(value, 3) for key, value in sorted(total.items())}
