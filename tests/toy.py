"""The toy bundle (see make_toy_bundle.py) and ways to spoil a copy of it."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOY = Path(__file__).parent / "data" / "toy_bundle"


def copy_toy(folder: Path) -> Path:
    """A copy that may be spoilt."""
    return Path(shutil.copytree(TOY, folder / "toy"))


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrites the manifest after `change` has altered it in place."""
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def replace_file(folder: Path, name: str, data: bytes) -> None:
    """Puts other bytes into a file and lists them in the manifest, as a forger would."""
    (folder / name).write_bytes(data)
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    edit_manifest(folder, lambda document: document["files"].update({name: entry}))
