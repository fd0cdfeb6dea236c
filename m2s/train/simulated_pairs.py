"""Pairs as fine-tuning takes them, simulated: to try it on a motion that training never saw."""

from pathlib import Path
from typing import TYPE_CHECKING, Final, TypedDict, Unpack

from m2s_runtime.errors import UsageProblem

if TYPE_CHECKING:
    from m2s.data.simulate import MotionLaw

LARGEST_SPREAD_MM: Final = 20.0
_PAIRS_SEED: Final = 2_000_003
"""Away from the seeds of the hearts that `Job.spec` makes: no pair has a heart of the first training."""


class PairOptions(TypedDict):
    """Of `write_simulated_pairs`."""

    phantom: bool
    """Procedural phantoms instead of the atlas."""
    hearts: int
    """How many for training."""
    held: int
    """How many for selection, and again for validation."""
    stand_in: bool
    """Stacks as `m2s.data.stand_in` scans them, of hearts varied as in validation; the motion law plays no part."""
    seed: int
    """Of hearts and motion."""


def write_simulated_pairs(out: Path, atlas: str | None, motion: str, **options: Unpack[PairOptions]) -> None:
    """Write pairs for training, selection and validation.

    Args:
        out: folder that gets `<id>/{LR,HR}_{ED,ES}.nii.gz`.
        atlas: folder of the shape atlas; None with `phantom`.
        motion: `paper`, or `normal:SD` with SD in mm.
        options: see there.

    Raises:
        UsageProblem: no source of hearts or two, an unknown motion, or more pairs than the split has numbers.
    """
    from m2s.data.clinical import write_pairs
    from m2s.data.labelmaps import split
    from m2s.data.stand_in import write_stand_in_pairs
    from m2s.data.store import StoreSpec

    if options["phantom"] == (atlas is not None):
        raise UsageProblem("give one of --atlas FOLDER and --phantom")
    law, parts, seed, held = _law(motion), split(), options["seed"], options["held"]
    healthy = 1.0 if options["stand_in"] and atlas is not None else 0.0
    # Selection and validation come from other people than training, and from different hearts each.
    for part, count, first in (("training", options["hearts"], 0), ("selection", held, 0), ("validation", held, held)):
        if count > len(parts[part]):
            raise UsageProblem(f"{count} pairs: the {part} part of the split has {len(parts[part])} numbers")
        training = part == "training"
        made_of, its_seed = ("training", 0) if training else ("selection", 1)
        spec = StoreSpec(atlas, made_of, seed=_PAIRS_SEED + 2 * seed + its_seed, healthy=healthy)
        made = ((subject, spec.heart(first + k)) for k, subject in enumerate(parts[part][:count]))
        if options["stand_in"]:
            write_stand_in_pairs(out, made, seed)
        else:
            write_pairs(out, ((subject, heart.id, heart.mask) for subject, heart in made), law, seed)


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
