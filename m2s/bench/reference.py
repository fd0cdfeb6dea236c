"""A pipeline as one would write it from the paper: nibabel, eager PyTorch on all cores, Open3D distances, scikit-image.

It does less than the runtime (no checks of the file, no blend, tunnels, apex, agreement, flags, measurements or
records), and what it shares with it (canonical grid, pool features, centring, sampling loop) is taken from there.
"""

import functools
import hashlib
import time
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from m2s_runtime import ddim, grid
from m2s_runtime.bundle import Bundle
from m2s_runtime.clock import Clock
from m2s_runtime.csdg import to_grid
from m2s_runtime.engines.base import Engine, first_line
from m2s_runtime.errors import EngineError
from m2s_runtime.generate import generate
from m2s_runtime.labels import wall_mask
from m2s_runtime.mesh_files import encode
from m2s_runtime.placement import Canonical, canonicalise, slice_axis
from m2s_runtime.sampling import start_noise
from m2s_runtime.slices import centre_shifts, common_shift, signed_distance
from m2s_runtime.surface import Mesh

Floats = npt.NDArray[np.float32]

_INSTALL: Final = 'pip install "mask2surface[bench]"'


class Reference:
    """One file at a time, in this process."""

    def __init__(self, bundle: Bundle, engine: Engine, steps: int, labels: str) -> None:
        """Take the networks as they are; Open3D gets as many threads.

        Raises:
            EngineError: Open3D is not installed, or a library that it needs is not.
        """
        self._open3d = load_open3d()
        self._engine, self._manifest, self._labels = engine, bundle.manifest, labels
        self._levels = ddim.timesteps(steps, bundle.manifest.timestep_spacing)
        schedule = bundle.manifest.schedule
        self._bars = ddim.alpha_bars(schedule.beta_start, schedule.beta_end, schedule.train_steps)

    def run(self, path: Path, out: Path) -> list[dict[str, float]]:
        """Reconstruct every frame of a file that holds a wall and write PLY files; seconds of the stages of each.

        Raises:
            CaseError: the file cannot be used.
        """
        import nibabel as nib

        began = time.perf_counter()
        image: Any = nib.load(path)
        labels = np.asarray(image.get_fdata()).round().astype(np.int16)
        wall, _ = wall_mask(labels.reshape((*labels.shape[:3], -1)), self._labels, slice_axis(image.affine))
        key = hashlib.sha256(path.read_bytes()).hexdigest()
        held = np.flatnonzero(wall.any(axis=(0, 1, 2)))
        reading = (time.perf_counter() - began) / max(len(held), 1)
        return [self._heart(wall[..., k], image.affine, key, out / f"{path.name}-{k}.ply", reading) for k in held]

    def _heart(
        self, wall: npt.NDArray[np.bool_], affine: npt.NDArray[np.float64], key: str, out: Path, reading: float
    ) -> dict[str, float]:
        clock = Clock()
        with clock("read"):
            canonical = canonicalise(wall, affine)
        clock.seconds["read"] += reading
        sdg, common = self._distances(canonical, key, clock)
        with clock("surface"):
            measure = import_module("skimage.measure")
            vertices, faces, _, _ = measure.marching_cubes(np.pad(sdg, 1, constant_values=10.0), 0.0)
            to_world = canonical.placement.world(common)
            mesh = Mesh((vertices - 1) @ to_world[:3, :3].T + to_world[:3, 3], faces.astype(np.int32))
        with clock("write"):
            out.write_bytes(encode(mesh, "ply"))
        return clock.seconds

    def _distances(self, canonical: Canonical, key: str, clock: Clock) -> tuple[Floats, Floats]:
        """(128, 128, 64) mm, and what all slices have moved in common."""
        manifest, pool = self._manifest, canonical.pool[None]
        with clock("shifts"):
            seen = canonical.masks.astype(np.float32)
            if manifest.slices != "mask":
                seen = signed_distance(canonical.masks, manifest.clip_mm)
            slices = seen[None, None]
            shifts = centre_shifts(self._engine.run("mc", {"slices": slices, "pool": pool})["shifts"], pool)
        with clock("super-resolution"):
            probability = self._engine.run("sr", {"slices": slices, "shifts": shifts})["prob"][0, 0]
            mask = to_grid(probability, canonical.placement.step_mm) >= 0.5
        with clock("c-sdg"):
            csdg = open3d_sdg(self._open3d, mask, self._engine.threads)
        noise = start_noise(key, 0, 1, manifest.latent_shape)
        sdgs = generate(self._engine, csdg[None, None], noise, self._levels, self._bars, clock)
        return sdgs[0], common_shift(shifts, pool)[0]


def open3d_sdg(open3d: Any, mask: npt.NDArray[np.bool_], threads: int) -> Floats:  # noqa: ANN401 - without types
    """What `m2s_runtime.csdg.coarse_sdg` computes, by marching cubes of the whole grid and Open3D's ray caster."""
    measure = import_module("skimage.measure")
    vertices, faces, _, _ = measure.marching_cubes(np.pad(mask, 1).astype(np.float32), 0.5)
    scene = open3d.t.geometry.RaycastingScene()
    scene.add_triangles(((vertices - 1) * grid.SPACING).astype(np.float32), faces.astype(np.uint32))
    distance = scene.compute_distance(open3d.core.Tensor(_centres()), nthreads=threads).numpy()
    return np.where(mask, -distance, distance).astype(np.float32)


@functools.cache
def _centres() -> Floats:
    """Of all voxels, mm."""
    points = np.stack(np.meshgrid(*map(np.arange, grid.GRID), indexing="ij"), axis=-1) * grid.SPACING
    return points.astype(np.float32)


def load_open3d() -> Any:  # noqa: ANN401
    """Import Open3D.

    Raises:
        EngineError: it is not installed, or a library that it needs is not.
    """
    try:
        return import_module("open3d")
    except (ImportError, OSError) as error:
        raise EngineError(
            f"Open3D cannot be loaded ({first_line(error)}); run `{_INSTALL}`, and on Linux install "
            "libusb-1.0-0 and libgl1 of the system"
        ) from error
