"""Distances to the other kind of voxel against the definition: every pair compared."""

import numpy as np

from m2s_runtime.edge_distance import edge_distance


def test_every_voxel_knows_the_nearest_of_the_other_kind():
    inside = np.random.default_rng(0).uniform(size=(6, 5, 4)) < 0.4
    spacing = np.array([1.0, 1.5, 2.0])
    where = np.argwhere(np.ones_like(inside)) * spacing
    apart = np.linalg.norm(where[:, None] - where[None], axis=-1)
    kind = inside.ravel()
    apart[kind[:, None] == kind[None]] = np.inf
    wanted = np.where(kind, -1, 1) * apart.min(axis=1)
    np.testing.assert_allclose(edge_distance(inside, spacing).ravel(), wanted, atol=1e-12)
