"""What the diffusion trains on: truths that move with their stacks, stores that other processes can open."""

import copy
import pickle

import numpy as np
import pytest

from m2s.data.store import HeartStore, StoreSpec, open_store
from m2s.train import pairs


def ball(middle: float) -> np.ndarray:
    """Distances in mm to a ball of 20 mm about plane `middle`."""
    x, y, z = np.meshgrid(np.arange(128) - 63.5, np.arange(128) - 63.5, 2 * (np.arange(64) - middle), indexing="ij")
    return (np.sqrt(x**2 + y**2 + z**2) - 20).astype(np.float32)


@pytest.mark.parametrize("planes", [-5, 0, 5, 10])
def test_distances_move_along_z_with_their_wall(planes):
    found = pairs._along_z(ball(30), planes)  # pyright: ignore[reportPrivateUsage]
    expected = ball(30 + planes)
    # Beyond the clamp of 10 mm only the sign matters.
    np.testing.assert_allclose(found.clip(-10, 10), expected.clip(-10, 10), atol=1e-4)


def test_a_store_is_sent_by_its_name(tmp_path):
    store = open_store(tmp_path, StoreSpec(None, hearts=2, seed=3, distances=True))
    assert len(pickle.dumps(store)) < 2000
    again = copy.deepcopy(store)  # by the same protocol
    assert isinstance(again, HeartStore)
    assert again is not store
    np.testing.assert_array_equal(again.mask(1), store.mask(1))
    np.testing.assert_array_equal(again.distance(1), store.distance(1))
