"""MCSR-ETE as a method: re-aligned slices and their super-resolved wall."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from m2s.baselines.edsr import super_resolve
from m2s.baselines.labels import WALL, labelled
from m2s.baselines.mcsr_ete.net import SIZES, EteNet
from m2s.baselines.method import BoolArray, Prediction, Spacing, from_mask
from m2s.baselines.registry import Size
from m2s.train.checkpoint import load_weights
from m2s_runtime.slices import centre_shifts, pool_features, wall_slices


@dataclass(frozen=True)
class EndToEnd:
    """Trained networks on a device."""

    net: EteNet
    device: str

    @torch.no_grad()
    def predict(self, mask: BoolArray, spacing: Spacing) -> Prediction:
        """Wall where it is the likeliest class.

        Shifts are MC-Net's and the one vector that puts the pool into the grid's centre (`centre_shifts`), as with
        every method that is compared; the source judges after the best shift of the whole volume instead.

        Raises:
            EmptyWall: nothing is.
        """
        shifts, labels = reconstructed(self.net, torch.from_numpy(labelled(mask))[None, None].to(self.device))
        wall = (labels == WALL).numpy()
        found = np.where(wall_slices(mask)[:, None], shifts[0].cpu().numpy(), np.float32(0))
        return from_mask(wall, spacing[2], found)


def reconstructed(net: EteNet, slices: Tensor) -> tuple[Tensor, Tensor]:
    """Shifts (1, S, 2) mm that centre the pool too, and labels (128, 128, 5 S), of one stack (1, 1, 128, 128, S)."""
    pool = torch.from_numpy(pool_features((slices[0, 0] == WALL).cpu().numpy()))[None].to(slices.device)
    shifts = centre_shifts(net.motion(slices.float()), pool)
    return shifts, super_resolve(net.super_resolution, net.bridge(slices, shifts))


def load(folder: Path, device: str) -> EndToEnd:
    """Open what `m2s-train baseline mcsr-ete` left.

    Raises:
        FileNotFoundError: it was not trained yet.
    """
    weights, told = load_weights(folder / "joint" / "best.safetensors")
    net = EteNet(SIZES[cast("Size", told["size"])])
    net.load_state_dict(weights)
    return EndToEnd(net.eval().to(device).to(memory_format=torch.channels_last_3d), device)  # pyright: ignore[reportCallIssue]
