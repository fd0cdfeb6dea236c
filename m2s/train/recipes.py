"""Constants of every training, one table: preset by stage.

What preset `paper` takes from where. P = the paper, section 3.1 and equations 1 and 3; E = MCSR-ETE, whose losses the
paper says it follows, as its published code has them; "ours" = neither says.

| constant | value | source |
|---|---|---|
| optimiser | Adam, betas 0.9 and 0.999 | P; betas ours |
| VQ-VAE: codes, dimension | 1024, 8 | P |
| VQ-VAE: loss | plain L1 + codebook term + commitment term, weights 1 | P (Eq. 1); L1 in units of the clamp: ours |
| VQ-VAE: epochs, rate | 800, 1e-4 | P |
| VQ-VAE: schedule | x 0.9 when the validation loss stalls | P; patience 10 validations: ours |
| VQ-VAE: batch, strides, widths, clamp | 4; 4, 4, 4; 64 and 128; 10 mm | ours |
| VQ-VAE: start | 100 steps without codes, k-means++ codes, dead codes restarted | ours |
| diffusion: T, betas, loss | 1000, linear 0.0015 to 0.0195, squared error of the noise, t uniform | P (Eq. 3) |
| diffusion: widths | 128, 256, 384 | P; two blocks a level, attention in the lower two: ours |
| diffusion: epochs, rate, schedule | 3000, 1e-5, as the VQ-VAE | P |
| diffusion: condition | C-SDG of the true mask by the frozen VQ-VAE encoder, concatenated | P |
| diffusion: batch | 8 | ours |
| MCSR-Net: loss | MAE of shifts + Dice of re-aligned slices + Dice of super-resolved mask, weights 1, 1, 1 | E |
| MCSR-Net: Dice | over all voxels, both classes and the whole batch; weight penalty 1e-4 | E |
| MCSR-Net: epochs, batch, rate | 200, 1, 1e-4 / (1 + 0.01 epoch) | E |
| MCSR-Net: MC-Net widths | 16, 32, 64, 64 | P; SR-Net's: ours |
| MCSR-Net: motion | N(3.45, 1.305) mm an entry, 12 stacks a mask and epoch | P; random sign: ours |
| MCSR-Net: re-alignment | bilinear, so that Dice reaches MC-Net (E rounds to labels, which cuts it off) | ours |
| fine-tuning | only MCSR-Net, on real pairs | P; both Dice terms, 20 epochs, 1e-5: ours |
| MCSR-Net: stacks | whole; with an atlas a third is cut at other steps than 10 mm | ours |
| all: augmentation | the eight symmetries of the square; grids moved up to 2 planes along z | ours |
| all: the rest | bfloat16, 50 steps of rising rate, gradients cut to norm 1, validation every 1000 or 500 | ours |

`compact` is annealed to zero and fits two CPU cores; `tiny` is for tests.
"""

from dataclasses import replace
from typing import Final, Literal

from m2s.train.loop import Recipe

StageName = Literal["mcsr", "vqvae", "diffusion", "decoder"]
Task = Literal["motion", "mcsr", "vqvae", "diffusion", "decoder", "fine-tuning"]

TRAINING_SUBJECTS: Final = 1024
"""Training subjects of the paper (section 3.1), which epochs of the published recipes are counted in."""

STACKS_A_MASK: Final = 12
"""Misaligned stacks that the paper simulates of each mask; they make an epoch of MCSR-Net."""

_EPOCHS: Final[dict[Task, int]] = {"mcsr": 200, "vqvae": 800, "diffusion": 3000, "fine-tuning": 20}
TUNED_EPOCHS: Final = _EPOCHS["fine-tuning"]

_RECIPES: Final[dict[str, dict[Task, Recipe]]] = {
    "paper": {
        "mcsr": Recipe(steps=0, batch=1, rate=1e-4, schedule="hyperbolic", validate_every=1000),
        "vqvae": Recipe(steps=0, batch=4, rate=1e-4, validate_every=1000),
        "diffusion": Recipe(steps=0, batch=8, rate=1e-5, validate_every=1000),
        "fine-tuning": Recipe(steps=0, batch=1, rate=1e-5, validate_every=500),
    },
    "compact": {
        "motion": Recipe(steps=100_000, batch=512, rate=1e-3, schedule="cosine", average=0.998, validate_every=500),
        "mcsr": Recipe(steps=20_000, batch=4, rate=6e-4, schedule="cosine", average=0.995, validate_every=250),
        "vqvae": Recipe(steps=20_000, batch=2, rate=1e-3, schedule="cosine", average=0.99, validate_every=250),
        "diffusion": Recipe(steps=40_000, batch=16, rate=4e-4, schedule="cosine", average=0.998, validate_every=500),
        "decoder": Recipe(steps=1_000, batch=8, rate=4e-4, schedule="cosine", average=0.99, validate_every=150),
        "fine-tuning": Recipe(steps=2_000, batch=4, rate=2e-4, schedule="cosine", average=0.99, validate_every=100),
    },
    "tiny": {
        "motion": Recipe(steps=20, batch=16, rate=1e-3, schedule="cosine", average=0.9, validate_every=10),
        "mcsr": Recipe(steps=20, batch=2, rate=1e-3, schedule="cosine", average=0.9, validate_every=10),
        "vqvae": Recipe(steps=20, batch=2, rate=1e-3, schedule="cosine", average=0.9, validate_every=10),
        "diffusion": Recipe(steps=20, batch=2, rate=1e-3, schedule="cosine", average=0.9, validate_every=10),
        "decoder": Recipe(steps=20, batch=2, rate=1e-3, schedule="cosine", average=0.9, validate_every=10),
        "fine-tuning": Recipe(steps=20, batch=2, rate=1e-3, schedule="cosine", average=0.9, validate_every=10),
    },
}

HEALTHY: Final = 0.5
"""Share of the training hearts of `compact` that vary no further than the validation cohort; the others stand in for
patients."""


def recipe(preset: str, task: Task, samples: int, **changes: float | int | None) -> Recipe:
    """The recipe of a preset's task for a training set of `samples`, with the given fields changed.

    Where the preset counts epochs, steps follow from `samples` and the batch size.
    """
    chosen = _RECIPES[preset][task]
    given = {name: value for name, value in changes.items() if value is not None}
    chosen = replace(chosen, **given)  # pyright: ignore[reportArgumentType]
    if chosen.steps == 0:
        chosen = replace(chosen, steps=max(_EPOCHS[task] * samples // chosen.batch, 1))
    return chosen
