"""Makes `data/toy_bundle`: a bundle that learnt nothing and yet reconstructs, for the tests of the runtime.

Each slice is centred on its own pool, distances are interpolated linearly in z, the "latent" is the clamped distance
grid folded into 64 channels, and the "denoiser" knows that the clean latent is the condition. So the whole method comes
out as shape-based interpolation, through every graph and every step of the loop.

    python tests/make_toy_bundle.py
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from m2s.nets.blocks import fold_patches, realign, unfold_patches
from m2s.nets.presets import PRESETS, Preset
from m2s_export.bundle import Plan, draft_manifest, publish
from m2s_export.graphs import Graph
from m2s_runtime.ddim import alpha_bars
from m2s_runtime.grid import CENTRE, GRID, IN_PLANE, PLANES, SLICES, UPSAMPLING
from m2s_runtime.manifest import Manifest, Training

CELL = (4, 4, 4)
CLAMP_MM, CLIP_MM = 10.0, 12.0
STEPS_MM = (5.0, 14.0)
LATENT = (64, GRID[0] // 4, GRID[1] // 4, GRID[2] // 4)
PRESET = Preset("toy", PRESETS["tiny"].mcsr, PRESETS["tiny"].vqvae, PRESETS["tiny"].denoiser)


class Motion(nn.Module):
    def forward(self, slices: Tensor, pool: Tensor) -> Tensor:
        return pool[..., :2] - CENTRE + 0 * slices[:, 0, 0, :1, :1]


class SuperResolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        where = ((torch.arange(PLANES) - UPSAMPLING // 2) / UPSAMPLING).clamp(0, SLICES - 1)
        self.register_buffer("weights", torch.relu(1 - (where - torch.arange(SLICES)[:, None]).abs()))

    def forward(self, slices: Tensor, shifts: Tensor) -> Tensor:
        return torch.sigmoid(-(realign(slices, shifts, CLIP_MM) @ self.weights))


class Encode(nn.Module):
    def forward(self, csdg: Tensor) -> Tensor:
        return fold_patches(csdg.clamp(-CLAMP_MM, CLAMP_MM) / CLAMP_MM, CELL)


class Denoise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        bars = torch.from_numpy(alpha_bars())
        self.register_buffer("signal", bars.sqrt().float())
        self.register_buffer("spread", (1 - bars).sqrt().float())

    def forward(self, z: Tensor, zc: Tensor, t: Tensor) -> Tensor:
        signal, spread = (table[t].reshape(-1, 1, 1, 1, 1) for table in (self.signal, self.spread))
        return (z - signal * zc) / spread


class Decode(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return CLAMP_MM * unfold_patches(z, CELL)


def toy_graphs() -> dict[str, Graph]:
    torch.manual_seed(0)
    slices, pool = 5 * torch.randn(2, 1, IN_PLANE, IN_PLANE, SLICES), 64 + torch.randn(2, SLICES, 3)
    z, zc = torch.randn(2, *LATENT), torch.randn(2, *LATENT).clamp(-1, 1)
    graphs = (
        Graph("mc", Motion(), {"slices": slices, "pool": pool}, "shifts"),
        Graph("sr", SuperResolution(), {"slices": slices, "shifts": torch.randn(2, SLICES, 2)}, "prob"),
        Graph("encode", Encode(), {"csdg": 8 * torch.randn(2, 1, *GRID)}, "zc"),
        Graph("denoise", Denoise(), {"z": z, "zc": zc, "t": torch.tensor([999, 111])}, "eps"),
        Graph("decode", Decode(), {"z": z}, "sdg"),
    )
    return {graph.name: graph for graph in graphs}


def toy_plan(*, surface_cases: int = 1) -> Plan:
    training = Training("nothing: these graphs are plain arithmetic", "Apache-2.0", {})
    return Plan("toy", training, "Apache-2.0", STEPS_MM, surface_cases=surface_cases)


def toy_draft(plan: Plan) -> Manifest:
    return draft_manifest(plan, PRESET, LATENT, 1.0, pool=True)


if __name__ == "__main__":
    plan = toy_plan()
    publish(toy_graphs(), toy_draft(plan), Path(__file__).parent / "data" / "toy_bundle", plan, overwrite=True)
