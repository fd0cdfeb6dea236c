"""From the coarse distances to the fine ones: encode, denoise, decode, on the host or on the engine's device."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from m2s_runtime import ddim
from m2s_runtime.blend import AS_DRAWN, Blend
from m2s_runtime.clock import Clock
from m2s_runtime.engines.base import Engine, Floats, Generates


def generate(
    engine: Engine,
    csdg: Floats,
    noise: Floats,
    levels: Sequence[int],
    bars: npt.NDArray[np.float64],
    clock: Clock,
    blend: Blend = AS_DRAWN,
) -> Floats:
    """Signed distances that the latent diffusion model draws for a coarse heart.

    Args:
        engine: runs the graphs; one that `Generates` does all of it in one go, timed as `denoise`.
        csdg: (1 or N, 1, X, Y, Z) mm; one condition is shared by all samples.
        noise: (N, D, X', Y', Z') to start from.
        levels: from `ddim.timesteps`.
        bars: from `ddim.alpha_bars`.
        clock: told the time of each stage.
        blend: how much of the C-SDG comes back in; an engine that `Generates` has it from the bundle.

    Returns:
        (N, X, Y, Z) float32 mm.

    Raises:
        NotFinite: a network returned NaN or infinity.
    """
    if isinstance(engine, Generates):
        with clock("denoise"):
            return engine.generate(csdg, noise, levels, bars)[:, 0]
    with clock("encode"):
        zc = engine.run("encode", {"csdg": csdg})["zc"].repeat(len(noise) // len(csdg), axis=0)

    def denoise(z: Floats, t: int) -> Floats:
        return engine.run("denoise", {"z": z, "zc": zc, "t": np.full(len(z), t, np.int64)})["eps"]

    with clock("denoise"):
        z = ddim.sample(denoise, noise, levels, bars)
    with clock("decode"):
        return blend.mixed(engine.run("decode", {"z": z})["sdg"], csdg)[:, 0]
