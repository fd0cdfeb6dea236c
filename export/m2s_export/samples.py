"""Inputs for parity that look like the real thing: simulated stacks of procedural hearts, through the whole method."""

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
import torch
from torch import Tensor

from m2s.data.heart import Heart
from m2s.data.phantom import phantom
from m2s.data.simulate import PAPER, draw_rng, simulate_stack
from m2s.evaluate.methods import canonical_from_stack
from m2s_export.graphs import Graph
from m2s_runtime.csdg import coarse_sdg
from m2s_runtime.ddim import alpha_bars
from m2s_runtime.grid import PADDING
from m2s_runtime.manifest import Manifest
from m2s_runtime.placement import Canonical
from m2s_runtime.slices import centre_shifts, pool_features, signed_distance

_LEVELS: Final = (888, 222)
"""Noise levels of the sample latents: one mostly noise, one mostly heart."""


def phantom_hearts(count: int) -> Iterator[Heart]:
    """Procedural hearts, the same ones every time."""
    return (phantom(seed) for seed in range(count))


def phantom_stack(heart: Heart) -> Canonical:
    """A stack of `heart` with slices moved as in the paper's simulation."""
    return canonical_from_stack(simulate_stack(heart.mask, draw_rng(heart.id, 0, 0), PAPER))


def realistic_inputs(graphs: Mapping[str, Graph], manifest: Manifest) -> dict[str, dict[str, Tensor]]:
    """Inputs of batch 2 for each graph, every one computed by the graphs before it in the order of the data flow."""
    hearts = list(phantom_hearts(2))
    masks = np.stack([phantom_stack(heart).masks for heart in hearts])
    slices = torch.from_numpy(np.stack([_represent(m, manifest) for m in masks]))[:, None]
    pool = torch.from_numpy(np.stack([pool_features(m) for m in masks]))
    csdg = torch.from_numpy(np.stack([coarse_sdg(_on_grid(heart)) for heart in hearts]))[:, None]
    levels = torch.tensor(_LEVELS)
    bars = torch.from_numpy(alpha_bars()).float()[levels].reshape(-1, 1, 1, 1, 1)
    with torch.inference_mode():
        motion = {"slices": slices, "pool": pool} if "pool" in graphs["mc"].inputs else {"slices": slices}
        shifts = centre_shifts(graphs["mc"].module(**motion), pool)
        zc = graphs["encode"].module(csdg)
        noise = torch.randn(zc.shape, generator=torch.Generator().manual_seed(0))
        z = bars.sqrt() * zc + (1 - bars).sqrt() * noise
    return {
        "mc": motion,
        "sr": {"slices": slices, "shifts": shifts},
        "encode": {"csdg": csdg},
        "denoise": {"z": z, "zc": zc, "t": levels},
        "decode": {"z": zc},
    }


def _represent(masks: np.ndarray, manifest: Manifest) -> np.ndarray:
    return (
        signed_distance(masks, manifest.clip_mm) if manifest.slices == "signed_distance" else masks.astype(np.float32)
    )


def _on_grid(heart: Heart) -> np.ndarray:
    return np.pad(heart.mask, ((0, 0), (0, 0), (PADDING, PADDING)))
