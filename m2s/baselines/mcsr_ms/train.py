"""The three trainings of MCSR-MS, each on the frozen answers of those before it.

R = the tree of MCSR-ETE's repository before July 2025, E = MCSR-ETE itself.

| constant | value | source |
|---|---|---|
| centre line: points, unit, loss | 6 a coordinate after the first, 64 voxels, MSE + MSE | R |
| centre line: input | pool and wall as one label | R |
| super-resolution: data, loss | motion-free stacks and their hearts, categorical cross-entropy | R |
| second correction: points | 9 a coordinate after the first, on 128 x 128 x 60 labels | R |
| second correction: data | what the first two make of the stacks of the first | ours |
| epochs | 150, 200; the third is not told: 150 | R |
| optimiser | Adam, 1e-4 / (1 + 0.01 epoch), weight penalty 1e-4 | R |
| end of a training of 150 epochs | at a third of the rate, not at 1 / 2.5 | ours |
| batch | 1 | E |
| answer | one model of each, where the source takes the mean of five folds | ours |
| `cpu` | rates, batches, cosine schedule, averaged weights, no weight penalty | ours |
| `cpu` | lines that start straight, from three labels | ours |
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from m2s.baselines.mcsr_ms.method import FirstTwo
from m2s.baselines.mcsr_ms.net import SIZES
from m2s.baselines.mcsr_ms.stages import CentreLineStage, SecondStage, SuperResolutionStage
from m2s.train.baselines import facts_of
from m2s.train.loop import Recipe
from m2s.train.recipes import STACKS_A_MASK, TRAINING_SUBJECTS
from m2s.train.stacks import selection_stacks, stack_source
from m2s_runtime.errors import UsageProblem

if TYPE_CHECKING:
    from m2s.baselines.registry import Size
    from m2s.train.job import Job
    from m2s.train.loop import Stage

STAGES: Final[Mapping[str, float]] = {"centreline": 0.3, "super_resolution": 0.27, "second_correction": 0.43}

_STACKS: Final = STACKS_A_MASK * TRAINING_SUBJECTS
_JUDGED: Final = {"centreline": 12, "super_resolution": 12, "second_correction": 6}

_RECIPES: Final[Mapping[str, Mapping[str, Recipe]]] = {
    "published": {
        "centreline": Recipe(150 * _STACKS, 1, 1e-4, "hyperbolic", validate_every=5000),
        "super_resolution": Recipe(200 * TRAINING_SUBJECTS, 1, 1e-4, "hyperbolic", validate_every=5000),
        "second_correction": Recipe(150 * _STACKS, 1, 1e-4, "hyperbolic", validate_every=5000),
    },
    "cpu": {
        "centreline": Recipe(20_000, 4, 1e-3, "cosine", average=0.99, validate_every=100),
        "super_resolution": Recipe(20_000, 1, 2e-3, "cosine", average=0.98, validate_every=100),
        "second_correction": Recipe(20_000, 2, 1e-3, "cosine", average=0.97, validate_every=50),
    },
    "tiny": dict.fromkeys(STAGES, Recipe(20, 2, 1e-3, "cosine", average=0.9, validate_every=10)),
}


def stage_of(name: str, job: "Job", size: "Size", folder: Path) -> "Stage":
    """One of the three; the second needs none of the others, the third both.

    Raises:
        UsageProblem: there is no such stage.
        FileNotFoundError: one before it was not trained yet.
    """
    source, judged = stack_source(job), selection_stacks(job, _JUDGED[name])
    common = (SIZES[size], source, judged, facts_of(job, size))
    penalised = size == "published"
    if name == "centreline":
        return CentreLineStage(*common, penalised=penalised)
    if name == "super_resolution":
        return SuperResolutionStage(*common, seed=job.seed, penalised=penalised)
    if name == "second_correction":
        earlier = FirstTwo.load(folder, SIZES[size], job.device)
        return SecondStage(*common, earlier=earlier, seed=job.seed, penalised=penalised)
    raise UsageProblem(f"MCSR-MS has no stage {name}: it has {', '.join(STAGES)}")


def recipe_of(name: str, size: "Size") -> Recipe:
    """The constants of a stage."""
    return _RECIPES[size][name]
