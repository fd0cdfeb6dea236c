"""From a canonical stack to a surface: the right-hand block of the paper's Fig. 1, line by line."""

from typing import Final

import numpy as np

from m2s_runtime import ddim
from m2s_runtime.bundle import Bundle
from m2s_runtime.clock import Clock
from m2s_runtime.csdg import coarse_sdg, to_grid
from m2s_runtime.engines.base import Engine
from m2s_runtime.grid import SPACING
from m2s_runtime.placement import Canonical
from m2s_runtime.result import Floats, Reconstruction
from m2s_runtime.slices import centre_shifts, common_shift, signed_distance
from m2s_runtime.surface import Mesh, extract_surface, signed_volume

__all__ = ["Reconstruction", "Reconstructor"]


LEAST_KEPT: Final = 0.95
"""Share of the reconstructed wall in its largest piece below which the others are worth a flag."""


class Reconstructor:
    """Runs the networks of one bundle on one engine; spawns nothing, keeps nothing between cases."""

    def __init__(
        self, bundle: Bundle, engine: Engine, *, steps: int | None = None, seed: int = 0, threads: int = 1
    ) -> None:
        self.manifest, self.engine, self.seed, self.threads = bundle.manifest, engine, seed, max(threads, 1)
        self.levels = ddim.timesteps(steps or self.manifest.steps, self.manifest.timestep_spacing)
        schedule = self.manifest.schedule
        self.bars = ddim.alpha_bars(schedule.beta_start, schedule.beta_end, schedule.train_steps)

    def reconstruct(self, canonical: Canonical, noise_key: str) -> Reconstruction:
        """Reconstructs one stack; the noise is a function of `noise_key` (sha256, hex) and the seed.

        Raises:
            EmptyWall: nothing is left after super-resolution or decoding.
            NotFinite: a network returned NaN or infinity.
        """
        clock = Clock()
        with clock("shifts"):
            slices = self._seen(canonical)
            motion = self.engine.run("mc", {"slices": slices, "pool": canonical.pool[None]})["shifts"]
            shifts = centre_shifts(motion, canonical.pool[None])
        with clock("super-resolution"):
            planes = self.engine.run("sr", {"slices": slices, "shifts": shifts})["prob"][0, 0]
            probability = to_grid(planes, canonical.placement.step_mm)
        with clock("c-sdg"):
            csdg = coarse_sdg(probability >= 0.5, self.threads)
        with clock("encode"):
            zc = self.engine.run("encode", {"csdg": csdg[None, None]})["zc"]
        with clock("denoise"):
            noise = ddim.draw_noise(noise_key, self.seed, 0, self.manifest.latent_shape)[None]
            z = ddim.sample(lambda z, t: self._denoise(z, zc, t), noise, self.levels, self.bars)
        with clock("decode"):
            sdg = self.engine.run("decode", {"z": z})["sdg"][0, 0]
        with clock("surface"):
            common = common_shift(shifts, canonical.pool[None])[0]
            affine = canonical.placement.world(common)
            mesh = extract_surface(sdg, affine)
        flags = ("pieces_dropped",) if _kept_share(mesh, sdg) < LEAST_KEPT else ()
        return Reconstruction(mesh, shifts[0], common, probability, sdg, affine, flags, clock.seconds)

    def _seen(self, canonical: Canonical) -> Floats:
        if self.manifest.slices == "mask":
            return canonical.masks[None, None].astype(np.float32)
        return signed_distance(canonical.masks, self.manifest.clip_mm)[None, None]

    def _denoise(self, z: Floats, zc: Floats, t: int) -> Floats:
        return self.engine.run("denoise", {"z": z, "zc": zc, "t": np.full(len(z), t, np.int64)})["eps"]


def _kept_share(mesh: Mesh, sdg: Floats) -> float:
    return signed_volume(mesh) / (np.count_nonzero(sdg < 0) * float(np.prod(SPACING)))
