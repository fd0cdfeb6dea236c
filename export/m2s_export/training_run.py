"""What a training run left behind: three checkpoints and how they came about."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from torch import Tensor, nn

from m2s.nets.denoiser import Denoiser
from m2s.nets.mcsr import McsrNet
from m2s.nets.presets import PRESETS, Preset
from m2s.nets.vqvae import VqVae
from m2s.train.checkpoint import Metadata, load_weights
from m2s.train.provenance import joined
from m2s_export.graphs import Nets
from m2s_runtime.errors import NoInputs, UsageProblem
from m2s_runtime.grid import NOMINAL_STEP
from m2s_runtime.manifest import NotedStage, Stage, Training

STAGES: Final = ("mcsr", "vqvae", "diffusion")
DECODER: Final = "decoder"
"""The stage that a run may do without: `vqvae` with a decoder that has learnt to read the denoiser's latents."""
CHECKPOINT: Final = "best.safetensors"
NOT_STATED: Final = "not stated"
NOT_RECORDED: Final = "not recorded"
_SOURCE: Final = "SOURCE is the folder of a training run, made by m2s-train"
_CODEBOOKS: Final = {"ema": "moving averages", "gradient": "gradient (Eq. 1)"}
N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class TrainingRun:
    """The networks with their trained weights, and the metadata of each stage's checkpoint."""

    nets: Nets
    metadata: dict[str, Metadata]

    def training(self, data: str | None = None, data_licence: str | None = None) -> Training:
        """For the manifest: steps, seed and seconds of each stage, and the data, as told or as the checkpoints say."""
        stages = {name: stage_of(m) for name, m in self.metadata.items()}
        return Training(data or self._told("data"), data_licence or self._told("data_licence"), stages)

    def _told(self, fact: str) -> str:
        """What the checkpoints say, once where they agree, by stage where they do not."""
        return joined({stage: m.get(fact, NOT_RECORDED) for stage, m in self.metadata.items()})

    @property
    def licence(self) -> str:
        """Licence of the weights as the checkpoint of `mcsr` says."""
        return self.metadata["mcsr"].get("licence", NOT_STATED)

    @property
    def step_range_mm(self) -> tuple[float, float]:
        """Least and greatest slice step that `mcsr` was trained on; the nominal one where its checkpoint says nothing.

        Raises:
            UsageProblem: what the checkpoint says is no such pair.
        """
        return step_range(self.metadata["mcsr"])


def read_training_run(folder: Path) -> TrainingRun:
    """Builds the networks of the run's preset and loads `mcsr`, `vqvae` and `diffusion/best.safetensors`.

    Where there is `decoder/best.safetensors` its decoder takes the place of the one in `vqvae`.

    Raises:
        NoInputs: a checkpoint is missing.
        UsageProblem: the checkpoints are of different presets, do not fit the networks of theirs, or the decoder was
            trained on another encoder.
    """
    stages = (*STAGES, DECODER) if (folder / DECODER / CHECKPOINT).is_file() else STAGES
    loaded = {stage: _load(folder / stage / CHECKPOINT) for stage in stages}
    metadata = {stage: m for stage, (_, m) in loaded.items()}
    weights = {stage: w for stage, (w, _) in loaded.items()}
    preset = _preset(folder, metadata)
    vqvae = _filled(VqVae(preset.vqvae), weights["vqvae"], folder / "vqvae" / CHECKPOINT)
    if DECODER in weights:
        vqvae = _with_decoder(vqvae, weights[DECODER], folder / DECODER / CHECKPOINT)
    nets = Nets(
        preset,
        _filled(McsrNet(preset.mcsr), weights["mcsr"], folder / "mcsr" / CHECKPOINT),
        vqvae,
        _filled(Denoiser(preset.denoiser, preset.vqvae.dim), weights["diffusion"], folder / "diffusion" / CHECKPOINT),
        _scale_factor(folder, metadata["diffusion"]),
    )
    return TrainingRun(nets, metadata)


def read_mcsr(folder: Path) -> tuple[Preset, McsrNet, Metadata]:
    """The run's `mcsr/best.safetensors` alone, as a network of its preset.

    Raises:
        NoInputs: it is missing.
        UsageProblem: it does not fit the networks of its preset.
    """
    weights, metadata = _load(folder / "mcsr" / CHECKPOINT)
    preset = _preset(folder, {"mcsr": metadata})
    return preset, _filled(McsrNet(preset.mcsr), weights, folder / "mcsr" / CHECKPOINT), metadata


def stage_of(metadata: Metadata) -> Stage | NotedStage:
    """For the manifest: steps, seed, seconds and notes of a checkpoint.

    Raises:
        UsageProblem: a number is none.
    """
    try:
        steps, seed = int(metadata.get("step", "0")), int(metadata.get("seed", "0"))
        seconds = float(metadata.get("seconds", "0"))
    except ValueError as error:
        where = f"{metadata.get('stage', 'a stage')}/{CHECKPOINT}"
        raise UsageProblem(f"{where}: step, seed or seconds in its metadata is no number ({error})") from error
    note = "; ".join(_notes(metadata))
    return NotedStage(steps, seed, seconds, note) if note else Stage(steps, seed, seconds)


def _notes(metadata: Metadata) -> list[str]:
    """What there is to say of a stage beside its numbers."""
    notes = [metadata["note"]] if "note" in metadata else []
    if "codebook" in metadata:
        notes.append(f"codebook by {_CODEBOOKS.get(metadata['codebook'], metadata['codebook'])}")
    if "hardware" in metadata:
        notes.append(f"on {metadata['hardware']}, PyTorch {metadata.get('torch', 'of unknown version')}")
    return notes


def step_range(metadata: Metadata) -> tuple[float, float]:
    """Least and greatest slice step of a checkpoint of `mcsr`; the nominal one where it says nothing.

    Raises:
        UsageProblem: what it says is no such pair.
    """
    told = metadata.get("step_range_mm")
    if told is None:
        return NOMINAL_STEP, NOMINAL_STEP
    try:
        pair: Any = json.loads(told)
        low, high = (float(step) for step in pair)
    except (TypeError, ValueError):
        low = high = math.nan
    if not 0 < low <= high < math.inf:
        raise UsageProblem(f"mcsr/{CHECKPOINT}: step_range_mm in its metadata is {told}, not [least, greatest] mm")
    return low, high


def _load(path: Path) -> tuple[dict[str, Tensor], Metadata]:
    try:
        return load_weights(path)
    except FileNotFoundError as error:
        tuned = (path.parents[1] / "mcsr" / CHECKPOINT).is_file()
        remedy = "train that stage, or add --onto BUNDLE if only mcsr is new" if tuned else _SOURCE
        raise NoInputs(f"{path}: missing; {remedy}") from error
    except Exception as error:  # the Rust reader's errors are its own
        raise UsageProblem(f"{path}: not a safetensors checkpoint ({error}); train the stage again") from error


def _preset(folder: Path, metadata: Mapping[str, Metadata]) -> Preset:
    names = {stage: m.get("preset", "") for stage, m in metadata.items()}
    if len(set(names.values())) > 1:
        told = ", ".join(f"{stage} {name or '?'}" for stage, name in names.items())
        raise UsageProblem(f"{folder}: stages of different presets ({told}); train them with the same one")
    name = next(iter(names.values()))
    if name not in PRESETS:
        raise UsageProblem(f"{folder}: preset {name!r} is not one of {', '.join(PRESETS)}")
    return PRESETS[name]


def _filled(net: N, weights: dict[str, Tensor], path: Path) -> N:
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]
        raise UsageProblem(f"{path}: does not fit the networks of its preset ({first[0].strip()})") from error
    broken = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    if broken:
        raise UsageProblem(f"{path}: {broken[0]} is not finite; train the stage again")
    return net.eval()


def _with_decoder(vqvae: VqVae, weights: dict[str, Tensor], path: Path) -> VqVae:
    """The network of stage `decoder`, if it encodes as `vqvae` does; else its latents would mean something else."""
    known = vqvae.state_dict()
    changed = [n for n, t in weights.items() if not n.startswith("decoder") and n in known and not t.equal(known[n])]
    if changed:
        raise UsageProblem(f"{path}: was trained on another encoder than vqvae/{CHECKPOINT} has; train it again")
    return _filled(vqvae, weights, path)


def _scale_factor(folder: Path, metadata: Metadata) -> float:
    try:
        factor = float(metadata.get("scale_factor", ""))
    except ValueError:
        factor = math.nan
    if not (math.isfinite(factor) and factor > 0):
        raise UsageProblem(f"{folder / 'diffusion' / CHECKPOINT}: no usable scale_factor in its metadata")
    return factor
