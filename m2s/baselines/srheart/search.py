"""Latent optimisation: the code and the slice shifts that together explain a stack of label maps."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Search:
    """How the source searches (both of its notebooks).

    Attributes:
        steps: iterations.
        shift_rate: Adam's, in units of the grid: 1 is half its width.
        code_rate: Adam's.
        halve_every: iterations after which both rates are halved.
    """

    steps: int = 500
    shift_rate: float = 0.1
    code_rate: float = 0.2
    halve_every: int = 100


def explain(
    decode: Callable[[Tensor], Tensor], codes: int, seen: Tensor, search: Search = Search()
) -> tuple[Tensor, Tensor]:
    """Alternate one step of the shifts and one of the code, from zero, on the mean cross-entropy.

    Nothing else is minimised: no prior of the code, no penalty of the shifts.

    Args:
        decode: logits (N, C, X, Y) of the slices' planes, of a code (1, codes).
        codes: length of the code.
        seen: (N, X, Y) int64 labels of the slices.
        search: constants.

    Returns:
        The code (1, codes), and (N, 2) along x and y in units of the grid, by which `moved` shifts the planes.
    """
    z = torch.zeros(1, codes, device=seen.device, requires_grad=True)
    shifts = torch.zeros(len(seen), 2, device=seen.device, requires_grad=True)
    still, shape = (torch.optim.Adam([x], r) for x, r in ((shifts, search.shift_rate), (z, search.code_rate)))
    rates = [torch.optim.lr_scheduler.StepLR(o, search.halve_every, 0.5) for o in (still, shape)]
    for _ in range(search.steps):
        # The shifts change nothing of what is decoded, so both steps share it.
        planes = decode(z)
        for optimiser, logits, by in ((still, planes.detach(), shifts), (shape, planes, shifts.detach())):
            optimiser.zero_grad()
            nn.functional.cross_entropy(moved(logits, by), seen).backward()
            optimiser.step()
        for rate in rates:
            rate.step()
    return z.detach(), shifts.detach()


def moved(planes: Tensor, shifts: Tensor) -> Tensor:
    """out(p) = in(p + shift), bilinear, of (N, C, X, Y) by (N, 2) in units of the grid.

    Beyond the field of view the edge goes on. The source has logits of zero there, by which every class is as likely
    and each shift costs something.
    """
    # grid_sample counts the last axis first.
    grid = nn.functional.affine_grid(_affine(shifts), list(planes.shape), align_corners=True)
    return nn.functional.grid_sample(planes, grid, align_corners=True, padding_mode="border")


def _affine(shifts: Tensor) -> Tensor:
    return torch.cat([torch.eye(2, device=shifts.device).expand(len(shifts), 2, 2), shifts.flip(1)[:, :, None]], 2)
