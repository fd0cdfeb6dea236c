"""What a graphics card could do at best, before anybody has one: an estimate, and marked as one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from m2s.bench.result import Work
from m2s_runtime.manifest import GRAPHS

Precision = Literal["float32", "float16"]


@dataclass(frozen=True)
class Card:
    """A card by its maker's figures.

    Attributes:
        name: in full.
        float32: FLOP/s of its ordinary units; the engines switch TF32 off.
        float16: FLOP/s of its tensor cores, dense, summed in float32.
        bandwidth: bytes/s of its memory.
        source: where the figures stand.
    """

    name: str
    float32: float
    float16: float
    bandwidth: float
    source: str


CARDS: Final = {
    "rtx4090": Card("NVIDIA GeForce RTX 4090", 82.6e12, 165.2e12, 1008e9, "NVIDIA Ada GPU architecture whitepaper"),
    "rtx3090": Card("NVIDIA GeForce RTX 3090", 35.6e12, 71e12, 936e9, "NVIDIA Ampere GA102 architecture whitepaper"),
    "rtx5090": Card("NVIDIA GeForce RTX 5090", 104.8e12, 209.5e12, 1792e9, "NVIDIA RTX Blackwell GPU whitepaper"),
    "a100": Card("NVIDIA A100 SXM 80 GB", 19.5e12, 312e12, 2039e9, "NVIDIA A100 datasheet"),
    "h100": Card("NVIDIA H100 SXM", 66.9e12, 989.4e12, 3352e9, "NVIDIA H100 datasheet"),
}
"""Name on the command line to card."""

PAPER: Final = {
    "mc": Work(13872663552.0, 38197056, 152788224.0, 125245536.0, 432574288.0),
    "sr": Work(345753255936.0, 1460161, 5840644.0, 1506803712.0, 4479198572.0),
    "encode": Work(127137742848.0, 2235720, 8942880.0, 357564416.0, 967640536.0),
    "denoise": Work(441799802880.0, 110410752, 441643008.0, 1284565504.0, 6680255148.0),
    "decode": Work(122641448960.0, 2098952, 8395808.0, 289931264.0, 952638708.0),
}
"""Preset `paper`, counted on its exported graphs by `work.count_graph`; a test compares PyTorch's own counter."""


@dataclass(frozen=True)
class Roof:
    """One graph, one row: seconds if only arithmetic, or only traffic, took time; the longer of them is the floor."""

    arithmetic: float
    traffic: float

    @property
    def floor(self) -> float:
        """Seconds that no implementation undercuts."""
        return max(self.arithmetic, self.traffic)


@dataclass(frozen=True)
class Prediction:
    """An estimate, never a measurement.

    Attributes:
        estimate: always true.
        card: full name.
        source: of the card's figures.
        networks: what was counted, for people.
        precision: of the arithmetic; half of it halves the traffic.
        steps: of the denoiser.
        graphs: graph to roof.
        heart: seconds of all networks of a heart at the floor; geometry and files are not in it.
    """

    estimate: Literal[True]
    card: str
    source: str
    networks: str
    precision: Precision
    steps: int
    graphs: dict[str, Roof]
    heart: float


def predict(card: Card, networks: str, work: Mapping[str, Work], steps: int, precision: Precision) -> Prediction:
    """The roofline of every graph and of a heart."""
    flops, width = (card.float16, 0.5) if precision == "float16" else (card.float32, 1.0)
    roofs = {
        graph: Roof(
            work[graph].flops / flops,
            width * (work[graph].weight_bytes + work[graph].activation_bytes) / card.bandwidth,
        )
        for graph in GRAPHS
    }
    heart = sum(roof.floor * (steps if graph == "denoise" else 1) for graph, roof in roofs.items())
    return Prediction(True, card.name, card.source, networks, precision, steps, roofs, heart)
