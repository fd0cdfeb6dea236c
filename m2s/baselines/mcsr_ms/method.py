"""MCSR-MS as a method: a stack in, its super-resolved and twice corrected wall out."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
import torch
from torch import nn

from m2s.baselines.edsr import Edsr
from m2s.baselines.labels import Labels, labelled
from m2s.baselines.mcsr_ms.centre_line import BoolArray, Doubles
from m2s.baselines.mcsr_ms.net import (
    SIZES,
    LineNet,
    MsSize,
    centre_line_net,
    found_shifts,
    is_wall,
    moved_back,
    second_net,
    super_resolved,
)
from m2s.baselines.method import Prediction, Spacing, from_mask
from m2s.train.checkpoint import load_weights
from m2s_runtime.grid import UPSAMPLING
from m2s_runtime.slices import centre_shifts, pool_features, wall_slices

if TYPE_CHECKING:
    from m2s.baselines.registry import Size

N = TypeVar("N", bound=nn.Module)

_AT_SLICES = slice(UPSAMPLING // 2, None, UPSAMPLING)


@dataclass(frozen=True)
class FirstTwo:
    """The first correction and the super-resolution, which the second correction is trained on."""

    line: LineNet
    edsr: Edsr

    @classmethod
    def load(cls, folder: Path, size: MsSize, device: str) -> "FirstTwo":
        """Open both and keep them from changing.

        Raises:
            FileNotFoundError: one was not trained yet.
        """
        line = opened(centre_line_net(size), folder / "centreline", device)
        return cls(line, opened(Edsr(size.edsr), folder / "super_resolution", device))

    def __call__(self, mask: BoolArray) -> tuple[Labels, Doubles]:
        """Labels (128, 128, 60) of a stack (128, 128, 12), and the shifts (12, 2) mm taken out of it, centred.

        Raises:
            EmptyWall: the stack holds no wall.
        """
        shifts = _centred(found_shifts(self.line, labelled(mask)), mask)
        return super_resolved(self.edsr, moved_back(mask, shifts)), shifts


def second_correction(net: LineNet, volume: Labels, first: Doubles, mask: BoolArray) -> tuple[BoolArray, Doubles]:
    """Move the planes of the super-resolved volume onto the centre line that the second network expects.

    Args:
        net: the second network.
        volume: (128, 128, 60) labels.
        first: (12, 2) mm that the stack was moved by, and
        mask: (128, 128, 12) the stack itself, whose pool is to lie in the grid's centre (`centre_shifts`).

    Returns:
        (128, 128, 60) wall, and (12, 2) mm: both corrections at the planes of the slices.

    Raises:
        EmptyWall: the volume holds no wall.
    """
    planes = found_shifts(net, volume)
    total = first + planes[_AT_SLICES]
    centred = _centred(total, mask)
    return moved_back(is_wall(volume), planes + (centred - total)[0]), centred


@dataclass(frozen=True)
class McsrMs:
    """The three networks."""

    first: FirstTwo
    second: LineNet

    def predict(self, mask: BoolArray, spacing: Spacing) -> Prediction:
        """Reconstruct a stack (128, 128, 12); nothing is random.

        Raises:
            EmptyWall: the stack holds no wall, or none is left.
        """
        volume, shifts = self.first(mask)
        wall, total = second_correction(self.second, volume, shifts, mask)
        told = np.where(wall_slices(mask)[:, None], total, 0).astype(np.float32)
        return from_mask(wall, spacing[2], told)


def load(folder: Path, device: str) -> McsrMs:
    """The trained method of a run's folder.

    Raises:
        FileNotFoundError: a stage was not trained yet.
    """
    size = SIZES[cast("Size", load_weights(folder / "centreline" / "best.safetensors")[1]["size"])]
    second = opened(second_net(size), folder / "second_correction", device)
    return McsrMs(FirstTwo.load(folder, size, device), second)


def opened(net: N, stage: Path, device: str) -> N:
    """A network with the best weights of its stage, in evaluation mode, without gradients.

    Raises:
        FileNotFoundError: it was not trained yet.
    """
    net.load_state_dict(load_weights(stage / "best.safetensors")[0])
    # Channels last: convolutions in single precision take two thirds of the time.
    net.to(memory_format=torch.channels_last_3d)  # pyright: ignore[reportCallIssue]
    return net.to(device).eval().requires_grad_(requires_grad=False)


def _centred(shifts: Doubles, mask: BoolArray) -> Doubles:
    return centre_shifts(shifts, pool_features(mask).astype(np.float64))
