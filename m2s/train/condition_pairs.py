"""What the ablations of the condition are trained on: masks in place of the latents that condition the diffusion.

Item k has the heart, the stack and the true latent of pair k in `RUN/pairs`; both ablations read the same masks.
"""

from pathlib import Path
from typing import Final, Literal, cast

import numpy as np
import numpy.typing as npt

from m2s.baselines.nni import nearest_neighbour
from m2s.data.heart import keyed_rng
from m2s.train.loop import Arrays
from m2s.train.pairs import SHARD, Masks, PairMaker, PairSource, make_shards, read_shards
from m2s_runtime.csdg import to_grid
from m2s_runtime.ddim import TRAIN_STEPS
from m2s_runtime.grid import GRID, NOMINAL_STEP, SLICES

Condition = Literal["mask", "slices"]
"""The super-resolved mask, or the raw slices that it is made of."""

Bits = npt.NDArray[np.uint8]

_BOTH: Final = (*GRID[:2], GRID[2] + SLICES)


def make_conditions(folder: Path, maker: PairMaker, count: int, workers: int = 1) -> Path:
    """Makes what is missing of the first `count` pairs' masks, a shard at a time, and returns the folder.

    Raises:
        UsageProblem: the folder holds those of other networks, hearts or another seed.
    """
    return make_shards(folder, maker, packed_masks, count, workers)


def packed_masks(maker: PairMaker, index: int) -> Bits:
    """Super-resolved wall and raw slices of a pair as bits, 155 648 bytes."""
    return np.packbits(np.concatenate([maker.wall(index)[0], maker.slices(index)], axis=2))


def unpacked_masks(bits: Bits) -> tuple[Masks, Masks]:
    """The wall (128, 128, 64) and the slices (128, 128, 12) of `packed_masks`."""
    both = np.unpackbits(bits, count=int(np.prod(_BOTH))).astype(np.bool_).reshape(_BOTH)
    return both[:, :, : GRID[2]], both[:, :, GRID[2] :]


def repeated(slices: Masks, step_mm: float) -> Masks:
    """Raw slices on the grid: each repeated through its block, no motion correction.

    Args:
        slices: (128, 128, 12) bool, `step_mm` apart.
        step_mm: distance between the slices.

    Returns:
        (128, 128, 64) bool, planes 2 mm apart; at 10 mm slice k fills planes 5k + 2 to 5k + 6.
    """
    return to_grid(nearest_neighbour(slices).astype(np.float32), step_mm) >= 0.5


class ConditionSource(PairSource):
    """True latents beside the masks that condition them."""

    def __init__(self, pairs: Path, masks: Path, condition: Condition, seed: int, scale: float) -> None:
        super().__init__(pairs, seed, scale)
        self._seed, self._masks, self._condition = seed, masks, condition
        self._bits: list[Bits] = []

    @property
    def residual(self) -> float:
        """1: an encoder that knows nothing yet leaves all of the latents, of unit variance, to the denoiser."""
        return 1.0

    def batch(self, step: int, size: int) -> Arrays:
        """`mask` (B, 1, 128, 128, 64) bool, `zs` (B, D, X', Y', Z'), `t` (B,) int64 in 0..999 and the `noise`."""
        rng = keyed_rng("condition", self._seed, step)
        pick = [int(k) for k in rng.integers(self.count, size=size)]
        zs = self.pairs(pick)[:, 1]
        noise = rng.standard_normal(zs.shape, dtype=np.float32)
        mask = np.stack([self.mask(k) for k in pick])[:, None]
        return {"mask": mask, "zs": zs, "t": rng.integers(0, TRAIN_STEPS, size), "noise": noise}

    def mask(self, index: int) -> Masks:
        """(128, 128, 64) bool, what pair `index` is conditioned on."""
        if not self._bits:
            self._bits = [cast(Bits, shard) for shard in read_shards(self._masks)]
        wall, slices = unpacked_masks(self._bits[index // SHARD][index % SHARD])
        return wall if self._condition == "mask" else repeated(slices, NOMINAL_STEP)
