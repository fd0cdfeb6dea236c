"""From a canonical stack to a surface: the right-hand block of the paper's Fig. 1, line by line."""

from collections.abc import Mapping

import numpy as np

from m2s_runtime import flags
from m2s_runtime.base_limit import BaseLimit, Ended
from m2s_runtime.bundle import Bundle
from m2s_runtime.clock import Clock
from m2s_runtime.engines.base import Engine
from m2s_runtime.errors import EmptyWall
from m2s_runtime.expected_dice import DOUBTFUL, UNTOLD, traits
from m2s_runtime.handles import surface_without_handles
from m2s_runtime.manifest import Manifest
from m2s_runtime.one_pass import OnePass
from m2s_runtime.placement import Canonical
from m2s_runtime.refine import STILL_MM, register
from m2s_runtime.result import Floats, Pass, Reconstruction
from m2s_runtime.sampling import chosen_sampling, vertex_spread, wall_volumes
from m2s_runtime.slices import centre_shifts, common_shift, signed_distance

__all__ = ["Pipeline", "Reconstruction", "given_slices"]


def given_slices(manifest: Manifest, canonical: Canonical) -> tuple[Floats, Floats]:
    """Signed distances (128, 128, 12) mm, and what the networks of a bundle see of them, (1, 1, 128, 128, 12)."""
    distances = signed_distance(canonical.masks, manifest.clip_mm)
    seen = canonical.masks.astype(np.float32) if manifest.slices == "mask" else distances
    return distances, seen[None, None]


class Pipeline:
    """Runs the networks of one bundle on one engine; spawns nothing, keeps nothing between cases."""

    def __init__(
        self, bundle: Bundle, engine: Engine, *, steps: int | None = None, seed: int = 0, threads: int = 1,
        samples: int = 1, refine: int = 0, quality: str | None = None, exact: bool = False,
        base_limit: float | None = None,
    ) -> None:  # fmt: skip
        """Draw `samples` posterior samples; re-register the slices up to `refine` times.

        `exact` as in `csdg.coarse_sdg`; with `base_limit` the wall ends at most so many mm beyond its most basal slice.

        Raises:
            UsageProblem: see `sampling.chosen_sampling`, which makes something of `steps` and `quality`.
        """
        self.manifest, self.engine, self.samples, self.refine = bundle.manifest, engine, max(samples, 1), max(refine, 0)
        self._base_limit = base_limit
        self.sampling = chosen_sampling(self.manifest, steps, quality, self.samples)
        self._pass = OnePass(
            self.manifest,
            engine,
            sampling=self.sampling,
            seed=seed,
            threads=max(threads, 1),
            samples=self.samples,
            exact=exact,
        )

    def estimate(self, canonical: Canonical, noise_key: str) -> Floats:
        """Shifts (12, 2) mm that `reconstruct` would find, less what all slices have in common; errors as there."""
        if self.refine:
            result = self.reconstruct(canonical, noise_key)
            return result.shifts - result.common_shift
        pool = canonical.pool[None]
        shifts = self._shifts(given_slices(self.manifest, canonical)[1], pool)
        return (shifts - common_shift(shifts, pool))[0]

    def reconstruct(self, canonical: Canonical, noise_key: str, shared: Floats | None = None) -> Reconstruction:
        """Reconstructs one stack; the noise is a function of `noise_key` (sha256, hex), seed and sample number.

        Args:
            canonical: the stack.
            noise_key: sha256, hex.
            shared: (12, 2) mm, known shifts (those of all frames of a cine, `cine.shared_shifts`), taken as they are
                and placed without removing a common part.

        Raises:
            EmptyWall: nothing is left after super-resolution or decoding.
            NotFinite: a network returned NaN or infinity.
        """
        clock, pool = Clock(), canonical.pool[None]
        with clock("shifts"):
            distances, slices = given_slices(self.manifest, canonical)
            shifts = self._shifts(slices, pool) if shared is None else centre_shifts(shared[None], pool)
        passes = [self._pass.run(canonical, distances, slices, shifts, noise_key, clock)]
        for _ in range(self.refine if shared is None else 0):
            with clock("refine"):
                shifts = centre_shifts(register(distances, shifts[0], passes[-1].cut)[None], pool)
            if abs(shifts - passes[-1].shifts).max() < STILL_MM:
                break
            try:
                passes.append(self._pass.run(canonical, distances, slices, shifts, noise_key, clock))
            except EmptyWall:  # moved too far: what an earlier pass found stands
                break
        best = max(passes, key=lambda one: float(np.nanmean(one.agreement)))  # of equals the first
        # Shared shifts say where the slices lie; centring moved them all alike, which the placement takes back.
        common = common_shift(best.shifts, pool)[0] if shared is None else (best.shifts[0] - shared)[0]
        return self._surface(canonical, best, common, clock)

    def _shifts(self, slices: Floats, pool: Floats) -> Floats:
        return centre_shifts(self.engine.run("mc", {"slices": slices, "pool": pool})["shifts"], pool)

    def _surface(self, canonical: Canonical, best: Pass, common: Floats, clock: Clock) -> Reconstruction:
        with clock("surface"):
            affine = canonical.placement.world(common)
            whole = surface_without_handles(best.sdg, affine)
            limit = None if self._base_limit is None else BaseLimit.of(canonical.placement, self._base_limit)
            surface = whole if limit is None else surface_without_handles(limit.end(whole.sdg), affine)
            mesh, scale = surface.mesh, self.manifest.spread_scale
            spread = vertex_spread(mesh.vertices, affine, best.sdgs, scale) if self.samples > 1 else None
            volumes = wall_volumes(best.sdgs if limit is None else limit.end(best.sdgs)) if self.samples > 1 else ()
        # What a bundle knows of bad reconstructions it learnt from walls that end where the networks ended them.
        measured = flags.measures(canonical, whole.mesh, whole.sdg, best.agreement, spread)
        raised = flags.raised(measured, self.manifest.flag_limits)
        raised = (*flags.step_flags(canonical.placement.step_mm, self.manifest.step_range_mm), *raised)
        expected, doubtful = self._expected(canonical, measured, whole.mesh.volume / 1000, raised)
        raised = (*doubtful, *raised)
        raised += ("apex_closed",) * best.capped + ("tunnels_filled",) * (whole.filled or surface.filled)
        return Reconstruction(
            mesh, best.shifts[0], common, best.probability, surface.sdg, affine, raised, clock.seconds, spread,
            best.agreement, volumes, expected, None if limit is None else Ended(limit, whole.sdg),
        )  # fmt: skip

    def _expected(
        self, canonical: Canonical, measured: Mapping[str, float], volume_ml: float, raised: tuple[str, ...]
    ) -> tuple[float | None, tuple[str, ...]]:
        """The Dice to expect, and `doubtful` if it is too low or nothing can be expected."""
        model = self.manifest.dice_model
        if model is None:
            return None, ()
        if set(UNTOLD) & set(raised):
            return None, (DOUBTFUL,)
        expected = model.dice(traits(canonical, measured, volume_ml))
        return expected, flags.raised({"expected_dice": expected}, self.manifest.flag_limits)
