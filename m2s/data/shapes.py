"""Hearts reduced to what MC-Net of `compact` sees of their slices, so that motion can be added in closed form."""

import io
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from m2s.data.store import StoreSpec, claim
from m2s.nets.slice_moments import wall_centroids, wall_moments
from m2s.pool import worker_pool
from m2s_runtime.atomic import write_bytes
from m2s_runtime.grid import CENTRE, UPSAMPLING
from m2s_runtime.slices import pool_features

PART: Final = 250
"""Hearts in a file."""
_AT_ONCE: Final = 25

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
    """Of every heart of a spec, in parts that are kept in `folder`; what is missing is made with `workers` processes.

    A part holds some numbers of 250 hearts and none of their masks, so that tens of thousands of hearts take no room.
    A stopped making goes on where it was.

    Raises:
        UsageProblem: the folder holds shapes of another spec.
    """
    claim(folder, spec)
    starts = range(0, spec.hearts, PART)
    missing = [start for start in starts if _made(folder, start) < min(PART, spec.hearts - start)]
    if missing:
        with worker_pool(workers) as pool:
            list(pool.map(_make_part, [folder] * len(missing), [spec] * len(missing), missing))
    parts = [_read(folder, start) for start in starts]
    whole = SliceShapes(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(SliceShapes)))
    # A folder may hold more hearts than are wanted now.
    return SliceShapes(*(array[: spec.hearts] for array in vars(whole).values()))


def _make_part(folder: Path, spec: StoreSpec, start: int) -> None:
    torch.set_num_threads(1)
    hearts = range(start, min(start + PART, spec.hearts))
    batches = (hearts[k : k + _AT_ONCE] for k in range(0, len(hearts), _AT_ONCE))
    made = [slice_shapes(np.stack([spec.heart(k).mask for k in batch])) for batch in batches]
    buffer = io.BytesIO()
    arrays = {f.name: np.concatenate([getattr(m, f.name) for m in made]) for f in fields(SliceShapes)}
    np.savez(buffer, allow_pickle=False, **arrays)
    write_bytes(_file(folder, start), buffer.getvalue())


def _made(folder: Path, start: int) -> int:
    """Hearts in a part; the last one may grow."""
    return len(_read(folder, start)) if _file(folder, start).is_file() else 0


def _read(folder: Path, start: int) -> SliceShapes:
    with np.load(_file(folder, start)) as kept:
        return SliceShapes(**{field.name: kept[field.name] for field in fields(SliceShapes)})


def _file(folder: Path, start: int) -> Path:
    return folder / f"shapes-{start:06d}.npz"


def _complex(vectors: Doubles) -> Complexes:
    return vectors[..., 0] + 1j * vectors[..., 1]
