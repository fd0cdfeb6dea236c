"""The stages of a training run: each opens its hearts, makes its network and hands both to the one loop."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from m2s.nets.presets import PRESETS
from m2s.train.job import Job
from m2s_runtime.errors import UsageProblem
from m2s_runtime.grid import GRID, NOMINAL_STEP

if TYPE_CHECKING:
    from torch import Tensor

    from m2s.data.store import HeartStore, StoreSpec
    from m2s.nets.mcsr import McsrNet
    from m2s.nets.vqvae import VqVae
    from m2s.train.recipes import StageName

PAIRS_A_HEART: Final = 2


def train(stage: "StageName", job: Job) -> None:
    """Train one stage, or go on with it, and print the figures of its best checkpoint.

    Raises:
        Stop: what was asked for and what is there do not fit.
    """
    import torch

    torch.set_num_threads(job.threads)
    _check_run(stage, job)
    if job.init is not None and job.data is not None:
        _fine_tune(job, job.init, job.data)
    else:
        {"mcsr": _mcsr, "vqvae": _vqvae, "diffusion": _diffusion, "decoder": _decoder}[stage](job)


def _check_run(stage: "StageName", job: Job) -> None:
    """A run is of one preset, and a fine-tuned MCSR-Net is not trained on as if it were not."""
    from m2s.train.checkpoint import metadata_of

    for best in sorted(job.run.glob("*/best.safetensors")):
        told = metadata_of(best)
        if (preset := told.get("preset", job.preset)) != job.preset:
            raise UsageProblem(f"{job.run} was begun with --preset {preset}: give that, or choose another RUN")
        if best.parent.name == stage == "mcsr" and "init" in told and job.init is None:
            raise UsageProblem(
                f"{job.run} holds a fine-tuned MCSR-Net: go on with --init and --data, or choose another RUN"
            )


def _mcsr(job: Job) -> None:
    import torch

    from m2s.train.loop import fit, put_in
    from m2s.train.mcsr import McsrStage, StackSource
    from m2s.train.published import PublishedMcsrStage
    from m2s.train.recipes import STACKS_A_MASK, recipe
    from m2s.train.stacks import acquisition

    size = PRESETS[job.preset].mcsr
    store, selection = job.store("training", distances=False), job.store("selection", distances=False)
    source = StackSource(job.folder("training", distances=False), store.spec, size, job.seed, *acquisition(job))
    torch.manual_seed(job.seed)
    kind = PublishedMcsrStage if job.published else McsrStage
    stage = kind(size, source, selection, job.facts(store.spec) | _step_range(store.spec))
    if size.motion == "track":
        weights, told = _motion(job, store, selection)
        stage.adopt_motion(weights, told)
        put_in(job.run / "mcsr", {f"motion.{name}": tensor for name, tensor in weights.items()})
    plan = recipe(job.preset, "mcsr", STACKS_A_MASK * job.hearts, **job.changes)
    figures = fit(stage, plan, job.run / "mcsr", device=job.device, quiet=job.quiet)
    _report(figures)


def _motion(job: Job, training: "HeartStore", selection: "HeartStore") -> tuple[dict[str, "Tensor"], dict[str, str]]:
    """MC-Net of `compact`, trained in a quarter of the time: its weights and the metadata of its checkpoint."""
    from m2s.data.shapes import stored_shapes
    from m2s.train.checkpoint import load_weights
    from m2s.train.loop import finished, fit, judge_anew
    from m2s.train.motion import MotionStage, ShapeSource, Wear, training_law
    from m2s.train.recipes import recipe

    # Batch and rate on the command line are those of SR-Net.
    minutes = job.minutes and job.minutes / 4
    plan = recipe(job.preset, "motion", job.hearts, steps=job.steps, minutes=minutes, seed=job.seed)
    spec, folder = job.motion_spec("training"), job.run / "hearts" / "motion"
    if finished(job.run / "motion", plan):
        weights, told = load_weights(job.run / "motion" / "best.safetensors")
        if job.motion_hearts is not None and told.get("hearts") != str(spec.hearts):
            click.echo(
                f"MC-Net is trained already, on {told.get('hearts', '?')} hearts: --motion-hearts changes nothing; more"
                " --steps or --minutes train it on",
                err=True,
            )
        return weights, told
    judges, beside = job.motion_spec("selection"), job.run / "hearts" / "motion-selection"
    if not job.quiet:
        click.echo(f"{spec.hearts} hearts for MC-Net, {judges.hearts} to judge it by", err=True)
    stored_shapes(folder, spec, job.workers, training if training.spec == spec else None)
    judged = stored_shapes(beside, judges, job.workers, selection if selection.spec == judges else None)
    facts = {"hearts": str(spec.hearts), "judged_by": f"{judges.hearts} hearts, seed {judges.seed}"}
    judge_anew(job.run / "motion", facts["judged_by"])
    source = ShapeSource(folder, spec, job.seed, training_law(), Wear())
    stage = MotionStage(PRESETS[job.preset].mcsr, source, judged, job.facts(spec) | facts)
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
    from m2s.train.stands_on import stand_on

    preset = PRESETS[job.preset]
    if not job.published:
        _check_batch(job)
    nets = _trained(job)
    store, selection = job.store("training", distances=True), job.store("selection", distances=True)
    count = PAIRS_A_HEART * job.hearts
    maker, judge = training_maker(store, *nets, job.seed, job.threads), selection_maker(selection, *nets, job.threads)
    if job.published:
        # The paper conditions on the C-SDGs of true masks.
        maker, judge = replace(maker, perfect=1.0), replace(judge, perfect=1.0)
    pairs = make_pairs(job.run / "pairs", maker, count, job.workers, quiet=job.quiet)
    stand_on(job.run, ("vqvae",), "diffusion")
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
    from m2s.train.stands_on import stand_on

    preset = PRESETS[job.preset]
    if preset.denoiser.target != "residual":
        raise UsageProblem(f"preset {preset.name} decodes as published: m2s-train decoder is for compact and tiny")
    _check_batch(job)
    nets = _trained(job)
    denoiser = Denoiser(preset.denoiser, preset.vqvae.dim)
    weights, told = load_weights(job.run / "diffusion" / "best.safetensors")
    denoiser.load_state_dict(weights)
    store, selection = job.store("training", distances=True), job.store("selection", distances=True)
    maker, judge = training_maker(store, *nets, job.seed, job.threads), selection_maker(selection, *nets, job.threads)
    pairs = make_pairs(job.run / "pairs", maker, PAIRS_A_HEART * job.hearts, job.workers, quiet=job.quiet)
    stand_on(job.run, ("vqvae", "diffusion"), "decoder")
    scale = float(told["scale_factor"])
    torch.manual_seed(job.seed)
    source = SurfaceSource(pairs, maker, job.seed, scale)
    stage = DecoderStage(nets[1], denoiser, scale, source, judge, job.facts(store.spec), min(20, len(selection)))
    plan = recipe(job.preset, "decoder", source.count, **job.changes)
    _report(fit(stage, plan, job.run / "decoder", device=job.device, quiet=job.quiet))


def _check_batch(job: Job) -> None:
    """Part of every batch is trained on one kind of latents, the rest on another."""
    if job.batch is not None and job.batch < 2:
        raise UsageProblem(f"--batch {job.batch}: two at least, for a batch holds two kinds of latents")


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
    from m2s.train.shipped import bundle_at

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
    if kept == before:
        click.echo("nothing gained: the run holds the weights that it began with", err=True)
    elif bundle_at(init):
        click.echo(f"now: m2s-export {shlex.join([str(job.run), '--onto', str(init)])} --out BUNDLE", err=True)
    elif copied := adopt_other_stages(job.run, init):
        click.echo(f"copied as they are: {', '.join(copied)}", err=True)


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
