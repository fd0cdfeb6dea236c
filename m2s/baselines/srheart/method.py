"""SRHeart's prediction: the heart in the VAE's latent space that the slices, each moved at will, are cuts of."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import torch

from m2s.baselines.labels import WALL, labelled
from m2s.baselines.method import BoolArray, Prediction, Spacing, mask_surface
from m2s.baselines.registry import Size
from m2s.baselines.srheart.net import SIZES, ShapeVae
from m2s.baselines.srheart.search import Search, explain
from m2s.train.checkpoint import load_weights
from m2s.train.loop import device_of
from m2s_runtime.errors import EmptyWall
from m2s_runtime.grid import CENTRE, GRID, NOMINAL_STEP, PLANES, UPSAMPLING
from m2s_runtime.slices import wall_slices


def load(folder: Path, device: str) -> "SrHeart":
    """The trained method of `RUN/srheart`.

    Raises:
        FileNotFoundError: it was not trained yet.
    """
    weights, metadata = load_weights(folder / "vae" / "best.safetensors")
    net = ShapeVae(SIZES[cast("Size", metadata["size"])])
    net.load_state_dict(weights)
    return SrHeart(net.eval().requires_grad_(requires_grad=False).to(device))


@dataclass(frozen=True)
class SrHeart:
    """A trained VAE, in evaluation mode."""

    net: ShapeVae
    search: Search = field(default_factory=Search)

    def predict(self, mask: BoolArray, spacing: Spacing) -> Prediction:
        """Search the heart and the shifts of one stack.

        Slices without wall are no evidence: of a real stack nobody knows whether they show no heart or were not drawn.

        Raises:
            EmptyWall: no slice holds wall, or nothing of the wall is found.
        """
        held = np.flatnonzero(wall_slices(mask))
        if not held.size:
            raise EmptyWall("no slice holds wall: check that the mask holds the wall of the left ventricle")
        device = device_of(self.net)
        seen = torch.from_numpy(np.moveaxis(labelled(mask[:, :, held]), 2, 0).astype(np.int64)).to(device)
        depths = torch.from_numpy(grid_planes(held, spacing[2])).to(device)
        z, moves = explain(lambda z: self.net.planes(z, depths), self.net.size.codes, seen, self.search)
        with torch.no_grad():
            labels = self.net.decode(z)[0].argmax(0).cpu().numpy()
        wall = np.ascontiguousarray(np.moveaxis(labels == WALL, 0, 2))
        shifts = np.zeros((mask.shape[2], 2), np.float32)
        # The search moves the heart to the slice, the shift says how far the slice lies from the heart.
        shifts[held] = -CENTRE * moves.cpu().numpy()
        return Prediction((0.5 - wall).astype(np.float32), mask_surface(wall), shifts, binary=True)


def grid_planes(slices: np.ndarray, step_mm: float) -> np.ndarray:
    """Where slices lie on the 64 planes of the grid, float32; the middles of both stacks coincide."""
    offset = UPSAMPLING * slices + UPSAMPLING // 2 - (PLANES - 1) / 2
    depths = (GRID[2] - 1) / 2 + offset * step_mm / NOMINAL_STEP
    return depths.clip(0, GRID[2] - 1).astype(np.float32)
