"""Label maps for the methods that read wall and pool, made of walls alone.

The published methods read 0 background, 1 pool, 2 wall. Here only the wall is given; the pool is what it encloses in
each slice, so a slice whose ring is open has none.
"""

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from m2s.baselines.edsr import CLASSES
from m2s_runtime.slices import divided_planes

if TYPE_CHECKING:
    from m2s.train.loop import Arrays

Labels = npt.NDArray[np.uint8]

BACKGROUND: Final = 0
POOL: Final = 1
WALL: Final = 2


def labelled(wall: npt.NDArray[np.bool_]) -> Labels:
    """(X, Y, S) walls -> labels 0, 1, 2 of the same shape, every hole of a slice counted as pool."""
    parts, outside = divided_planes(np.ascontiguousarray(np.moveaxis(wall, 2, 0)))
    labels = np.where(parts == 0, WALL, np.where(parts == outside[:, None, None], BACKGROUND, POOL))
    return np.ascontiguousarray(np.moveaxis(labels.astype(np.uint8), 0, 2))


def labelled_batch(arrays: "Arrays") -> "Arrays":
    """Walls of a batch of `m2s.train.stacks` as labels: `slices`, `clean`, `mask` (B, 1, X, Y, S) uint8; no others."""
    return {
        name: np.stack([labelled(wall[0].astype(np.bool_)) for wall in arrays[name]])[:, None]
        for name in ("slices", "clean", "mask")
    }


def one_hot(labels: Tensor) -> Tensor:
    """(B, 1, X, Y, S) labels of any type -> (B, 3, X, Y, S) float32."""
    index = torch.arange(CLASSES, device=labels.device).reshape(1, -1, 1, 1, 1)
    return (labels == index).float()
