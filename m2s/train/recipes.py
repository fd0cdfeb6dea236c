"""Constants of every training, one table: preset by stage.

`paper` has what the paper states (section 3.1: 800 and 3000 epochs, Adam at 1e-4 and 1e-5, plateau with factor 0.9)
and MCSR-ETE's 200 epochs and rate for its network, without its rate decay and weight penalty; batch sizes are ours.
`compact` is annealed to zero and fits two CPU cores; `tiny` is for tests.
"""

from dataclasses import replace
from typing import Final, Literal

from m2s.train.loop import Recipe

StageName = Literal["mcsr", "vqvae", "diffusion"]

_EPOCHS: Final[dict[StageName, int]] = {"mcsr": 200, "vqvae": 800, "diffusion": 3000}

_RECIPES: Final[dict[str, dict[StageName, Recipe]]] = {
    "paper": {
        "mcsr": Recipe(steps=0, batch=1, rate=1e-4, validate_every=1000),
        "vqvae": Recipe(steps=0, batch=4, rate=1e-4, validate_every=1000),
        "diffusion": Recipe(steps=0, batch=8, rate=1e-5, validate_every=1000, average=0.9999),
    },
    "compact": {
        "mcsr": Recipe(steps=20_000, batch=4, rate=1e-3, schedule="cosine", average=0.995, validate_every=250),
        "vqvae": Recipe(steps=20_000, batch=2, rate=1e-3, schedule="cosine", average=0.99, validate_every=250),
        "diffusion": Recipe(steps=40_000, batch=16, rate=4e-4, schedule="cosine", average=0.998, validate_every=500),
    },
    "tiny": {
        "mcsr": Recipe(steps=20, batch=2, rate=1e-3, schedule="cosine", average=0.9, validate_every=10),
        "vqvae": Recipe(steps=20, batch=2, rate=1e-3, schedule="cosine", average=0.9, validate_every=10),
        "diffusion": Recipe(steps=20, batch=2, rate=1e-3, schedule="cosine", average=0.9, validate_every=10),
    },
}

WARM_UP_STEPS: Final = {"paper": 0, "compact": 1500, "tiny": 5}
"""Steps of the centroid track alone, before MC-Net and SR-Net train together."""


def recipe(preset: str, stage: StageName, samples: int, **changes: float | int | None) -> Recipe:
    """The recipe of a preset's stage for a training set of `samples`, with the given fields changed.

    Where the preset counts epochs, steps follow from `samples` and the batch size.
    """
    chosen = _RECIPES[preset][stage]
    given = {name: value for name, value in changes.items() if value is not None}
    chosen = replace(chosen, **given)  # pyright: ignore[reportArgumentType]
    if chosen.steps == 0:
        chosen = replace(chosen, steps=max(_EPOCHS[stage] * samples // chosen.batch, 1))
    return chosen


POLISH_STEPS: Final = {"paper": 0, "compact": 8_000, "tiny": 5}
"""Steps of the track alone once more, after the joint training."""
