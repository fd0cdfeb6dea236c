"""Checkpoints: safetensors written to a temporary name and renamed, so that a killed run always finds a whole one."""

import hashlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from m2s.baselines.registry import BASELINES
from m2s_runtime.atomic import write_bytes
from m2s_runtime.errors import UsageProblem

Metadata = dict[str, str]

_COMMANDS: Final = {"motion": "mcsr"}
"""Trainings that have no command of their own."""


def save_weights(path: Path, weights: dict[str, Tensor], metadata: Metadata) -> None:
    """Writes named tensors and string metadata atomically."""
    write_bytes(path, save({name: t.detach().contiguous().cpu().clone() for name, t in weights.items()}, metadata))


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], Metadata]:
    """State dict and metadata of a checkpoint.

    Raises:
        FileNotFoundError: no such file; the message says how it is made.
        UsageProblem: it is damaged, or no checkpoint.
    """
    if not Path(path).is_file():
        stage, method = Path(path).parent.name, Path(path).parent.parent.name
        command = f"baseline {method}" if method in BASELINES else _COMMANDS.get(stage, stage)
        raise FileNotFoundError(f"{path} not found: train it first with `m2s-train {command}`")
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise UsageProblem(
            f"{path}: damaged, or no checkpoint ({error}); put a whole one in its place, or train it anew"
        ) from error


def metadata_of(path: Path) -> Metadata:
    """Metadata alone; none of a file that is damaged, which its reader will tell."""
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError:
        return {}


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """Sha256 (hex) of names and numbers: of a file it would change with the order in which metadata are written."""
    total = hashlib.sha256()
    for name in sorted(weights):
        total.update(name.encode() + weights[name].cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def save_state(path: Path, tensors: dict[str, Any], metadata: dict[str, Any]) -> None:
    """Writes nested dictionaries of tensors (model, optimiser, average) and JSON metadata as one file."""
    save_weights(path, dict(_flatten(tensors)), {"state": json.dumps(metadata)})


def load_state(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The inverse of `save_state`."""
    flat, metadata = load_weights(path)
    return _nest(flat), json.loads(metadata["state"])


def hardware(device: str) -> str:
    """What a training runs on, for model cards: GPU model, or CPU model and threads; never the machine's name."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_cpu_model()}, {threads} thread{'s' * (threads != 1)}"


def _cpu_model() -> str:
    """As Linux tells it; elsewhere the architecture, since `platform.processor` may hold anything."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or f"{platform.machine()} CPU"


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """The moments of an Adam optimiser as nested tensors; its hyper-parameters belong to the recipe."""
    state = optimiser.state_dict()["state"]
    return {str(k): {n: v for n, v in moments.items() if isinstance(v, Tensor)} for k, moments in state.items()}


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Any]) -> None:
    """Puts the moments back."""
    state = {int(k): dict(moments) for k, moments in tensors.items()}
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


class Average:
    """Exponential moving average of a module's floating-point state, warmed up so that early weights fade fast."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.state = {name: t.detach().clone() for name, t in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Moves the average towards the module."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, t in module.state_dict().items():
            if t.is_floating_point():
                self.state[name].lerp_(t, 1 - decay)
            else:
                self.state[name].copy_(t)


def _flatten(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Tensor]]:
    pairs: list[tuple[str, Tensor]] = []
    for name, value in tree.items():
        pairs += _flatten(value, f"{prefix}{name}/") if isinstance(value, dict) else [(prefix + name, value)]
    return pairs


def _nest(flat: dict[str, Tensor]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, tensor in flat.items():
        *folders, leaf = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = tensor
    return tree
