"""Hearts made once and kept on disk in shards, so that training reads instead of voxelising.

A shard is made in one piece and renamed into place: an interrupted build goes on where it stopped, and the same
arguments give the same shards on any machine.
"""

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from m2s.data.atlas import SELECTION_ROWS, TRAINING, TRAINING_ROWS, VALIDATION, AtlasCohort, Phase
from m2s.data.fit_file import prepared_cases, prepared_heart
from m2s.data.heart import Heart, keyed_rng
from m2s.data.labelmaps import LabelMaps
from m2s.data.phantom import phantom
from m2s.data.sdg import signed_distance_grid
from m2s.pool import worker_pool
from m2s_runtime.atomic import write_bytes
from m2s_runtime.errors import UsageProblem
from m2s_runtime.grid import MASK_GRID, SPACING, UPSAMPLING

SHARD: Final = 25
STEP_RANGE_MM: Final = (5.0, 14.0)
"""Slice steps of a store with varied steps."""


@dataclass(frozen=True)
class StoreSpec:
    """What a store holds.

    Attributes:
        atlas: folder of the shape atlas.
        split: `training` or `selection` (of the atlas rows 1300 to 1399, shaped like the validation cohort).
        hearts: how many.
        seed: of the cohort.
        distances: also keep the signed distance grids (2 MiB a heart).
        varied_steps: cut part of the hearts at slice steps from 5 to 14 mm; atlas only, not with `distances`.
        label_maps: folder of the paper's data set instead of an atlas. With neither the hearts are phantoms.
        healthy: share of the training hearts that vary no further than the validation cohort; atlas only.
        prepared: folder of `m2s-train prepare`: the surfaces of the label maps are its fitted templates.
        varied_share: share of the hearts cut at another slice step than 10 mm, where steps vary.
    """

    atlas: str | None
    split: Literal["training", "selection"] = "training"
    hearts: int = 1000
    seed: int = 0
    distances: bool = False
    varied_steps: bool = False
    label_maps: str | None = None
    healthy: float = 0.0
    prepared: str | None = None
    varied_share: float = 0.3

    @property
    def origin(self) -> dict[str, str]:
        """What the hearts come from and its licence, for manifests and model cards."""
        if self.label_maps is not None:
            surface = "marching cubes" if self.prepared is None else "registered templates"
            return {
                "data": "Cardiac super-resolution label maps (doi 10.17632/pw87p286yx.1), training part of the split,"
                f" surfaces by {surface}",
                "data_licence": "see the data set's page",
            }
        if self.atlas is None:
            return {"data": "procedural phantoms of this project", "data_licence": "Apache-2.0"}
        return {
            "data": "CAP MESA left-ventricular shape atlas (Cardiac Atlas Project), rows 0 to 1299, augmented",
            "data_licence": "GPL-3.0",
        }

    def heart(self, index: int) -> Heart:
        """Heart `index`, a pure function of the spec."""
        if self.label_maps is not None:
            maps = LabelMaps(self.label_maps)
            if self.prepared is None:
                return maps.high(*maps.cases(self.split)[index]).heart()
            cases = prepared_cases(self.prepared, self.label_maps, self.split)
            return prepared_heart(self.prepared, maps.high(*cases[index]))
        if self.atlas is None:
            return phantom(self.seed * 100_003 + index)
        rows = TRAINING_ROWS if self.split == "training" else SELECTION_ROWS
        rng = keyed_rng("store", self.seed, index)
        row = rows[int(rng.integers(len(rows)))]
        phase: Phase = "ED" if rng.uniform() < 0.5 else "ES"
        narrow = self.split == "selection" or (self.healthy > 0 and rng.uniform() < self.healthy)
        cohort = AtlasCohort(self.atlas, rows, self.seed, augment=VALIDATION if narrow else TRAINING)
        plane_mm = SPACING[2]
        if self.varied_steps and rng.uniform() < self.varied_share:
            least, most = (step / UPSAMPLING for step in STEP_RANGE_MM)
            plane_mm = cohort.fitting_plane(row, phase, index, least, most)
        return cohort.heart(row, phase, index, plane_mm)


class HeartStore:
    """Read access to a finished store."""

    def __init__(self, folder: Path, spec: StoreSpec) -> None:
        self.folder, self.spec = folder, spec
        shards = range((spec.hearts + SHARD - 1) // SHARD)
        self._masks = [mapped(_masks_file(folder, k)) for k in shards]
        self._sdgs = [mapped(_distances_file(folder, k)) for k in shards] if spec.distances else []
        self._ids: list[str] = [name for k in shards for name in _ids(_ids_file(folder, k))]

    def __reduce__(self) -> tuple[type["HeartStore"], tuple[Path, StoreSpec]]:
        """Another process opens the files again instead of being sent their contents."""
        return HeartStore, (self.folder, self.spec)

    def __len__(self) -> int:
        return self.spec.hearts

    def id(self, index: int) -> str:
        """Name of heart `index`; it keys its simulated stacks."""
        return self._ids[index]

    def mask(self, index: int) -> npt.NDArray[np.bool_]:
        """(128, 128, 60) bool."""
        bits = np.unpackbits(self._masks[index // SHARD][index % SHARD], count=int(np.prod(MASK_GRID)))
        return bits.astype(np.bool_).reshape(MASK_GRID)

    def distance(self, index: int) -> npt.NDArray[np.float32]:
        """(128, 128, 64) float32 mm, negative inside."""
        return self._sdgs[index // SHARD][index % SHARD].astype(np.float32)


class StoredHearts:
    """A store by its folder and spec, opened where it is first used, so that it can be sent to another process."""

    def __init__(self, folder: Path, spec: StoreSpec) -> None:
        self._folder, self._spec = folder, spec
        self._store: HeartStore | None = None

    @property
    def store(self) -> HeartStore:
        """The hearts."""
        if self._store is None:
            self._store = HeartStore(self._folder, self._spec)
        return self._store


def open_store(folder: Path, spec: StoreSpec, workers: int = 1) -> HeartStore:
    """Opens the store in `folder`, making what is missing with `workers` processes.

    Raises:
        UsageProblem: the folder holds a store made with another spec.
    """
    claim(folder, spec)
    shards = range((spec.hearts + SHARD - 1) // SHARD)
    missing = [k for k in shards if _made(folder, k) < min(SHARD, spec.hearts - k * SHARD)]
    if missing:
        with worker_pool(workers) as pool:
            list(pool.map(_make_shard, [folder] * len(missing), [spec] * len(missing), missing))
    return HeartStore(folder, spec)


def _made(folder: Path, shard: int) -> int:
    """Hearts in a shard; a store may grow."""
    path = _ids_file(folder, shard)
    return len(json.loads(path.read_text())) if path.is_file() else 0


def mapped(file: Path) -> npt.NDArray[Any]:
    """An array in a file of a store, not read yet.

    Raises:
        UsageProblem: the file is damaged.
    """
    try:
        return np.load(file, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise _damaged(file, error) from error


def _ids(file: Path) -> list[str]:
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> UsageProblem:
    return UsageProblem(f"{file}: damaged ({error}); remove its folder and run again, it is made anew")


def claim(folder: Path, spec: StoreSpec) -> None:
    """Marks a folder as one of a spec's hearts, however many.

    Raises:
        UsageProblem: it holds hearts of another spec.
    """
    marker, text = folder / "store.json", json.dumps(asdict(spec) | {"hearts": 0}, indent=1)
    if not marker.is_file():
        spec.heart(0)  # refuses a source that cannot be used before the folder is claimed for it
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(marker, text.encode())
    # What a store of an earlier version does not mention has its default.
    elif asdict(StoreSpec(None)) | json.loads(marker.read_text()) != json.loads(text):
        raise UsageProblem(f"{folder} holds hearts made with other options: remove it or choose another folder")


def _make_shard(folder: Path, spec: StoreSpec, shard: int) -> None:
    hearts = [spec.heart(k) for k in range(shard * SHARD, min((shard + 1) * SHARD, spec.hearts))]
    _save(_masks_file(folder, shard), np.stack([np.packbits(h.mask) for h in hearts]))
    if spec.distances:
        grids = [signed_distance_grid(h.grid_vertices, h.faces) for h in hearts]
        _save(_distances_file(folder, shard), np.stack(grids).astype(np.float16))
    # Last, because its presence says that the shard is whole.
    write_bytes(_ids_file(folder, shard), json.dumps([h.id for h in hearts]).encode())


def _save(path: Path, array: npt.NDArray[np.generic]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_bytes(path, buffer.getvalue())


def _masks_file(folder: Path, shard: int) -> Path:
    return folder / f"masks-{shard:04d}.npy"


def _distances_file(folder: Path, shard: int) -> Path:
    return folder / f"distances-{shard:04d}.npy"


def _ids_file(folder: Path, shard: int) -> Path:
    return folder / f"ids-{shard:04d}.json"
