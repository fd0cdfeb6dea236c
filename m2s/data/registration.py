"""Registration of the template to a marching-cubes surface: the paper's ground truth (section 3.1).

An MLP maps the coordinates of the template's vertices to displacements and is fitted to one heart by Adam. The loss is
that of the paper: Chamfer distance, Laplacian smoothing and the L2 norm of the displacements. The paper gives neither
weights, nor the network's size, nor iterations, learning rate or how the template is first laid over the heart; what
is chosen here is in `Recipe`, with the reason. Chosen too:

- The coordinates are those of the template at its own size, whose wall is 9 mm thick in every heart. They enter through
  sines of a few wavelengths: a plain MLP would need many more iterations for what is smaller than the heart.
- First an affine map: bounding box onto bounding box, after a shear that lays the template's long axis along the
  heart's (the regression of x and y on z, which leaves a flat base flat); the template's wall takes the thickness at
  which its volume is the heart's. Displacements count from there.
- The Laplacian is the displacement's, not the surface's, which would round off the rim and shrink the apex.
- Chamfer distances are squared, in mm², means of both directions summed, as in PyTorch3D, which the paper used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import brentq
from scipy.sparse import csr_array
from scipy.spatial import KDTree
from torch import Tensor, nn

from m2s.data.template import LENGTH_MM, Template
from m2s.triangles import sample_surface
from m2s_runtime.surface import Mesh, signed_volume

Floats = npt.NDArray[np.float64]

_WALLS_MM: Final = (2.0, 40.0)
"""Thicknesses tried for the template's wall at its own size."""
_NORMAL_DISPLACEMENT_MM: Final = 10.0
"""One unit of the network's last layer."""


@dataclass(frozen=True)
class Recipe:
    """How a fit is made.

    Attributes:
        iterations: of Adam; each sees the whole template.
        rate: learning rate, falling to zero along a cosine.
        laplacian: weight of the mean squared Laplacian of the displacements (mm²) beside the Chamfer distance (mm²).
        norm: weight of the mean squared displacement, mm².
        samples: points of the target, drawn once, uniform by area.
        refresh: iterations between two searches for nearest neighbours.
        width: of the MLP's three hidden layers.
        seed: of weights and samples.
    """

    iterations: int = 500
    rate: float = 2e-2
    laplacian: float = 1.0
    norm: float = 1e-3
    samples: int = 20_000
    refresh: int = 4
    width: int = 96
    seed: int = 0


class Displacement(nn.Module):
    """Coordinates (V, 3) of the template at its own size, mm, to displacements (V, 3), mm; zero at the start."""

    def __init__(self, width: int, wavelengths: Sequence[float] = (160.0, 80.0, 40.0, 20.0)) -> None:
        super().__init__()
        self._wavelengths = tuple(wavelengths)
        layers: list[nn.Module] = []
        for given in (3 + 6 * len(self._wavelengths), width, width):
            layers += [nn.Linear(given, width), nn.SiLU()]
        last = nn.Linear(width, 3)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def features(self, points: Tensor) -> Tensor:
        """Coordinates and their sines and cosines, (V, 3) to (V, 3 + 6n); they stay the same through a fit."""
        angles = [2 * torch.pi / w * points for w in self._wavelengths]
        return torch.cat([points / LENGTH_MM, *(f(a) for a in angles for f in (torch.sin, torch.cos))], dim=1)

    def forward(self, features: Tensor) -> Tensor:
        """Displacements in mm."""
        return _NORMAL_DISPLACEMENT_MM * self.layers(features)


def register(template: Template, target: Mesh, recipe: Recipe) -> Mesh:
    """Fit the template to a closed surface.

    Args:
        template: its faces become those of the result.
        target: closed, outward winding, mm; base at low z, long axis within some 20 degrees of z.
        recipe: constants; the same ones give the same fit on one machine at one thread.

    Returns:
        The fitted mesh, vertices float64 mm in the target's frame.

    Raises:
        ValueError: the target has no area.
    """
    rng = np.random.default_rng([recipe.seed, len(target.faces)])
    samples = sample_surface(target, recipe.samples, rng)
    start = align(template, target, samples)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        net = Displacement(recipe.width)
    moved = _descend(net, template, start, samples, recipe)
    return Mesh(moved, template.faces)


def align(template: Template, target: Mesh, samples: Floats) -> Floats:
    """The template's vertices laid over the target by the affine map of this module's docstring, (V, 3) mm."""
    slope, *_ = np.linalg.lstsq(samples[:, 2:] - samples[:, 2].mean(), samples[:, :2] - samples[:, :2].mean(0))
    upright = target.vertices.copy()
    upright[:, :2] -= upright[:, 2:] * slope
    low, high = upright.min(axis=0), upright.max(axis=0)

    def laid(wall_mm: float) -> Floats:
        points = template.vertices(wall_mm)
        least, most = points.min(axis=0), points.max(axis=0)
        return (points - least) / (most - least) * (high - low) + low

    volume = signed_volume(target)

    def excess(wall_mm: float) -> float:
        return signed_volume(Mesh(laid(wall_mm), template.faces)) - volume

    points = laid(_root(excess, *_WALLS_MM))
    points[:, :2] += points[:, 2:] * slope
    return points


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a growing function is zero between two bounds, or the nearer bound."""
    if function(low) >= 0:
        return low
    if function(high) <= 0:
        return high
    return float(brentq(function, low, high, xtol=0.05))  # pyright: ignore[reportArgumentType]


def _descend(net: Displacement, template: Template, start: Floats, samples: Floats, recipe: Recipe) -> Floats:
    features = net.features(torch.from_numpy(template.vertices()).float())
    origin, target = torch.from_numpy(start).float(), torch.from_numpy(samples).float()
    laplacian = _laplacian(template.faces, len(start))
    faces, tree = torch.from_numpy(template.faces.astype(np.int64)), KDTree(samples)
    optimiser = torch.optim.Adam(net.parameters(), lr=recipe.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.iterations)
    to_target = to_template = torch.empty(0, dtype=torch.int64)
    for iteration in range(recipe.iterations):
        displacement = net(features)
        points = _points(origin + displacement, faces)
        if iteration % recipe.refresh == 0:
            to_target, to_template = _nearest(points.detach().numpy(), samples, tree)
        chamfer = _squared(points - target[to_target]) + _squared(target - points[to_template])
        loss = chamfer + recipe.laplacian * _squared(laplacian @ displacement) + recipe.norm * _squared(displacement)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        return start + net(features).double().numpy()


def _points(vertices: Tensor, faces: Tensor) -> Tensor:
    """Vertices and centres of the faces: (V + F, 3), evenly spread, for the triangles are of one size."""
    return torch.cat([vertices, vertices[faces].mean(dim=1)])


def _nearest(points: Floats, samples: Floats, tree: KDTree) -> tuple[Tensor, Tensor]:
    """Numbers of the target's sample nearest to each point, and of the point nearest to each sample."""
    there, back = tree.query(points)[1], KDTree(points).query(samples)[1]
    return torch.from_numpy(np.asarray(there)), torch.from_numpy(np.asarray(back))


def _squared(vectors: Tensor) -> Tensor:
    """Mean squared length."""
    return (vectors**2).sum(dim=1).mean()


def _laplacian(faces: npt.NDArray[np.int32], count: int) -> Tensor:
    """(V, V) sparse: mean over the neighbours minus the point itself."""
    start, end = faces.ravel(), np.roll(faces, -1, axis=1).ravel()
    # In a closed mesh each edge runs once each way, so every neighbour is counted once.
    links = csr_array((np.ones(len(start)), (start, end)), shape=(count, count)).tocoo()
    degree = np.bincount(links.row, minlength=count)
    own = np.arange(count)
    index = torch.from_numpy(np.stack([np.concatenate([links.row, own]), np.concatenate([links.col, own])]))
    values = torch.from_numpy(np.concatenate([1 / degree[links.row], -np.ones(count)])).float()
    return torch.sparse_coo_tensor(index, values, (count, count), check_invariants=False).coalesce()
