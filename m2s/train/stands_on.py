"""A training that was taught by another one's weights goes on with those alone."""

import json
from pathlib import Path

from m2s.train.checkpoint import digest_of, load_weights
from m2s_runtime.atomic import write_bytes
from m2s_runtime.errors import UsageProblem


def stand_on(folder: Path, earlier: tuple[str, ...], stage: str) -> None:
    """Lets the training in `folder/stage` go on only with the weights of the earlier ones that it began with.

    Args:
        folder: holds every training in a folder of its name.
        earlier: names of those whose `best.safetensors` it is taught by.
        stage: its own name.

    Raises:
        UsageProblem: they were trained further since.
    """
    marker = folder / stage / "taught_by.json"
    used = {name: digest_of(load_weights(folder / name / "best.safetensors")[0]) for name in earlier}
    begun = (folder / stage / "last.safetensors").is_file()
    if begun and marker.is_file() and json.loads(marker.read_text()) != used:
        raise UsageProblem(
            f"{folder / stage} stands on weights of {' and '.join(earlier)} that were trained further since:"
            f" remove {folder / stage} and run again"
        )
    marker.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(marker, json.dumps(used).encode())
