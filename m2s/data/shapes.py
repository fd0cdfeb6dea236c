"""Hearts reduced to what MC-Net of `compact` sees of their slices, so that motion can be added in closed form."""

import io
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from m2s.data.store import SHARD, HeartStore, StoreSpec
from m2s.nets.slice_moments import wall_centroids, wall_moments
from m2s.pool import worker_pool
from m2s_runtime.atomic import write_bytes
from m2s_runtime.grid import CENTRE, UPSAMPLING
from m2s_runtime.slices import pool_features

Doubles = npt.NDArray[np.float64]
Complexes = npt.NDArray[np.complex128]


@dataclass(frozen=True)
class SliceShapes:
    """The twelve unmoved slices of N hearts. Complex numbers are vectors x + i y in mm from the grid's centre.

    Attributes:
        wall: (N, 12) centroid of the wall.
        pool: (N, 12) centroid of the pool against it, 0 where the ring is open.
        area: (N, 12) mm^2 of the wall, 0 where a slice is empty.
        pool_area: (N, 12) mm^2.
        moments: (N, 12, M) as in `m2s.nets.slice_moments`.
    """

    wall: Complexes
    pool: Complexes
    area: Doubles
    pool_area: Doubles
    moments: Complexes

    def __len__(self) -> int:
        return len(self.wall)


def slice_shapes(masks: npt.NDArray[np.bool_]) -> SliceShapes:
    """Of (N, 128, 128, 60) masks."""
    stacks = masks[..., UPSAMPLING // 2 :: UPSAMPLING]
    pool = np.stack([pool_features(stack) for stack in stacks]).astype(np.float64)
    # Half a pixel inside or outside is all that counts of the distance here.
    distance = torch.from_numpy(0.5 - stacks[:, None].astype(np.float64))
    centroid, area = wall_centroids(distance)
    moments = wall_moments(distance, centroid, area).numpy()
    held = area.numpy() > 0
    wall = _complex(centroid.numpy() - CENTRE)
    eccentric = (_complex(pool[..., :2] - CENTRE) - wall) * held
    return SliceShapes(wall, eccentric, area.numpy(), pool[..., 2], moments[..., 0, :] + 1j * moments[..., 1, :])


def stored_shapes(folder: Path, spec: StoreSpec, workers: int = 1) -> SliceShapes:
    """Of every heart of a finished store; kept beside its masks in `shapes.npz`."""
    path = folder / "shapes.npz"
    if path.is_file():
        with np.load(path) as kept:
            if len(kept["wall"]) == spec.hearts:
                return SliceShapes(**{field.name: kept[field.name] for field in fields(SliceShapes)})
    starts = range(0, spec.hearts, SHARD)
    with worker_pool(workers) as pool:
        parts = list(pool.map(_of_shard, [folder] * len(starts), [spec] * len(starts), starts))
    shapes = SliceShapes(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(SliceShapes)))
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **vars(shapes))
    write_bytes(path, buffer.getvalue())
    return shapes


def _of_shard(folder: Path, spec: StoreSpec, start: int) -> SliceShapes:
    torch.set_num_threads(1)
    store = HeartStore(folder, spec)
    return slice_shapes(np.stack([store.mask(k) for k in range(start, min(start + SHARD, spec.hearts))]))


def _complex(vectors: Doubles) -> Complexes:
    return vectors[..., 0] + 1j * vectors[..., 1]
