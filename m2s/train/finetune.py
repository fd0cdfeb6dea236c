"""Fine-tuning of MCSR-Net on real pairs: an acquired stack and a high-resolution mask of the same heart (paper, 3.2).

Only MCSR-Net is trained, as in the paper. Nobody knows how far the slices of a real stack moved, so of MCSR-ETE's three
terms the two Dice terms remain: the super-resolved mask against the map, and the re-aligned slices against the map's
planes at their places. The re-alignment is soft, so the second one teaches MC-Net.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from m2s.data.clinical import Pair
from m2s.data.heart import keyed_rng
from m2s.data.pair_files import PairFiles, load_pair
from m2s.metrics import dice
from m2s.nets.mcsr import McsrNet
from m2s.nets.presets import PRESETS, McsrSize
from m2s.train.checkpoint import Metadata, load_weights, save_weights
from m2s.train.loop import Arrays, Batch, Facts, Figures, device_of
from m2s.train.mcsr import soft_dice, stack_inputs, stack_samples, symmetry
from m2s.train.published import micro_dice, weight_penalty
from m2s.train.shipped import bundle_at, mcsr_weights
from m2s_runtime.bundle import load_bundle
from m2s_runtime.errors import NoInputs, UsageProblem

JUDGED_PAIRS: Final = 48
"""Selection pairs of a validation."""

_KEPT: Final = ("preset", "data_licence", "step_range_mm", "note", "licence")
"""What the first training's metadata says that stays true."""


@dataclass(frozen=True)
class Initial:
    """Weights to start from, what their checkpoint or bundle says, and the first half of the file's sha256."""

    weights: dict[str, Tensor]
    metadata: Metadata
    digest: str


def read_initial(path: Path, preset: str) -> Initial:
    """Reads `--init`: a bundle, a checkpoint of stage `mcsr`, or the run folder that holds one.

    Raises:
        NoInputs: no such file.
        BundleError: a bundle that is not whole.
        UsageProblem: not a checkpoint, one of another stage or preset, or one that does not fit its preset; a bundle
            whose graphs do not keep the weights.
    """
    file = path / "mcsr" / "best.safetensors" if path.is_dir() else path
    if bundle := bundle_at(path):
        initial = Initial(*mcsr_weights(load_bundle(bundle)))
    elif file.is_file():
        initial = read_checkpoint(file)
    else:
        raise NoInputs(
            f"{file}: no such checkpoint; --init takes a bundle, or <run> or <run>/mcsr/best.safetensors of "
            "m2s-train mcsr"
        )
    weights, metadata = initial.weights, initial.metadata
    if metadata.get("stage") != "mcsr":
        raise UsageProblem(f"{file}: a checkpoint of stage {metadata.get('stage', '?')}; fine-tuning starts from mcsr")
    if metadata.get("preset") != preset:
        told = metadata.get("preset", "?")
        raise UsageProblem(f"{file}: trained as preset {told}, not {preset}; add --preset {told}")
    try:
        with torch.device("meta"):
            McsrNet(PRESETS[preset].mcsr).load_state_dict(weights, assign=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]
        raise UsageProblem(f"{file}: does not fit preset {preset} ({first[0].strip()})") from error
    return initial


def read_checkpoint(file: Path) -> Initial:
    """Reads what a finished training left.

    Raises:
        NoInputs: no such file.
        UsageProblem: not a checkpoint.
    """
    if not file.is_file():
        raise NoInputs(f"{file}: no such checkpoint; finish its training first")
    weights, metadata = load_weights(file)
    return Initial(weights, metadata, hashlib.sha256(file.read_bytes()).hexdigest()[:32])


def pair_arrays(pair: Pair, size: McsrSize, which: int = 0) -> Arrays:
    """What a pair gives to the loss, under one of the eight symmetries of the square."""
    slices, clean, mask = (symmetry(a, which) for a in (pair.slices, pair.clean, pair.mask))
    return stack_inputs(slices, size) | {"clean": clean[None], "mask": mask[None]}


class PairStacks:
    """Batches of prepared pairs under the eight symmetries of the square."""

    def __init__(self, files: tuple[Path, ...], size: McsrSize, seed: int) -> None:
        self._files, self._size, self._seed = files, size, seed

    def batch(self, step: int, size: int) -> Arrays:
        """Inputs, the map's planes at the slices `clean` (B, 1, 128, 128, 12), and `mask` (B, 1, 128, 128, 60)."""
        rng = keyed_rng("fine-tuning", self._seed, step)
        return stack_samples([self._sample(rng) for _ in range(size)])

    def _sample(self, rng: np.random.Generator) -> Arrays:
        pair = load_pair(self._files[int(rng.integers(len(self._files)))])
        return pair_arrays(pair, self._size, int(rng.integers(8)))


def pair_figures(net: McsrNet, pairs: list[Pair]) -> Figures:
    """Mean Dice of the super-resolved mask and of the re-aligned slices, hard, over pairs; and 1 - the first."""
    rows: list[tuple[float, float]] = []
    for pair in pairs:
        arrays = pair_arrays(pair, net.size)
        inputs = {name: torch.from_numpy(arrays[name][None]).to(device_of(net)) for name in ("slices", "pool")}
        with torch.no_grad():
            shifts = net.shifts(inputs["slices"], inputs["pool"])
            corrected, logits = net.logits(inputs["slices"], shifts)
        aligned = _wall_probability(corrected, net.size)[0, 0].cpu().numpy() > 0.5
        rows.append((dice(logits[0, 0].cpu().numpy() > 0, pair.mask), dice(aligned, pair.clean)))
    high, low = (float(v) for v in np.mean(rows, axis=0))
    return {"dice_loss": 1 - high, "dice": high, "dice_slices": low}


class FineTuneStage:
    """MCSR-Net on real pairs, from trained weights; never sees a shift."""

    name = "mcsr"
    monitor = "dice_loss"

    def __init__(
        self, size: McsrSize, initial: Initial, source: PairStacks, selection: list[Pair], facts: Facts
    ) -> None:
        self.size, self.source, self.facts = size, source, facts
        self.net = McsrNet(size)
        self.net.load_state_dict(initial.weights)
        self.model: nn.Module = self.net
        self._selection = selection[:JUDGED_PAIRS]
        self._published = size.motion == "image"

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Figures]:  # noqa: ARG002
        """Dice of the mask + Dice of the re-aligned slices."""
        dissent = micro_dice if self._published else soft_dice
        shifts = self.net.shifts(batch["slices"], batch["pool"]).float()
        corrected, logits = self.net.logits(batch["slices"], shifts)
        low = dissent(_wall_probability(corrected, self.size), batch["clean"])
        high = dissent(torch.sigmoid(logits.float()), batch["mask"])
        total = low + high + (weight_penalty(self.net) if self._published else 0.0)
        return total, {"low": float(low.detach()), "high": float(high.detach())}

    def validate(self, model: nn.Module, folder: Path) -> Figures:  # noqa: ARG002
        """`pair_figures` of the selection pairs."""
        net: McsrNet = model  # pyright: ignore[reportAssignmentType]
        return pair_figures(net, self._selection)

    def metadata(self) -> Facts:
        """What the first training said, and what was added to it."""
        return self.facts


def fine_tuned_facts(initial: Initial, pairs: PairFiles, origin: str) -> Facts:
    """Metadata of fine-tuned weights: the first training's data and settings, and the pairs."""
    kept = {name: initial.metadata[name] for name in _KEPT if name in initial.metadata}
    count = f"{len(pairs.files)} pairs" + (f" ({len(pairs.refused)} more could not be used)" if pairs.refused else "")
    told = {name: initial.metadata.get(name, "?") for name in ("data", "step", "seconds")}
    before = [initial.metadata["note"]] if "note" in initial.metadata else []
    note = "; ".join([*before, f"first {told['step']} steps, {told['seconds']} s; these on {count}"])
    return kept | {"data": f"{told['data']}; then {count} of {origin}", "note": note, "init": initial.digest}


def keep_better(folder: Path, initial: Initial, before: Figures, after: Figures, monitor: str = "dice_loss") -> Figures:
    """Puts the first weights back where fine-tuning did not lower `monitor` on the selection pairs.

    Returns:
        The figures of the weights that `folder/best.safetensors` then holds.
    """
    if after[monitor] < before[monitor]:
        return after
    told = {"validation": json.dumps(before), "init": initial.digest}
    save_weights(folder / "best.safetensors", initial.weights, initial.metadata | told)
    return before


def claim(run: Path, initial: Initial) -> Path:
    """Folder of the fine-tuned stage.

    Raises:
        UsageProblem: the run's `mcsr` came from a training or from other weights.
    """
    folder = run / "mcsr"
    best = folder / "best.safetensors"
    if best.is_file() and load_weights(best)[1].get("init") != initial.digest:
        raise UsageProblem(f"{folder} holds weights that were not fine-tuned from --init: choose another RUN")
    return folder


def adopt_other_stages(run: Path, init: Path) -> list[str]:
    """Copies the other finished stages beside `init` into the run, so that it can be exported."""
    source = init if init.is_dir() else init.parent.parent
    copied: list[str] = []
    for stage in ("vqvae", "diffusion", "decoder"):
        given, wanted = source / stage / "best.safetensors", run / stage / "best.safetensors"
        if given.is_file() and not wanted.exists():
            wanted.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(given, wanted)
            copied.append(stage)
    return copied


def _wall_probability(corrected: Tensor, size: McsrSize) -> Tensor:
    """Soft wall of re-aligned slices, 0.5 at its edge."""
    return torch.sigmoid(-2 * corrected.float()) if size.slices == "signed_distance" else corrected.float()
