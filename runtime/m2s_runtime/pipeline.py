"""From a canonical stack to a surface: the right-hand block of the paper's Fig. 1, line by line."""

import numpy as np

from m2s_runtime import ddim, flags
from m2s_runtime.agreement import agreement, sections
from m2s_runtime.apex import close_apex
from m2s_runtime.bundle import Bundle
from m2s_runtime.clock import Clock
from m2s_runtime.csdg import coarse_sdg, to_grid
from m2s_runtime.engines.base import Engine
from m2s_runtime.placement import Canonical
from m2s_runtime.refine import STILL_MM, register
from m2s_runtime.result import Floats, Pass, Reconstruction
from m2s_runtime.sampling import mean_sdg, start_noise, vertex_spread
from m2s_runtime.slices import centre_shifts, common_shift, signed_distance
from m2s_runtime.surface import extract_surface

__all__ = ["Reconstruction", "Reconstructor"]


class Reconstructor:
    """Runs the networks of one bundle on one engine; spawns nothing, keeps nothing between cases."""

    def __init__(
        self, bundle: Bundle, engine: Engine, *, steps: int | None = None, seed: int = 0, threads: int = 1,
        samples: int = 1, refine: int = 0,
    ) -> None:  # fmt: skip
        """Draw `samples` posterior samples with `steps` steps each; re-register the slices up to `refine` times."""
        self.manifest, self.engine, self.seed, self.threads = bundle.manifest, engine, seed, max(threads, 1)
        self.samples, self.refine = max(samples, 1), max(refine, 0)
        usual = self.manifest.steps if self.samples == 1 else self.manifest.sample_steps or self.manifest.steps
        self.levels = ddim.timesteps(steps or usual, self.manifest.timestep_spacing)
        # A damped start goes with the number of steps that it was chosen for; any other is plain sampling.
        self.temperature = self.manifest.temperature if len(self.levels) == self.manifest.steps else 1.0
        schedule = self.manifest.schedule
        self.bars = ddim.alpha_bars(schedule.beta_start, schedule.beta_end, schedule.train_steps)

    def reconstruct(self, canonical: Canonical, noise_key: str) -> Reconstruction:
        """Reconstructs one stack; the noise is a function of `noise_key` (sha256, hex), seed and sample number.

        Raises:
            EmptyWall: nothing is left after super-resolution or decoding.
            NotFinite: a network returned NaN or infinity.
        """
        clock, pool = Clock(), canonical.pool[None]
        with clock("shifts"):
            distances = signed_distance(canonical.masks, self.manifest.clip_mm)
            seen = canonical.masks.astype(np.float32) if self.manifest.slices == "mask" else distances
            slices = seen[None, None]
            shifts = centre_shifts(self.engine.run("mc", {"slices": slices, "pool": pool})["shifts"], pool)
        passes = [self._pass(canonical, distances, slices, shifts, noise_key, clock)]
        for _ in range(self.refine):
            with clock("refine"):
                shifts = centre_shifts(register(distances, shifts[0], passes[-1].cut)[None], pool)
            if abs(shifts - passes[-1].shifts).max() < STILL_MM:
                break
            passes.append(self._pass(canonical, distances, slices, shifts, noise_key, clock))
        best = max(passes, key=lambda one: float(np.nanmean(one.agreement)))  # of equals the first
        return self._surface(canonical, best, clock)

    def _pass(
        self, canonical: Canonical, distances: Floats, slices: Floats, shifts: Floats, noise_key: str, clock: Clock
    ) -> Pass:
        step_mm, manifest = canonical.placement.step_mm, self.manifest
        with clock("super-resolution"):
            planes = self.engine.run("sr", {"slices": slices, "shifts": shifts})["prob"][0, 0]
            probability = to_grid(planes, step_mm)
        with clock("c-sdg"):
            csdg = coarse_sdg(probability >= 0.5, self.threads)
        with clock("encode"):
            zc = self.engine.run("encode", {"csdg": csdg[None, None]})["zc"].repeat(self.samples, axis=0)
        with clock("denoise"):
            noise = start_noise(noise_key, self.seed, self.samples, manifest.latent_shape, self.temperature)
            z = ddim.sample(lambda z, t: self._denoise(z, zc, t), noise, self.levels, self.bars)
        with clock("decode"):
            sdgs = self.engine.run("decode", {"z": z})["sdg"][:, 0]
            mean = mean_sdg(sdgs)
            sdg, capped = close_apex(mean)
        with clock("agreement"):
            # Before the cap, which may lie in the plane of a slice that is a ring.
            cut = sections(mean, step_mm)
            agreed = agreement(distances, shifts[0], cut)
        return Pass(shifts, probability, sdgs, sdg, cut, agreed, capped)

    def _surface(self, canonical: Canonical, best: Pass, clock: Clock) -> Reconstruction:
        with clock("surface"):
            common = common_shift(best.shifts, canonical.pool[None])[0]
            affine = canonical.placement.world(common)
            mesh = extract_surface(best.sdg, affine)
            scale = self.manifest.spread_scale
            spread = vertex_spread(mesh.vertices, affine, best.sdgs, scale) if self.samples > 1 else None
        measured = flags.measures(canonical, mesh, best.sdg, best.agreement, spread)
        raised = flags.raised(measured, self.manifest.flag_limits)
        raised = (*flags.step_flags(canonical.placement.step_mm, self.manifest.step_range_mm), *raised)
        raised += ("apex_closed",) * best.capped
        return Reconstruction(
            mesh, best.shifts[0], common, best.probability, best.sdg, affine, raised, clock.seconds, spread,
            best.agreement,
        )  # fmt: skip

    def _denoise(self, z: Floats, zc: Floats, t: int) -> Floats:
        return self.engine.run("denoise", {"z": z, "zc": zc, "t": np.full(len(z), t, np.int64)})["eps"]
