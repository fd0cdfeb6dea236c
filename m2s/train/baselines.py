"""`m2s-train baseline NAME RUN`: the trainings of a competing method, one after the other, in `RUN/NAME/`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from m2s.baselines.registry import BASELINES, Size, training_of
from m2s_runtime.atomic import write_bytes
from m2s_runtime.errors import NoInputs, UsageProblem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from m2s.train.finetune import Initial
    from m2s.train.job import Job
    from m2s.train.loop import Facts, Figures, Recipe, Stage

PAIRS: Final = "low- and high-resolution label maps"
TUNED_STEPS: Final = 2000
"""Of a fine-tuning at most, as of ours."""


def train_baseline(name: str, job: "Job", size: Size) -> "dict[str, Figures]":
    """Train a competing method, or go on with it.

    What no source has: `fit` lets the rate rise over the first 50 steps, clips gradients at norm 1 and computes in
    bfloat16 where it may.

    Args:
        name: among `BASELINES`.
        job: hearts, budget and seed; its minutes are those of all trainings of the method together, on a CPU in
            processor time, so that what else the machine does is not counted. With `init` and `data` the weights of
            another run are fine-tuned on real pairs.
        size: of the networks.

    Returns:
        The best validation's figures of each training; after fine-tuning those of the better of old and new weights,
        and the old ones' as `<figure>_before`.

    Raises:
        UsageProblem: the method learns nothing from pairs, or the run holds another size or other weights.
        NoInputs: the run to fine-tune from has no such method.
    """
    import torch

    from m2s.train.loop import fit
    from m2s.train.stands_on import stand_on

    torch.set_num_threads(job.threads)
    if job.init is not None and not BASELINES[name].tunable:
        raise UsageProblem(f"{name} learns nothing from pairs: use the run that --init names as it is")
    folder, training = job.run / name, training_of(name)
    # Before the folder is claimed, so that a command that is refused leaves none behind.
    first = {stage: _first(name, stage, job.init, size) for stage in training.STAGES} if job.init else {}
    _claim(folder, size, job, first)
    found: dict[str, Figures] = {}
    for stage_name, share in training.STAGES.items():
        torch.manual_seed(job.seed)
        if earlier := BASELINES[name].stands_on.get(stage_name):
            stand_on(folder, earlier, stage_name)
        stage = training.stage_of(stage_name, job, size, folder)
        plan, place = _plan(training.recipe_of(stage_name, size), job, share, size), folder / stage_name
        if stage_name in first:
            found[stage_name] = _fine_tune(stage, plan, job, place, first[stage_name])
        else:
            found[stage_name] = fit(stage, plan, place, device=job.device, quiet=job.quiet)
    return found


def _first(name: str, stage: str, run: Path, size: Size) -> "Initial":
    from m2s.train.finetune import read_checkpoint
    from m2s.train.shipped import bundle_at

    if bundle_at(run):
        raise UsageProblem(f"{run}: a bundle holds no {name}; --init takes the run that it was trained in")
    if not (run / name).is_dir():
        raise NoInputs(f"{run}: no {name} in this run; m2s-train baseline {name} {run} trains it")
    first = read_checkpoint(run / name / stage / "best.safetensors")
    if (told := first.metadata.get("size")) != size:
        raise UsageProblem(f"{run}: {name} was trained at --size {told}, not {size}; add --size {told}")
    return first


def _fine_tune(stage: "Stage", plan: "Recipe", job: "Job", folder: Path, first: "Initial") -> "Figures":
    """Go on from the first weights, and keep them where the selection pairs gain nothing."""
    import torch

    from m2s.train.finetune import keep_better
    from m2s.train.loop import fit

    stage.model.load_state_dict(first.weights)
    stage.model.to(job.device).eval()
    with torch.no_grad():
        before = stage.validate(stage.model, folder)
    after = fit(stage, plan, folder, device=job.device, quiet=job.quiet)
    kept = keep_better(folder, first, before, after, stage.monitor)
    if kept is after:
        _tell_origin(folder / "best.safetensors", first)
    return {f"{name}_before": value for name, value in before.items()} | kept


def _tell_origin(best: Path, first: "Initial") -> None:
    """Fine-tuned weights have learnt from the first data too, whose licence stays with them."""
    from m2s.train.checkpoint import load_weights, save_weights

    weights, metadata = load_weights(best)
    told = {
        "data": f"{first.metadata.get('data', '?')}; then {PAIRS}",
        "data_licence": first.metadata.get("data_licence", "?"),
        "note": f"first {first.metadata.get('step', '?')} steps, {first.metadata.get('seconds', '?')} s; then on pairs",
        "init": first.digest,
    }
    save_weights(best, weights, metadata | told)


def facts_of(job: "Job", size: Size) -> "Facts":
    """What a baseline's checkpoint says of itself: size, hearts or pairs, and their licence."""
    if job.data is not None:
        return {"size": size, "data": PAIRS, "data_licence": "see their source"}
    return {"size": size} | job.spec("training", distances=False).origin


def _plan(recipe: "Recipe", job: "Job", share: float, size: Size) -> "Recipe":
    if job.init is not None:
        recipe = _shorter(recipe, job, size)
    given = {name: value for name, value in job.changes.items() if value is not None and name != "minutes"}
    clock = "wall" if job.device.startswith("cuda") else "cpu"
    return replace(recipe, **given, minutes=share * (job.minutes or 0.0), clock=clock)  # pyright: ignore[reportArgumentType]


def _shorter(recipe: "Recipe", job: "Job", size: Size) -> "Recipe":
    """For fine-tuning: as ours is fine-tuned (`m2s.train.recipes`), no paper tells how the others were.

    `published`: 20 epochs of the pairs at a tenth of the rate; else 2000 steps at most, at a third of the rate.
    """
    from m2s.data.pair_files import prepare_pairs
    from m2s.train.recipes import TUNED_EPOCHS

    often = min(recipe.validate_every, 100)
    if size != "published" or job.data is None:
        return replace(recipe, steps=min(recipe.steps, TUNED_STEPS), rate=recipe.rate / 3, validate_every=often)
    pairs = prepare_pairs(job.run / "real-pairs" / "training", job.data, "training", job.workers)
    steps = max(TUNED_EPOCHS * len(pairs.files) // recipe.batch, 1)
    return replace(recipe, steps=steps, rate=recipe.rate / 10, validate_every=often)


def _claim(folder: Path, size: Size, job: "Job", first: "Mapping[str, Initial]") -> None:
    """A folder goes on with the size and the first weights that it began with."""
    from m2s.train.checkpoint import digest_of

    asked = {"size": size, "init": str(job.init.resolve()) if job.init else None}
    if first:
        asked["weights"] = " ".join(digest_of(one.weights) for one in first.values())
    marker = folder / "baseline.json"
    if not marker.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(marker, json.dumps(asked).encode())
        return
    told: dict[str, str | None] = json.loads(marker.read_text())
    # One written before digests were kept says nothing of them.
    if any(asked.get(what) != value for what, value in told.items()):
        raise UsageProblem(f"{folder} was begun with {told}, not {asked}: choose another RUN")
