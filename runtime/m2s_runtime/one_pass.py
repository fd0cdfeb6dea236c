"""From slices and their shifts to signed distances: super-resolution, C-SDG and latent diffusion, once."""

import numpy as np

from m2s_runtime import ddim
from m2s_runtime.agreement import agreement, sections
from m2s_runtime.apex import close_apex
from m2s_runtime.blend import Blend
from m2s_runtime.clock import Clock
from m2s_runtime.csdg import coarse_sdg, to_grid
from m2s_runtime.engines.base import Draws, Engine
from m2s_runtime.generate import generate
from m2s_runtime.manifest import Manifest
from m2s_runtime.placement import Canonical
from m2s_runtime.result import Floats, Pass
from m2s_runtime.sampling import Sampling, mean_sdg, start_noise
from m2s_runtime.shift_error import draw_shift_errors
from m2s_runtime.slices import centre_shifts, wall_slices


class OnePass:
    """What of the pipeline does not ask where the shifts come from."""

    def __init__(
        self, manifest: Manifest, engine: Engine, *, sampling: Sampling, seed: int, threads: int, samples: int,
        exact: bool = False,
    ) -> None:  # fmt: skip
        """Draw `samples` posterior samples; `exact` as in `csdg.coarse_sdg`."""
        self._exact = exact
        self._manifest, self._engine, self._seed, self._threads, self._samples = (
            manifest,
            engine,
            seed,
            threads,
            samples,
        )
        self._levels = ddim.timesteps(sampling.steps, manifest.timestep_spacing)
        self._temperature = sampling.temperature
        self._blend = Blend.of(manifest)
        schedule = manifest.schedule
        self._bars = ddim.alpha_bars(schedule.beta_start, schedule.beta_end, schedule.train_steps)

    def run(
        self, canonical: Canonical, distances: Floats, slices: Floats, shifts: Floats, noise_key: str, clock: Clock
    ) -> Pass:
        """Distances for one set of shifts.

        Args:
            canonical: the stack.
            distances: (128, 128, 12) mm of its slices, in-plane.
            slices: (1, 1, 128, 128, 12), what the graph `sr` takes.
            shifts: (1, 12, 2) mm, centred.
            noise_key: sha256, hex.
            clock: told the time of each stage.

        Raises:
            EmptyWall: nothing is left after super-resolution.
            NotFinite: a network returned NaN or infinity.
        """
        step_mm = canonical.placement.step_mm
        drawn = self._drawn(canonical, shifts, noise_key)
        noise = start_noise(noise_key, self._seed, self._samples, self._manifest.latent_shape, self._temperature)
        if isinstance(self._engine, Draws):
            walls, sdgs = self._on_device(self._engine, slices, drawn, step_mm, noise, clock)
        else:
            walls, sdgs = self._on_host(slices, drawn, step_mm, noise, clock)
        with clock("decode"):
            mean = mean_sdg(sdgs)
            sdg, capped = close_apex(mean)
        with clock("agreement"):
            # Before the cap, which may lie in the plane of a slice that is a ring.
            cut = sections(mean, step_mm)
            agreed = agreement(distances, shifts[0], cut)
        return Pass(shifts, mean_sdg(walls), sdgs, sdg, cut, agreed, capped)

    def _on_host(
        self, slices: Floats, drawn: Floats, step_mm: float, noise: Floats, clock: Clock
    ) -> tuple[Floats, Floats]:
        """Walls (1 or N, 128, 128, 64) and samples (N, 128, 128, 64) mm, the C-SDG between them made here."""
        with clock("super-resolution"):
            walls = np.stack([self._super_resolved(slices, one, step_mm) for one in drawn])
        with clock("c-sdg"):
            csdg = np.stack([coarse_sdg(wall >= 0.5, self._threads, exact=self._exact) for wall in walls])
        return walls, generate(self._engine, csdg[:, None], noise, self._levels, self._bars, clock, self._blend)

    def _on_device(
        self, engine: Draws, slices: Floats, drawn: Floats, step_mm: float, noise: Floats, clock: Clock
    ) -> tuple[Floats, Floats]:
        """The same by the engine, in one go, timed as `denoise`."""
        stacks, steps_mm = slices.repeat(len(drawn), axis=0), np.full(len(drawn), step_mm)
        with clock("denoise"):
            found = engine.draw(stacks, drawn, steps_mm, noise, self._levels, self._bars)
        found.check()
        return found.walls, found.sdgs

    def _super_resolved(self, slices: Floats, shifts: Floats, step_mm: float) -> Floats:
        return to_grid(self._engine.run("sr", {"slices": slices, "shifts": shifts[None]})["prob"][0, 0], step_mm)

    def _drawn(self, canonical: Canonical, shifts: Floats, noise_key: str) -> Floats:
        """The shifts of each sample, (N, 12, 2) mm; one for all where the bundle does not know their error."""
        deviations = self._manifest.shift_error_mm
        if self._samples == 1 or not any(deviations):
            return shifts
        held = wall_slices(canonical.masks)
        errors = draw_shift_errors(held, deviations, noise_key, self._seed, self._samples)
        return centre_shifts(shifts + errors, canonical.pool[None])
