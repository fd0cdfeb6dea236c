"""Pairs as fine-tuning takes them, simulated: to try it on a motion that training never saw."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from m2s_runtime.errors import UsageProblem

if TYPE_CHECKING:
    from m2s.data.simulate import MotionLaw

LARGEST_SPREAD_MM: Final = 20.0
_PAIRS_SEED: Final = 2_000_003
"""Away from the seeds of the hearts that `Job.spec` makes: no pair has a heart of the first training."""


def write_simulated_pairs(
    out: Path, atlas: str | None, motion: str, *, phantom: bool, hearts: int, held: int, seed: int
) -> None:
    """Write `hearts` training pairs and `held` pairs each for selection and validation.

    Args:
        out: folder that gets `<id>/{LR,HR}_{ED,ES}.nii.gz`.
        atlas: folder of the shape atlas; None with `phantom`.
        motion: `paper`, or `normal:SD` with SD in mm.
        phantom: procedural phantoms instead.
        hearts: how many for training.
        held: how many for selection, and again for validation.
        seed: of hearts and motion.

    Raises:
        UsageProblem: no source of hearts or two, an unknown motion, or more pairs than the split has numbers.
    """
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
