"""The figures that the paper prints in its Tables 1 to 3, and how the tables call the methods.

Its Chamfer distances are printed in mm; sums of squared distances as they must be, they are in mm² here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from m2s.baselines.registry import BASELINES

TableNumber = Literal[1, 2, 3]


@dataclass(frozen=True)
class Published:
    """Mean ± sd over the paper's 235 test subjects."""

    dice: str
    cd: str


NOTHING: Final = Published("-", "-")

SIMULATION: Final[Mapping[str, Published]] = {
    "nni": Published("64.77 ± 3.91", "21.94 ± 2.90"),
    "srheart": Published("76.89 ± 4.05", "18.41 ± 4.61"),
    "mcsr-ms": Published("91.24 ± 3.09", "6.74 ± 1.51"),
    "mcsr-ete": Published("92.97 ± 2.95", "6.30 ± 1.41"),
    "cardiac-pcn": Published("-", "13.16 ± 83.08"),
    "ours": Published("94.05 ± 2.05", "5.59 ± 1.13"),
}

DIRECT: Final[Mapping[str, Published]] = {
    "nni": Published("65.84 ± 6.57", "22.08 ± 5.34"),
    "srheart": Published("74.43 ± 6.61", "19.85 ± 7.43"),
    "mcsr-ms": Published("73.69 ± 5.08", "16.54 ± 3.94"),
    "mcsr-ete": Published("74.23 ± 4.90", "16.32 ± 4.11"),
    "cardiac-pcn": Published("-", "17.19 ± 9.51"),
    "ours": Published("76.88 ± 4.54", "14.97 ± 3.74"),
}

TUNED: Final[Mapping[str, Published]] = {
    "nni": Published("65.84 ± 6.57", "22.08 ± 5.34"),
    "srheart": Published("74.43 ± 6.61", "19.85 ± 7.43"),
    "mcsr-ms": Published("84.19 ± 4.96", "11.34 ± 5.21"),
    "mcsr-ete": Published("84.21 ± 5.12", "11.19 ± 5.66"),
    "cardiac-pcn": Published("-", "12.74 ± 6.59"),
    "ours": Published("86.32 ± 5.11", "9.98 ± 5.41"),
}

ABLATIONS: Final[Mapping[str, Published]] = {
    "mcsr": Published("73.04 ± 5.22", "16.77 ± 3.92"),
    "mask-condition": Published("75.77 ± 4.68", "15.54 ± 3.90"),
    "slice-condition": Published("55.77 ± 11.37", "44.08 ± 29.63"),
    "vae": Published("55.63 ± 8.44", "99.86 ± 313.54"),
    "gan": Published("73.48 ± 5.72", "17.03 ± 4.68"),
    "ours": Published("76.88 ± 4.54", "14.97 ± 3.74"),
}

_COMPETING: Final = ("nni", "shape-based", "shape-based-line", "srheart", "mcsr-ms", "mcsr-ete", "cardiac-pcn", "ours")
METHODS_OF: Final[Mapping[TableNumber, tuple[str, ...]]] = {1: _COMPETING, 2: _COMPETING, 3: tuple(ABLATIONS)}
"""Methods of each table in the paper's order, the classical lines after the nearest neighbour."""

_TITLES: Final[Mapping[str, str]] = {
    "nni": "NNI",
    "shape-based": "Shape-based, one axis point",
    "shape-based-line": "Shape-based, straight axis",
    "mcsr": "MCSR-Net",
    "ours": "Ours",
}


def title_of(name: str) -> str:
    """What a table calls a method."""
    return BASELINES[name].title if name in BASELINES else _TITLES.get(name, name)
