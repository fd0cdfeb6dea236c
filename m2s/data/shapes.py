"""Hearts reduced to what MC-Net of `compact` sees of their slices, so that motion can be added in closed form."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch

from m2s.data.store import HeartStore, StoreSpec, claim
from m2s.nets.slice_moments import wall_centroids, wall_moments
from m2s.pool import worker_pool
from m2s_runtime.atomic import write_bytes
from m2s_runtime.errors import UsageProblem
from m2s_runtime.grid import CENTRE, UPSAMPLING
from m2s_runtime.slices import pool_features

PART: Final = 50
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


def stored_shapes(folder: Path, spec: StoreSpec, workers: int = 1, masks: HeartStore | None = None) -> SliceShapes:
    """Of every heart of a spec, in parts that are kept in `folder`; what is missing is made with `workers` processes.

    A part holds some numbers of 50 hearts and none of their masks, so that tens of thousands of hearts take no room.
    A stopped making goes on where it was, and a part that cannot be read is made anew.

    Args:
        folder: where the parts are.
        spec: which hearts.
        workers: processes.
        masks: a store of the same hearts; without it each is made, and forgotten.

    Raises:
        UsageProblem: the folder holds shapes of another spec, or another process makes fewer hearts there.
    """
    claim(folder, spec)
    starts = range(0, spec.hearts, PART)
    stops = [min(start + PART, spec.hearts) for start in starts]
    parts = {start: _read(folder, start, stop) for start, stop in zip(starts, stops, strict=True)}
    missing = [(start, stop) for start, stop in zip(starts, stops, strict=True) if parts[start] is None]
    if missing:
        with worker_pool(workers) as pool:
            list(pool.map(_make_part, *zip(*((folder, spec, *span, masks) for span in missing), strict=True)))
        parts |= {start: _read(folder, start, stop) for start, stop in missing}
    whole = [part for part in parts.values() if part is not None]
    if len(whole) < len(parts):
        raise UsageProblem(f"{folder}: another training makes fewer hearts there; give each a RUN of its own")
    return _concatenated(whole)


def _make_part(folder: Path, spec: StoreSpec, start: int, stop: int, masks: HeartStore | None) -> None:
    torch.set_num_threads(1)

    def mask(k: int) -> npt.NDArray[np.bool_]:
        return spec.heart(k).mask if masks is None else masks.mask(k)

    batches = (range(k, min(k + _AT_ONCE, stop)) for k in range(start, stop, _AT_ONCE))
    made = _concatenated([slice_shapes(np.stack([mask(k) for k in batch])) for batch in batches])
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **vars(made))
    write_bytes(_file(folder, start), buffer.getvalue())


def _read(folder: Path, start: int, stop: int) -> SliceShapes | None:
    """Hearts `start` to `stop` of the part that begins there; None where it lacks one or cannot be read."""
    try:
        with np.load(_file(folder, start)) as kept:
            shapes = SliceShapes(*(kept[field.name][: stop - start] for field in fields(SliceShapes)))
    except (OSError, EOFError, KeyError, ValueError, BadZipFile):
        return None
    return shapes if len(shapes) == stop - start else None


def _concatenated(parts: Sequence[SliceShapes]) -> SliceShapes:
    return SliceShapes(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(SliceShapes)))


def _file(folder: Path, start: int) -> Path:
    return folder / f"shapes-{start:06d}.npz"


def _complex(vectors: Doubles) -> Complexes:
    return vectors[..., 0] + 1j * vectors[..., 1]
