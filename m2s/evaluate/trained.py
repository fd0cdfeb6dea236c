"""What the checkpoints of a training run say of a competing method."""

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from m2s.baselines.registry import BASELINES, open_baseline
from m2s_runtime.errors import EngineError, NoInputs

if TYPE_CHECKING:
    from m2s.baselines.method import Method

SLOW: Final = frozenset({"srheart"})
"""Methods that take minutes a case whatever their size, for they optimise it."""


@dataclass(frozen=True)
class Trained:
    """A competing method as it was trained.

    Attributes:
        name: as in the registry.
        size: of its networks: `published`, `cpu` or `tiny`.
        seconds: of all its trainings, and of the stages of ours that it goes on from.
        digest: sha256 over its weights.
    """

    name: str
    size: str
    seconds: float
    digest: str

    def slow(self, device: str) -> bool:
        """Whether it is to be scored on a few hearts only."""
        return self.name in SLOW or (self.size == "published" and not device.startswith("cuda"))


def trained(name: str, run: Path) -> Trained:
    """Read the metadata of a method's checkpoints in a run.

    Raises:
        NoInputs: it was not trained in this run.
    """
    own = weights_of(name, run)
    if not own:
        raise NoInputs(f"{run}: no {name} in this run; m2s-train baseline {name} {run} trains it")
    read = [run / stage / own[0].name for stage in BASELINES[name].reads]
    files = [*own, *(file for file in read if file.is_file())]
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.parent.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return Trained(name, _metadata(own[0]).get("size", ""), sum(map(_seconds, files)), digest.hexdigest())


def weights_of(name: str, run: Path | None) -> list[Path]:
    """Best weights of a method's trainings in a run, be they those of its first training only."""
    return sorted((run / name).glob("*/best.safetensors")) if run is not None else []


def open_trained(name: str, run: Path, device: str = "auto", threads: int = 1) -> "Method":
    """The method itself, on a device as `torch_device` takes it.

    Raises:
        NoInputs: it was not trained in this run, or not to the end.
        EngineError: there is no such device.
    """
    import torch

    torch.set_num_threads(threads)
    try:
        return open_baseline(name, run, torch_device(device))
    except FileNotFoundError as error:
        raise NoInputs(f"{run}: {name} is not trained to its end ({error})") from error


def torch_device(told: str) -> str:
    """`auto` made out: the GPU where PyTorch sees one.

    Raises:
        EngineError: a GPU was asked for and PyTorch sees none.
    """
    import torch

    seen = torch.cuda.is_available()
    if told.startswith("cuda") and not seen:
        raise EngineError(f"--device {told}: this PyTorch sees no GPU; use --device cpu")
    return ("cuda" if seen else "cpu") if told == "auto" else told


def _metadata(file: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(file, "np") as opened:
        return dict(opened.metadata() or {})


def _seconds(file: Path) -> float:
    """Of a whole training, as its log has it: the best weights may be older than its end."""
    log = file.with_name("log.csv")
    if log.is_file():
        with log.open(newline="") as opened:
            rows = list(csv.DictReader(opened))
        if rows and rows[-1].get("seconds"):
            return float(rows[-1]["seconds"])
    return float(_metadata(file).get("seconds", 0))
