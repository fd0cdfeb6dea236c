"""`m2s-train mcsr|vqvae|diffusion RUN`: the three stages, each resumable, all in one run folder."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from m2s.nets.presets import PRESETS
from m2s_runtime.errors import CaseError, EngineError, NoInputs, Stop, UsageProblem
from m2s_runtime.grid import GRID, NOMINAL_STEP

if TYPE_CHECKING:
    from m2s.data.store import HeartStore, StoreSpec
    from m2s.nets.mcsr import McsrNet
    from m2s.nets.vqvae import VqVae
    from m2s.train.recipes import StageName

    Split = Literal["training", "selection"]

SELECTION_HEARTS = 25
PAIRS_A_HEART = 2


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

    def spec(self, split: "Split", *, distances: bool) -> "StoreSpec":
        """Which hearts this stage reads."""
        from m2s.data.store import StoreSpec

        count = self.hearts if split == "training" else min(SELECTION_HEARTS, self.hearts)
        if self.label_maps is not None:
            count = min(count, _count_label_maps(self.label_maps, split))
        varied = split == "training" and not distances and self.atlas is not None
        seed = 2 * self.seed + distances if split == "training" else 2 * self.seed + distances + 1_000_003
        return StoreSpec(self.atlas, split, count, seed, distances, varied, self.label_maps)

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
def mcsr(**options: object) -> None:
    """Motion correction and super-resolution."""
    _run("mcsr", options)


@main.command()
def vqvae(**options: object) -> None:
    """Compression of signed distance grids."""
    _run("vqvae", options)


@main.command()
def diffusion(**options: object) -> None:
    """Latent diffusion; needs the other two stages in the same run."""
    _run("diffusion", options)


for _command in (mcsr, vqvae, diffusion):
    for _option in reversed(_OPTIONS):
        _option(_command)


def _run(stage: "StageName", options: dict[str, object]) -> None:
    try:
        job = _job(options)
        import torch

        torch.set_num_threads(job.threads)
        {"mcsr": _mcsr, "vqvae": _vqvae, "diffusion": _diffusion}[stage](job)
    except (Stop, CaseError, FileNotFoundError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code if isinstance(error, Stop) else UsageProblem.exit_code)
    except KeyboardInterrupt:
        click.echo("interrupted: the same command goes on from the last checkpoint", err=True)
        sys.exit(130)


def _job(options: dict[str, object]) -> Job:
    sources = [options.pop("phantom"), options["atlas"], options["label_maps"]]
    if sum(map(bool, sources)) != 1:
        raise UsageProblem("give one of --atlas FOLDER, --label-maps FOLDER and --phantom")
    import torch

    if options["device"] == "auto":
        options["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    if str(options["device"]).startswith("cuda") and not torch.cuda.is_available():
        raise EngineError(f"--device {options['device']}: this PyTorch sees no GPU; use --device cpu")
    return Job(**options)  # pyright: ignore[reportArgumentType]


def _count_label_maps(folder: str, split: "Split") -> int:
    from m2s.data.labelmaps import LabelMaps

    count = len(LabelMaps(folder).cases(split))
    if count == 0:
        raise NoInputs(f"{folder}: none of its subjects is in the {split} part of the split (label_map_split.json)")
    return count


def _mcsr(job: Job) -> None:
    import torch

    from m2s.data.simulate import PAPER, Mixture
    from m2s.train.loop import fit
    from m2s.train.mcsr import McsrStage, StackSource, polish
    from m2s.train.recipes import POLISH_STEPS, WARM_UP_STEPS, recipe

    size = PRESETS[job.preset].mcsr
    store, selection = job.store("training", distances=False), job.store("selection", distances=False)
    law = PAPER if job.preset == "paper" else Mixture()
    noise = 0.0 if job.preset == "paper" else 0.6
    source = StackSource(job.folder("training", distances=False), store.spec, size, job.seed, law, noise)
    torch.manual_seed(job.seed)
    stage = McsrStage(size, source, selection, job.facts(store.spec) | _motion_facts(job.preset, store.spec))
    if not (job.run / "mcsr" / "last.safetensors").is_file():
        stage.train_track(WARM_UP_STEPS[job.preset])
    plan = recipe(job.preset, "mcsr", job.hearts, steps=job.steps, minutes=job.minutes, batch=job.batch, rate=job.rate,
                  seed=job.seed)  # fmt: skip
    figures = fit(stage, plan, job.run / "mcsr", device=job.device, quiet=job.quiet)
    polishing = POLISH_STEPS[job.preset]
    _report(polish(stage, job.run / "mcsr", polishing) if polishing else figures)


def _motion_facts(preset: str, spec: "StoreSpec") -> dict[str, str]:
    """What manifest and model card say of MCSR-Net beside its steps."""
    from m2s.data.store import STEP_RANGE_MM
    from m2s.train.recipes import WARM_UP_STEPS

    steps = STEP_RANGE_MM if spec.varied_steps else (NOMINAL_STEP, NOMINAL_STEP)
    return {"track_steps": str(WARM_UP_STEPS[preset]), "step_range_mm": json.dumps(steps)}


def _vqvae(job: Job) -> None:
    import torch

    from m2s.train.loop import fit
    from m2s.train.recipes import recipe
    from m2s.train.vqvae import GridSource, VqVaeStage, settle

    store, selection = job.store("training", distances=True), job.store("selection", distances=True)
    published = job.preset == "paper"
    crop = GRID[0] if published else 96
    source = GridSource(job.folder("training", distances=True), store.spec, job.seed, crop)
    torch.manual_seed(job.seed)
    near, facts = 0.0 if published else 4.0, job.facts(store.spec)
    stage = VqVaeStage(PRESETS[job.preset].vqvae, source, selection, facts, near_weight=near, seed=job.seed)
    plan = recipe(job.preset, "vqvae", job.hearts, steps=job.steps, minutes=job.minutes, batch=job.batch, rate=job.rate,
                  seed=job.seed)  # fmt: skip
    figures = fit(stage, plan, job.run / "vqvae", device=job.device, quiet=job.quiet)
    _report(figures if published else settle(stage, job.run / "vqvae"))


def _diffusion(job: Job) -> None:
    import torch

    from m2s.train.diffusion import DiffusionStage
    from m2s.train.loop import fit
    from m2s.train.pairs import PairSource, make_pairs, scale_factor, selection_maker, training_maker
    from m2s.train.recipes import recipe

    preset = PRESETS[job.preset]
    nets = _trained(job)
    store, selection = job.store("training", distances=True), job.store("selection", distances=True)
    count = PAIRS_A_HEART * job.hearts
    pairs = make_pairs(job.run / "pairs", training_maker(store, *nets, job.seed, job.threads), count)
    scale = scale_factor(pairs)
    torch.manual_seed(job.seed)
    source = PairSource(pairs, job.seed, scale)
    judge = selection_maker(selection, *nets, job.threads)
    stage = DiffusionStage(preset, source, scale, nets[1], judge, job.facts(store.spec), min(10, len(selection)))
    plan = recipe(job.preset, "diffusion", count, steps=job.steps, minutes=job.minutes, batch=job.batch, rate=job.rate,
                  seed=job.seed)  # fmt: skip
    _report(fit(stage, plan, job.run / "diffusion", device=job.device, quiet=job.quiet))


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
