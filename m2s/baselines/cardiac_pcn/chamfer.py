"""The distance between clouds of points that PCN is trained by."""

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial import KDTree
from torch import Tensor


def chamfer(points: Tensor, others: Tensor) -> Tensor:
    """Mean distance to the nearest point of the other cloud, averaged over both directions (PCN's variant CD).

    Which point is nearest is found first, without a gradient; the distances to it carry one.

    Args:
        points: (B, N, 3).
        others: (B, M, 3).

    Returns:
        Scalar, in the units of the clouds.
    """
    there, back = nearest(points, others)
    return (_to_nearest(points, others, there) + _to_nearest(others, points, back)) / 2


def nearest(points: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the nearest of `others` for each point, (B, N), and the other way round, (B, M).

    On a CPU by k-d trees: all distances between two clouds of 16384 would take a hundred times as long.
    """
    if points.is_cuda:
        # One sample at a time: all distances of one take a gigabyte.
        pairs = [_smallest(torch.cdist(a, b)) for a, b in zip(points.detach(), others.detach(), strict=True)]
        return torch.stack([there for there, _ in pairs]), torch.stack([back for _, back in pairs])
    a, b = (cloud.detach().float().numpy() for cloud in (points, others))
    trees = [(_tree(p), _tree(q)) for p, q in zip(a, b, strict=True)]
    there = [tree.query(p)[1] for (_, tree), p in zip(trees, a, strict=True)]
    back = [tree.query(q)[1] for (tree, _), q in zip(trees, b, strict=True)]
    return torch.from_numpy(np.stack(there)), torch.from_numpy(np.stack(back))


def _tree(cloud: npt.NDArray[np.float32]) -> KDTree:
    return KDTree(cloud, balanced_tree=False, compact_nodes=False)


def _smallest(distances: Tensor) -> tuple[Tensor, Tensor]:
    return distances.argmin(1), distances.argmin(0)


def _to_nearest(points: Tensor, others: Tensor, index: Tensor) -> Tensor:
    chosen = others.gather(1, index[..., None].expand(-1, -1, 3))
    return (points - chosen).norm(dim=2).mean()
