"""Inputs for parity: random ones, and simulated stacks of procedural hearts through the whole method."""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from m2s.data.heart import Heart
from m2s.data.phantom import phantom
from m2s.data.simulate import PAPER, draw_rng, simulate_stack
from m2s.evaluate.methods import canonical_from_stack
from m2s_runtime.csdg import coarse_sdg
from m2s_runtime.ddim import alpha_bars
from m2s_runtime.engines.base import Arrays, Engine
from m2s_runtime.grid import PADDING
from m2s_runtime.manifest import GraphSpec, Manifest
from m2s_runtime.placement import Canonical
from m2s_runtime.slices import centre_shifts, pool_features, signed_distance

_LEVELS: Final = (888, 222)
"""Noise levels of the sample latents: one mostly noise, one mostly heart."""

_RANDOM: Final = {"shifts": 3.0, "csdg": 8.0}
"""Standard deviations in mm; other inputs have one."""


def phantom_hearts(count: int) -> Iterator[Heart]:
    """Procedural hearts, the same ones every time."""
    return (phantom(seed) for seed in range(count))


def phantom_stack(heart: Heart) -> Canonical:
    """A stack of `heart` with slices moved as in the paper's simulation."""
    return canonical_from_stack(simulate_stack(heart.mask, draw_rng(heart.id, 0, 0), PAPER))


def random_inputs(spec: GraphSpec, seed: int = 0) -> Arrays:
    """Inputs of batch 2 that no heart would give, by name, of the signature's shapes and dtypes."""
    rng = np.random.default_rng(seed)
    made: Arrays = {}
    for tensor in spec.inputs:
        shape = [2, *(int(n) for n in tensor.shape[1:])]
        if tensor.name == "t":
            made["t"] = np.array([999, 111])
        elif tensor.name == "pool":
            made["pool"] = np.broadcast_to(np.array([60, 67, 900]), shape)
        else:
            made[tensor.name] = _RANDOM.get(tensor.name, 1.0) * rng.standard_normal(shape, dtype=np.float32)
    return {name: np.asarray(array, np.int64 if name == "t" else np.float32) for name, array in made.items()}


def realistic_inputs(engine: Engine, manifest: Manifest) -> dict[str, Arrays]:
    """Inputs of batch 2 for each graph, every one computed by the graphs before it in the order of the data flow."""
    hearts = list(phantom_hearts(2))
    masks = np.stack([phantom_stack(heart).masks for heart in hearts])
    slices = np.stack([_represent(m, manifest) for m in masks])[:, None]
    pool = np.stack([pool_features(m) for m in masks])
    csdg = np.stack([coarse_sdg(_on_grid(heart)) for heart in hearts])[:, None]
    levels = np.array(_LEVELS)
    bars = alpha_bars()[levels].astype(np.float32).reshape(-1, 1, 1, 1, 1)
    motion = {t.name: {"slices": slices, "pool": pool}[t.name] for t in manifest.graphs["mc"].inputs}
    shifts = centre_shifts(engine.run("mc", motion)["shifts"], pool)
    zc = engine.run("encode", {"csdg": csdg})["zc"]
    noise = np.random.default_rng(0).standard_normal(zc.shape, dtype=np.float32)
    z = np.sqrt(bars) * zc + np.sqrt(1 - bars) * noise
    return {
        "mc": motion,
        "sr": {"slices": slices, "shifts": shifts},
        "encode": {"csdg": csdg},
        "denoise": {"z": z, "zc": zc, "t": levels},
        "decode": {"z": zc},
    }


def _represent(masks: NDArray[Any], manifest: Manifest) -> NDArray[Any]:
    return (
        signed_distance(masks, manifest.clip_mm) if manifest.slices == "signed_distance" else masks.astype(np.float32)
    )


def _on_grid(heart: Heart) -> NDArray[Any]:
    return np.pad(heart.mask, ((0, 0), (0, 0), (PADDING, PADDING)))
