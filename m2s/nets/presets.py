"""The one table of sizes: `paper` as published, `compact` the one that ships, `tiny` for tests."""

from dataclasses import dataclass, field
from typing import Final, Literal

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class McsrSize:
    """MCSR-Net. `motion` picks the MC-Net: `image` as published, `track` from centroids and shapes of slices."""

    motion: Literal["image", "track"]
    slices: Literal["mask", "signed_distance"]
    clip_mm: float
    motion_channels: tuple[int, int, int, int]
    sr_channels: tuple[int, int]
    sr_blocks: int
    track_width: int = 0
    track_blocks: int = 0


@dataclass(frozen=True)
class VqVaeSize:
    """VQ-VAE. The stride of an axis is `patch * down`; `clamp_mm` bounds and scales the distances inside."""

    patch: Triple
    down: Triple
    channels: tuple[int, int]
    blocks: tuple[int, int]
    clamp_mm: float
    codes: int = 1024
    dim: int = 8
    codebook: Literal["ema", "gradient"] = "ema"

    @property
    def stride(self) -> Triple:
        """Voxels per latent cell along x, y, z."""
        (a, b, c), (d, e, f) = self.patch, self.down
        return a * d, b * e, c * f


@dataclass(frozen=True)
class DenoiserSize:
    """Diffusion U-Net. `target` is what the network itself estimates; its graph always returns the noise."""

    channels: tuple[int, int, int]
    res_blocks: int
    attention: tuple[bool, bool, bool]
    head_channels: int
    groups: int
    target: Literal["noise", "residual"]


@dataclass(frozen=True)
class Preset:
    """All network sizes of one bundle; `csdg_share` is the weight that the C-SDG keeps in its surfaces."""

    name: str
    mcsr: McsrSize
    vqvae: VqVaeSize
    denoiser: DenoiserSize
    notes: str = field(default="", compare=False)
    csdg_share: float = 0.0


PRESETS: Final[dict[str, Preset]] = {
    p.name: p
    for p in (
        Preset(
            "paper",
            McsrSize("image", "mask", 12.0, (16, 32, 64, 64), (32, 64), 5),
            VqVaeSize((2, 2, 2), (2, 2, 2), (64, 128), (1, 2), 10.0, codebook="gradient"),
            DenoiserSize((128, 256, 384), 2, (False, True, True), 64, 32, "noise"),
            "as published where the paper says; widths it leaves open are ours",
        ),
        Preset(
            "compact",
            McsrSize("track", "signed_distance", 12.0, (0, 0, 0, 0), (40, 80), 3, 480, 3),
            VqVaeSize((4, 4, 4), (2, 2, 2), (48, 128), (1, 2), 10.0),
            DenoiserSize((48, 96, 144), 1, (False, False, True), 48, 16, "residual"),
            "ships; two CPU cores are enough",
            csdg_share=0.6,
        ),
        Preset(
            "tiny",
            McsrSize("track", "signed_distance", 12.0, (0, 0, 0, 0), (8, 8), 1, 16, 1),
            VqVaeSize((4, 4, 4), (2, 2, 2), (8, 16), (1, 1), 10.0, codes=32),
            DenoiserSize((8, 16, 16), 1, (False, False, True), 8, 8, "residual"),
            "tests and CI only",
        ),
    )
}
