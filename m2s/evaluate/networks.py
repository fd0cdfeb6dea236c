"""The trained networks as methods, through the runtime that users run; all of them share one run a stack."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from m2s.baselines.method import GRID_TO_MM, FloatArray, Method
from m2s.evaluate.methods import Network, Reconstruction, Reconstructor
from m2s_runtime import ddim
from m2s_runtime.apex import close_apex
from m2s_runtime.blend import AS_DRAWN, Blend
from m2s_runtime.csdg import coarse_sdg
from m2s_runtime.engines import Engine
from m2s_runtime.errors import UsageProblem
from m2s_runtime.handles import surface_without_handles
from m2s_runtime.placement import Canonical
from m2s_runtime.sampling import start_noise

if TYPE_CHECKING:
    from m2s_runtime.pipeline import Pipeline


@dataclass(frozen=True)
class ModelOptions:
    """How a bundle is opened and sampled, as on the command line."""

    model: str | None = None
    engine: str = "auto"
    device: str = "auto"
    threads: int = 1
    steps: int | None = None
    seed: int = 0
    samples: int = 1
    refine: int = 0
    base_limit: float | None = None


@dataclass
class Recorder:
    """An engine that keeps the conditions it encoded, so that nobody has to compute one again."""

    engine: Engine
    _encoded: list[tuple[FloatArray, FloatArray]] = field(default_factory=list, init=False)

    @property
    def name(self) -> str:
        """Of the engine."""
        return self.engine.name

    @property
    def device(self) -> str:
        """Of the engine."""
        return self.engine.device

    @property
    def threads(self) -> int:
        """Of the engine."""
        return self.engine.threads

    @property
    def description(self) -> str:
        """Of the engine."""
        return self.engine.description

    def run(self, graph: str, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run a graph, see `Engine.run`."""
        outputs = self.engine.run(graph, inputs)
        if graph == "encode":
            pairs = zip(inputs["csdg"], outputs["zc"], strict=True)
            self._encoded += [(csdg[0], latent[None]) for csdg, latent in pairs]
        return outputs

    def forget(self) -> None:
        """Drop the conditions: the next stack begins."""
        self._encoded.clear()

    def condition(self, probability: FloatArray) -> tuple[FloatArray, FloatArray]:
        """C-SDG (128, 128, 64) mm and latent (1, D, X, Y, Z) of a super-resolved wall (128, 128, 64).

        With `refine` the runtime encodes several walls and keeps one: distances are negative exactly in their mask,
        which tells them apart.
        """
        wall = np.asarray(probability >= 0.5)
        for csdg, latent in self._encoded:
            if np.array_equal(csdg < 0, wall):
                return csdg, latent
        self.run("encode", {"csdg": coarse_sdg(wall, self.threads)[None, None]})
        return self._encoded[-1]


@dataclass
class Remembering:
    """Hands the last stack's reconstruction out again, so that several methods share one run."""

    reconstructor: Reconstructor
    recorder: Recorder | None = None
    repeated: bool = field(default=False, init=False)
    """Whether the last answer was a remembered one."""
    _last: tuple[Canonical, str, Reconstruction] | None = field(default=None, init=False)

    def reconstruct(self, canonical: Canonical, noise_key: str) -> Reconstruction:
        """Reconstruct, or remember."""
        last = self._last
        self.repeated = last is not None and last[1] == noise_key and _same(last[0], canonical)
        if last is None or not self.repeated:
            if self.recorder is not None:
                self.recorder.forget()
            last = self._last = (canonical, noise_key, self.reconstructor.reconstruct(canonical, noise_key))
        return last[2]


def _same(a: Canonical, b: Canonical) -> bool:
    """Whether two stacks hold the same slices as far apart."""
    return a is b or (a.placement.step_mm == b.placement.step_mm and np.array_equal(a.masks, b.masks))


@dataclass(frozen=True)
class Decoded:
    """A reconstruction whose distances were decoded from another latent."""

    source: Reconstruction
    sdg: FloatArray

    @property
    def probability(self) -> FloatArray:
        """(128, 128, 64)."""
        return self.source.probability

    @property
    def shifts(self) -> FloatArray:
        """(12, 2) mm."""
        return self.source.shifts


def finished(sdg: FloatArray) -> FloatArray:
    """(1, 1, 128, 128, 64) mm to (128, 128, 64), apex closed and tunnels filled as the pipeline does it."""
    return surface_without_handles(close_apex(sdg[0, 0])[0], GRID_TO_MM).sdg


@dataclass(frozen=True)
class DecodeCondition:
    """Decodes the condition at once: what the diffusion has to improve on."""

    reconstructor: Reconstructor
    engine: Recorder
    blend: Blend = AS_DRAWN

    def reconstruct(self, canonical: Canonical, noise_key: str) -> Decoded:
        """Reconstruct without diffusion, the rest as with it."""
        source = self.reconstructor.reconstruct(canonical, noise_key)
        csdg, latent = self.engine.condition(source.probability)
        sdg = self.engine.run("decode", {"z": latent})["sdg"]
        return Decoded(source, finished(self.blend.mixed(sdg, csdg[None, None])))


@dataclass(frozen=True)
class Smoothed:
    """The C-SDG alone, smoothed as a blend is: what the latent model as a whole has to improve on."""

    reconstructor: Reconstructor
    engine: Recorder
    clamp_mm: float

    def reconstruct(self, canonical: Canonical, noise_key: str) -> Decoded:
        """Reconstruct without the latent model."""
        source = self.reconstructor.reconstruct(canonical, noise_key)
        csdg, _ = self.engine.condition(source.probability)
        csdg = csdg[None, None]
        return Decoded(source, finished(Blend(1.0, self.clamp_mm).mixed(csdg, csdg)))


@dataclass(frozen=True)
class Sampler:
    """Where the diffusion starts and which levels it visits; and the blend that the bundle makes of its answers."""

    latent_shape: tuple[int, int, int, int]
    levels: tuple[int, ...]
    bars: npt.NDArray[np.float64]
    seed: int
    blend: Blend = AS_DRAWN


@dataclass(frozen=True)
class Unconditioned:
    """The same noise, denoiser and decoder, told nothing about the stack: a condition of zeros, no C-SDG blended in.

    Surfaces stay as drawn: what is no heart has no apex to close.
    """

    reconstructor: Reconstructor
    engine: Engine
    sampler: Sampler

    def reconstruct(self, canonical: Canonical, noise_key: str) -> Decoded:
        """Reconstruct from noise alone; probability and shifts are those of the shared run."""
        source, s = self.reconstructor.reconstruct(canonical, noise_key), self.sampler
        noise = start_noise(noise_key, s.seed, 1, s.latent_shape)
        z = ddim.sample(self._denoise, noise, s.levels, s.bars)
        return Decoded(source, self.engine.run("decode", {"z": z.astype(np.float32)})["sdg"][0, 0])

    def _denoise(self, z: FloatArray, t: int) -> FloatArray:
        level = np.full(len(z), t, np.int64)
        return self.engine.run("denoise", {"z": z, "zc": np.zeros_like(z), "t": level})["eps"]


def network_methods(names: Sequence[str], options: ModelOptions) -> dict[str, Method]:
    """Open the bundle once for all methods that need it.

    Args:
        names: among `NETWORK_METHODS`; with none, nothing is opened.
        options: bundle, engine and sampling.

    Raises:
        BundleError: the bundle is missing or altered.
        EngineError: the engine or device cannot be had.
    """
    if not names:
        return {}
    shared, recorder, sampler = open_shared(options, whole="ours" in names)
    sources: dict[str, Reconstructor] = {
        "coarse": Smoothed(shared, recorder, sampler.blend.clamp_mm),
        "decode-zc": DecodeCondition(shared, recorder, sampler.blend),
        "unconditioned": Unconditioned(shared, recorder, sampler),
    }
    return {name: Network(name, sources.get(name, shared), shared) for name in names}


def open_shared(options: ModelOptions, *, whole: bool = True) -> tuple[Remembering, Recorder, Sampler]:
    """The runtime's pipeline on one engine, its last answer remembered.

    Args:
        options: bundle, engine and sampling.
        whole: False where nobody looks at the diffusion's result: one step of it is enough then, except that `refine`
            chooses among passes by their surfaces.

    Raises:
        BundleError: the bundle is missing or altered.
        EngineError: the engine or device cannot be had.
    """
    from m2s_runtime.bundle import load_bundle
    from m2s_runtime.engines import open_engine
    from m2s_runtime.pipeline import Pipeline

    bundle = load_bundle(options.model)
    opened = open_engine(bundle, engine=options.engine, device=options.device, threads=options.threads)
    recorder, manifest = Recorder(opened), bundle.manifest
    steps = options.steps if whole or options.refine else 1
    pipeline = Pipeline(
        bundle,
        recorder,
        steps=steps,
        seed=options.seed,
        threads=options.threads,
        samples=options.samples,
        refine=options.refine,
        base_limit=options.base_limit,
    )
    schedule = manifest.schedule
    # One step from no noise, which a bundle may prescribe for one sample, answers to the condition and samples nothing.
    levels = ddim.timesteps(options.steps or manifest.sample_steps or manifest.steps, manifest.timestep_spacing)
    sampler = Sampler(
        manifest.latent_shape,
        levels,
        ddim.alpha_bars(schedule.beta_start, schedule.beta_end, schedule.train_steps),
        options.seed,
        Blend.of(manifest),
    )
    return Remembering(pipeline, recorder), recorder, sampler


def pipeline_behind(method: Method) -> "Pipeline":
    """The runtime's own pipeline behind a network method, for what only it tells: flags, agreement, spread.

    Raises:
        UsageProblem: the method has none.
    """
    shared = method.reconstructor if isinstance(method, Network) else None
    if not isinstance(shared, Remembering):
        raise UsageProblem("this evaluation is of the whole method: leave --method away")
    return cast("Pipeline", shared.reconstructor)
