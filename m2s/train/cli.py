"""`m2s-train mcsr|vqvae|diffusion RUN`: the three stages, each resumable, all in one run folder; then `decoder`.

`m2s-train mcsr RUN --init WEIGHTS --data PAIRS` fine-tunes on real pairs; `m2s-train pairs` simulates such pairs.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from m2s.nets.presets import PRESETS
from m2s.train.prepare import prepare
from m2s_runtime.errors import CaseError, EngineError, NoInputs, Stop, UsageProblem
from m2s_runtime.grid import GRID, NOMINAL_STEP

if TYPE_CHECKING:
    from torch import Tensor

    from m2s.data.simulate import MotionLaw
    from m2s.data.store import HeartStore, StoreSpec
    from m2s.nets.mcsr import McsrNet
    from m2s.nets.vqvae import VqVae
    from m2s.train.recipes import StageName

    Split = Literal["training", "selection"]

SELECTION_HEARTS = 25
PAIRS_A_HEART = 2
LARGEST_SPREAD_MM = 20.0
_PAIRS_SEED = 2_000_003
"""Away from the seeds of the hearts that `Job.spec` makes: no pair has a heart of the first training."""


@dataclass(frozen=True)
class Job:
    """The options of a command."""

    run: Path
    preset: str
    atlas: str | None
    label_maps: str | None
    hearts: int
    seed: int
    device: str
    workers: int
    threads: int
    quiet: bool
    steps: int | None
    minutes: float | None
    batch: int | None
    rate: float | None
    codebook: Literal["ema", "gradient"] | None = None
    init: Path | None = None
    data: Path | None = None
    prepared: str | None = None

    @property
    def changes(self) -> dict[str, float | int | None]:
        """What the command changes in the recipe."""
        told = {"steps": self.steps, "minutes": self.minutes, "batch": self.batch, "rate": self.rate}
        return told | {"seed": self.seed}

    @property
    def published(self) -> bool:
        """Whether losses and schedules are those of the paper."""
        return self.preset == "paper"

    def spec(self, split: "Split", *, distances: bool) -> "StoreSpec":
        """Which hearts this stage reads."""
        from m2s.data.store import StoreSpec
        from m2s.train.recipes import HEALTHY

        count = self.hearts if split == "training" else min(SELECTION_HEARTS, self.hearts)
        if self.label_maps is not None:
            count = min(count, _count_label_maps(self.label_maps, split, self.prepared))
        varied = split == "training" and not distances and self.atlas is not None
        seed = 2 * self.seed + distances if split == "training" else 2 * self.seed + distances + 1_000_003
        healthy = HEALTHY if split == "training" and self.atlas is not None and not self.published else 0.0
        return StoreSpec(self.atlas, split, count, seed, distances, varied, self.label_maps, healthy, self.prepared)

    def facts(self, spec: "StoreSpec") -> dict[str, str]:
        """What a checkpoint says of itself."""
        return {"preset": self.preset} | spec.origin

    def folder(self, split: "Split", *, distances: bool) -> Path:
        """Where those hearts are kept."""
        return self.run / "hearts" / (split + ("-distances" if distances else ""))

    def store(self, split: "Split", *, distances: bool) -> "HeartStore":
        """Opens them, making what is missing."""
        from m2s.data.store import open_store

        return open_store(self.folder(split, distances=distances), self.spec(split, distances=distances), self.workers)


_OPTIONS = [
    click.argument("run", type=click.Path(file_okay=False, path_type=Path)),
    click.option("--preset", type=click.Choice(list(PRESETS)), default="compact", show_default=True),
    click.option("--atlas", type=click.Path(exists=True, file_okay=False), help="Folder of the CAP MESA shape atlas."),
    click.option(
        "--label-maps",
        type=click.Path(exists=True, file_okay=False),
        help="Folder of the paper's data set, <id>/HR_ED.nii.gz …",
    ),
    click.option(
        "--prepared",
        type=click.Path(exists=True, file_okay=False),
        help="Folder that m2s-train prepare made of the label maps: their surfaces are its fitted templates.",
    ),
    click.option("--phantom", is_flag=True, help="Train on procedural phantoms instead; needs no data."),
    click.option("--hearts", type=click.IntRange(1), default=1500, show_default=True, help="Training hearts to make."),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
    click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda."),
    click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Processes that make hearts."),
    click.option(
        "--threads", type=click.IntRange(1), default=2, show_default=True, help="CPU threads of the training."
    ),
    click.option("--steps", type=click.IntRange(1), help="Optimiser steps instead of the recipe's."),
    click.option("--minutes", type=click.FloatRange(0), help="Wall-clock budget; the schedule anneals to its end."),
    click.option("--batch", type=click.IntRange(1), help="Batch size instead of the recipe's."),
    click.option("--rate", type=click.FloatRange(0, min_open=True), help="Learning rate instead of the recipe's."),
    click.option("-q", "--quiet", is_flag=True, help="No progress bar."),
]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Train the networks. A stopped training goes on when the same command is given again."""


@main.command()
@click.option(
    "--init",
    type=click.Path(path_type=Path),
    help="Fine-tune these weights (a run, or its mcsr/best.safetensors); with --data.",
)
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of real pairs to fine-tune on, <id>/{LR,HR}_{ED,ES}.nii.gz; with --init.",
)
def mcsr(**options: object) -> None:
    """Motion correction and super-resolution."""
    _run("mcsr", options)


@main.command()
@click.option(
    "--codebook",
    type=click.Choice(["ema", "gradient"]),
    help="Learn the codes by moving averages or by Eq. 1's gradient instead of the preset's way.",
)
def vqvae(**options: object) -> None:
    """Compression of signed distance grids."""
    _run("vqvae", options)


@main.command()
def diffusion(**options: object) -> None:
    """Latent diffusion; needs the other two stages in the same run."""
    _run("diffusion", options)


@main.command()
def decoder(**options: object) -> None:
    """Teach the decoder to read the denoiser's latents; optional, after the diffusion, not for preset paper."""
    _run("decoder", options)


@main.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--atlas", type=click.Path(exists=True, file_okay=False), help="Hearts of the shape atlas in this folder."
)
@click.option("--phantom", is_flag=True, help="Procedural phantoms instead.")
@click.option("--hearts", type=click.IntRange(1), default=40, show_default=True, help="Training pairs.")
@click.option("--held", type=click.IntRange(1), default=10, show_default=True, help="Selection and validation pairs.")
@click.option("--motion", default="normal:4", show_default=True, help="paper, or normal:SD with SD in mm.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
def pairs(out: Path, atlas: str | None, motion: str, *, phantom: bool, hearts: int, held: int, seed: int) -> None:
    """Simulate pairs as --data takes them, to try fine-tuning on a motion that training never saw."""
    _guarded(lambda: _pairs(out, atlas, motion, phantom=phantom, hearts=hearts, held=held, seed=seed))


main.add_command(prepare)

for _command in (mcsr, vqvae, diffusion, decoder):
    for _option in reversed(_OPTIONS):
        _option(_command)


def _run(stage: "StageName", options: dict[str, object]) -> None:
    _guarded(lambda: _stage(stage, options))


def _stage(stage: "StageName", options: dict[str, object]) -> None:
    job = _job(options)
    import torch

    torch.set_num_threads(job.threads)
    if job.init is not None and job.data is not None:
        _fine_tune(job, job.init, job.data)
    else:
        {"mcsr": _mcsr, "vqvae": _vqvae, "diffusion": _diffusion, "decoder": _decoder}[stage](job)


def _guarded(work: Callable[[], None]) -> None:
    """Errors raised on purpose become one line and their exit code."""
    try:
        work()
    except (Stop, CaseError, FileNotFoundError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code if isinstance(error, Stop) else UsageProblem.exit_code)
    except KeyboardInterrupt:
        click.echo("interrupted: the same command goes on from the last checkpoint", err=True)
        sys.exit(130)


def _job(options: dict[str, object]) -> Job:
    sources = [options.pop("phantom"), options["atlas"], options["label_maps"]]
    if options["prepared"] and not options["label_maps"]:
        raise UsageProblem("--prepared FOLDER holds fits of label maps: add --label-maps FOLDER")
    _check_sources(sum(map(bool, sources)), [name for name in ("init", "data") if options.get(name)])
    import torch

    if options["device"] == "auto":
        options["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    if str(options["device"]).startswith("cuda") and not torch.cuda.is_available():
        raise EngineError(f"--device {options['device']}: this PyTorch sees no GPU; use --device cpu")
    return Job(**options)  # pyright: ignore[reportArgumentType]


def _check_sources(hearts: int, tuning: list[str]) -> None:
    """Hearts come from one place; fine-tuning has its own."""
    if len(tuning) == 1:
        raise UsageProblem("--init WEIGHTS and --data PAIRS go together: weights to start from, pairs to fine-tune on")
    if tuning and hearts:
        raise UsageProblem("--data takes the place of --atlas, --label-maps and --phantom: leave those out")
    if not tuning and hearts != 1:
        raise UsageProblem("give one of --atlas FOLDER, --label-maps FOLDER and --phantom")


def _count_label_maps(folder: str, split: "Split", prepared: str | None) -> int:
    from m2s.data.fit_file import prepared_cases
    from m2s.data.labelmaps import LabelMaps

    cases = LabelMaps(folder).cases(split)
    if cases and prepared is not None and not (cases := prepared_cases(prepared, folder, split)):
        raise NoInputs(f"{prepared}: no usable fit of the {split} part of the split; see its quality.csv")
    count = len(cases)
    if count == 0:
        raise NoInputs(f"{folder}: none of its subjects is in the {split} part of the split (label_map_split.json)")
    return count


def _mcsr(job: Job) -> None:
    import torch

    from m2s.data.simulate import PAPER, Mixture
    from m2s.train.loop import fit
    from m2s.train.mcsr import NO_APEX, McsrStage, StackSource
    from m2s.train.published import PublishedMcsrStage
    from m2s.train.recipes import STACKS_A_MASK, recipe

    size = PRESETS[job.preset].mcsr
    store, selection = job.store("training", distances=False), job.store("selection", distances=False)
    law, noise, no_apex = (PAPER, 0.0, 0.0) if job.published else (Mixture(), 0.6, NO_APEX)
    source = StackSource(job.folder("training", distances=False), store.spec, size, job.seed, law, noise, no_apex)
    torch.manual_seed(job.seed)
    kind = PublishedMcsrStage if job.published else McsrStage
    stage = kind(size, source, selection, job.facts(store.spec) | _step_range(store.spec))
    if size.motion == "track":
        stage.adopt_motion(*_motion(job, store.spec, selection))
    plan = recipe(job.preset, "mcsr", STACKS_A_MASK * job.hearts, **job.changes)
    figures = fit(stage, plan, job.run / "mcsr", device=job.device, quiet=job.quiet)
    _report(figures)


def _motion(job: Job, spec: "StoreSpec", selection: "HeartStore") -> tuple[dict[str, "Tensor"], dict[str, str]]:
    """MC-Net of `compact`, trained in a quarter of the time: its weights and the metadata of its checkpoint."""
    from m2s.data.shapes import stored_shapes
    from m2s.train.checkpoint import load_weights
    from m2s.train.loop import fit
    from m2s.train.motion import MotionStage, ShapeSource, Wear, training_law
    from m2s.train.recipes import recipe

    folder = job.folder("training", distances=False)
    stored_shapes(folder, spec, job.workers)
    judged = stored_shapes(job.folder("selection", distances=False), selection.spec, job.workers)
    source = ShapeSource(folder, spec, job.seed, training_law(), Wear())
    stage = MotionStage(PRESETS[job.preset].mcsr, source, judged, job.facts(spec))
    # Batch and rate on the command line are those of SR-Net.
    minutes = job.minutes and job.minutes / 4
    plan = recipe(job.preset, "motion", spec.hearts, steps=job.steps, minutes=minutes, seed=job.seed)
    fit(stage, plan, job.run / "motion", device=job.device, quiet=job.quiet)
    return load_weights(job.run / "motion" / "best.safetensors")


def _step_range(spec: "StoreSpec") -> dict[str, str]:
    """The slice steps that MCSR-Net has seen, for manifest and model card."""
    from m2s.data.store import STEP_RANGE_MM

    return {"step_range_mm": json.dumps(STEP_RANGE_MM if spec.varied_steps else (NOMINAL_STEP, NOMINAL_STEP))}


def _vqvae(job: Job) -> None:
    import torch

    from m2s.train.loop import fit
    from m2s.train.recipes import recipe
    from m2s.train.vqvae import GridSource, VqVaeStage, settle

    size = PRESETS[job.preset].vqvae
    size = replace(size, codebook=job.codebook or size.codebook)
    _check_codebook(job.run / "vqvae" / "best.safetensors", size.codebook, PRESETS[job.preset].vqvae.codebook)
    store, selection = job.store("training", distances=True), job.store("selection", distances=True)
    crop = GRID[0] if job.published else 96
    source = GridSource(job.folder("training", distances=True), store.spec, job.seed, crop)
    torch.manual_seed(job.seed)
    stage = VqVaeStage(size, source, selection, job.facts(store.spec), near_weight=0.0 if job.published else 4.0,
                       balanced=not job.published, monitor="validation_loss" if job.published else "assd",
                       seed=job.seed)  # fmt: skip
    plan = recipe(job.preset, "vqvae", job.hearts, **job.changes)
    figures = fit(stage, plan, job.run / "vqvae", device=job.device, quiet=job.quiet)
    _report(figures if job.published else settle(stage, job.run / "vqvae"))


def _check_codebook(best: Path, wanted: str, usual: str) -> None:
    """A training goes on with the codebook it began with: the other kind has other moments and other averages."""
    from m2s.train.checkpoint import load_weights

    if best.is_file() and (told := load_weights(best)[1].get("codebook", usual)) != wanted:
        raise UsageProblem(f"{best.parent} began with --codebook {told}: add that, or choose another RUN")


def _diffusion(job: Job) -> None:
    import torch

    from m2s.train.diffusion import DiffusionStage
    from m2s.train.loop import fit
    from m2s.train.pairs import PairSource, make_pairs, scale_factor, selection_maker, training_maker
    from m2s.train.published import PublishedDiffusionStage
    from m2s.train.recipes import recipe

    preset = PRESETS[job.preset]
    nets = _trained(job)
    store, selection = job.store("training", distances=True), job.store("selection", distances=True)
    count = PAIRS_A_HEART * job.hearts
    maker, judge = training_maker(store, *nets, job.seed, job.threads), selection_maker(selection, *nets, job.threads)
    if job.published:
        # The paper conditions on the C-SDGs of true masks.
        maker, judge = replace(maker, perfect=1.0), replace(judge, perfect=1.0)
    pairs = make_pairs(job.run / "pairs", maker, count, job.workers)
    scale = scale_factor(pairs)
    torch.manual_seed(job.seed)
    source = PairSource(pairs, job.seed, scale)
    kind = PublishedDiffusionStage if job.published else DiffusionStage
    stage = kind(preset, source, scale, nets[1], judge, job.facts(store.spec), min(10, len(selection)))
    plan = recipe(job.preset, "diffusion", job.hearts if job.published else count, **job.changes)
    _report(fit(stage, plan, job.run / "diffusion", device=job.device, quiet=job.quiet))


def _decoder(job: Job) -> None:
    import torch

    from m2s.nets.denoiser import Denoiser
    from m2s.train.checkpoint import load_weights
    from m2s.train.decoder import DecoderStage, SurfaceSource
    from m2s.train.loop import fit
    from m2s.train.pairs import make_pairs, selection_maker, training_maker
    from m2s.train.recipes import recipe

    preset = PRESETS[job.preset]
    if preset.denoiser.target != "residual":
        raise UsageProblem(f"preset {preset.name} decodes as published: m2s-train decoder is for compact and tiny")
    nets = _trained(job)
    denoiser = Denoiser(preset.denoiser, preset.vqvae.dim)
    weights, told = load_weights(job.run / "diffusion" / "best.safetensors")
    denoiser.load_state_dict(weights)
    store, selection = job.store("training", distances=True), job.store("selection", distances=True)
    maker, judge = training_maker(store, *nets, job.seed, job.threads), selection_maker(selection, *nets, job.threads)
    pairs = make_pairs(job.run / "pairs", maker, PAIRS_A_HEART * job.hearts, job.workers)
    scale = float(told["scale_factor"])
    torch.manual_seed(job.seed)
    source = SurfaceSource(pairs, maker, job.seed, scale)
    stage = DecoderStage(nets[1], denoiser, scale, source, judge, job.facts(store.spec), min(20, len(selection)))
    plan = recipe(job.preset, "decoder", source.count, **job.changes)
    _report(fit(stage, plan, job.run / "decoder", device=job.device, quiet=job.quiet))


def _fine_tune(job: Job, init: Path, data: Path) -> None:
    import torch

    from m2s.data.pair_files import load_pair, prepare_pairs
    from m2s.train.finetune import (
        FineTuneStage,
        PairStacks,
        adopt_other_stages,
        claim,
        fine_tuned_facts,
        keep_better,
        read_initial,
    )
    from m2s.train.loop import fit
    from m2s.train.recipes import recipe

    size, initial = PRESETS[job.preset].mcsr, read_initial(init, job.preset)
    folder = claim(job.run, initial)
    training, selection = (
        prepare_pairs(job.run / "real-pairs" / part, data, part, job.workers) for part in ("training", "selection")
    )
    for name, reason in (training.refused | selection.refused).items():
        click.echo(f"left out {name}: {reason}", err=True)
    torch.manual_seed(job.seed)
    facts = fine_tuned_facts(initial, training, "low- and high-resolution label maps")
    judged = [load_pair(file) for file in selection.files]
    stage = FineTuneStage(size, initial, PairStacks(training.files, size, job.seed), judged, facts)
    before = stage.validate(stage.net.eval(), folder)
    plan = recipe(job.preset, "fine-tuning", len(training.files), **job.changes)
    after = fit(stage, plan, folder, device=job.device, quiet=job.quiet)
    kept = keep_better(folder, initial, before, after)
    _report({f"{name}_before": value for name, value in before.items()} | kept)
    if copied := adopt_other_stages(job.run, init):
        click.echo(f"copied as they are: {', '.join(copied)}", err=True)


def _pairs(out: Path, atlas: str | None, motion: str, *, phantom: bool, hearts: int, held: int, seed: int) -> None:
    from m2s.data.clinical import write_pairs
    from m2s.data.labelmaps import split
    from m2s.data.store import StoreSpec

    if phantom == (atlas is not None):
        raise UsageProblem("give one of --atlas FOLDER and --phantom")
    law, parts = _law(motion), split()
    # Selection and validation come from other people than training, and from different hearts each.
    for part, count, first in (("training", hearts, 0), ("selection", held, 0), ("validation", held, held)):
        if count > len(parts[part]):
            raise UsageProblem(f"{count} pairs: the {part} part of the split has {len(parts[part])} numbers")
        training = part == "training"
        spec = StoreSpec(atlas, "training" if training else "selection", seed=_PAIRS_SEED + 2 * seed + (not training))
        made = ((spec.heart(first + k), subject) for k, subject in enumerate(parts[part][:count]))
        write_pairs(out, ((subject, heart.id, heart.mask) for heart, subject in made), law, seed)


def _law(told: str) -> "MotionLaw":
    from m2s.data.simulate import PAPER, Normal

    name, _, number = told.partition(":")
    if told == "paper":
        return PAPER
    try:
        spread = float(number) if name == "normal" else -1.0
    except ValueError:
        spread = -1.0
    if not 0 < spread <= LARGEST_SPREAD_MM:
        raise UsageProblem(f"--motion {told}: give paper, or normal:SD with SD from 0 to {LARGEST_SPREAD_MM:g} mm")
    return Normal(spread)


def _trained(job: Job) -> tuple["McsrNet", "VqVae"]:
    """The two earlier stages of the run."""
    from m2s.nets.mcsr import McsrNet
    from m2s.nets.vqvae import VqVae
    from m2s.train.checkpoint import load_weights

    preset = PRESETS[job.preset]
    nets = McsrNet(preset.mcsr), VqVae(preset.vqvae)
    for name, net in zip(("mcsr", "vqvae"), nets, strict=True):
        net.load_state_dict(load_weights(job.run / name / "best.safetensors")[0])
        net.eval()
    return nets


def _report(figures: dict[str, float]) -> None:
    click.echo("\n".join(f"{name:16s} {value:.4f}" for name, value in figures.items()))
