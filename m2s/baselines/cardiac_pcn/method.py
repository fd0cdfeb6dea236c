"""CardiacPCN, trained: contours in, completed points and their mesh out."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from m2s.baselines.cardiac_pcn.cloud import Frame, Points, outward, resample, wall_contours
from m2s.baselines.cardiac_pcn.meshing import poisson_mesh
from m2s.baselines.cardiac_pcn.net import SIZES, Pcn
from m2s.baselines.method import BoolArray, Prediction, Spacing, from_mesh, stack_key
from m2s.data.heart import keyed_rng
from m2s.train.checkpoint import load_weights
from m2s_runtime.errors import NotFinite
from m2s_runtime.grid import GRID, NOMINAL_STEP, SPACING


@dataclass(frozen=True)
class CardiacPcn:
    """The trained network and the meshing."""

    net: Pcn
    device: str = "cpu"

    def predict(self, mask: BoolArray, spacing: Spacing) -> Prediction:
        """Complete the contours of a stack and mesh the points; the motion it takes slices to have is not known.

        Raises:
            EmptyWall: no slice holds wall, or screened Poisson made no surface.
            NotFinite: the network returned NaN or infinity.
            EngineError: PyMeshLab cannot be loaded.
        """
        points = self.cloud(mask, spacing)
        contours = wall_contours(mask)
        out = outward(mask, contours, _stretched(points, NOMINAL_STEP**2 / spacing[2]))  # where the contours lie
        return replace(from_mesh(poisson_mesh(points, out), None), points=points)

    def cloud(self, mask: BoolArray, spacing: Spacing) -> Points:
        """The completed points, (16384, 3) mm in the grid's own frame.

        Raises:
            EmptyWall: no slice holds wall.
            NotFinite: the network returned NaN or infinity.
        """
        contours = wall_contours(mask)
        frame = Frame(contours.mean(axis=0))
        rng = keyed_rng("cardiac-pcn", stack_key(mask))
        seen = torch.from_numpy(frame.into(resample(contours, self.net.size.points, rng)))[None].to(self.device)
        with torch.no_grad():
            _, fine = self.net(seen)
        if not fine.isfinite().all():
            raise NotFinite("the network returned NaN or infinity: its weights are damaged or were badly trained")
        return _stretched(frame.back(fine[0].cpu().numpy()), spacing[2])


def load(folder: Path, device: str) -> CardiacPcn:
    """The trained method in `folder`.

    Raises:
        FileNotFoundError: it was not trained yet.
    """
    weights, told = load_weights(folder / "pcn" / "best.safetensors")
    net = Pcn(SIZES[told["size"]])  # pyright: ignore[reportArgumentType]
    net.load_state_dict(weights)
    return CardiacPcn(net.eval().to(device), device)


def _stretched(points: Points, step_mm: float) -> Points:
    """From the nominal slice step to the stack's own, about the middle of the grid."""
    middle = (GRID[2] - 1) / 2 * SPACING[2]
    return (points - (0, 0, middle)) * (1, 1, step_mm / NOMINAL_STEP) + (0, 0, middle)
